"""Parts of a model, found by its structure; a small table has what the structure doesn't show."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from interp.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Differences of a model family from LLaVA. Paths are dotted and start at the model."""

    projector: str | None = None
    """Path of the projector, where its name does not show which one it is."""
    vision_blocks: str | None = None
    """Path of the vision blocks, for towers with several lists of blocks of the same length."""
    pictures_in_sequence: bool = True
    """False where pictures enter through cross-attention: a single token represents a whole picture."""
    bare_text: str | None = None
    """Format of a prompt without picture, for processors that require one; `{text}` is the chat template's output."""
    is_causal: bool = True
    """False where a prompt attends in both directions: a later token then changes the states before it."""


FAMILIES = {
    "mllama": Family(vision_blocks="model.vision_model.transformer.layers", pictures_in_sequence=False),
    "paligemma": Family(bare_text="<bos>{text}\n", is_causal=False),
}


def deepstack_layers(config: PretrainedConfig) -> frozenset[int]:
    """Return the blocks after which visual features are added (DeepStack, arXiv:2406.04334), as the config says.

    At image positions, `resid_post` of these layers (the block's output) differs from `resid_pre` of the next layer.
    Used where a model can't be tried, see `interp.residual_stream`.
    """
    vision = getattr(config, "vision_config", None)
    layers = set(range(len(getattr(vision, "deepstack_visual_indexes", None) or ())))
    # Granite names the blocks in front of which features are added.
    targets = [pair[-1] for pair in getattr(config, "deepstack_layer_map", None) or ()]
    targets += getattr(config, "spatial_target_layers", None) or ()
    return frozenset(layers | {target - 1 for target in targets if target > 0})


def family_of(config: PretrainedConfig) -> Family:
    return FAMILIES.get(config.model_type, Family())


def _at(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a dotted path, or None."""
    return reduce(lambda module, name: getattr(module, name, None), path.split("."), model)


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the module that owns the decoder blocks, through the model's own accessor.

    Searching for lists of modules would be ambiguous: a vision tower has one too, often a longer one.

    Raises:
        ModelError: the accessor does not lead to blocks, or their number differs from the text config.
    """
    expected = model.config.get_text_config().num_hidden_layers
    module, visited = model.get_decoder(), []
    while module is not None and module not in visited:
        visited.append(module)
        blocks = _block_list(module)
        if blocks is not None:
            if len(blocks) == expected:
                return module
            break
        # A causal language model inside the model: its decoder is one level deeper.
        inner = module.get_decoder() if isinstance(module, PreTrainedModel) else None
        module = getattr(module, "model", None) if inner is module else inner
    contents = f"{len(blocks)} blocks" if visited and blocks is not None else "no list of blocks"
    raise ModelError(f"{type(model).__name__}: its decoder has {contents}, its text config says {expected}")


def _block_list(decoder: nn.Module) -> nn.ModuleList | None:
    for name in ("layers", "blocks", "h"):
        blocks = getattr(decoder, name, None)
        if isinstance(blocks, nn.ModuleList):
            return blocks
    return None


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks of the language model, layer 0 first.

    Raises:
        ModelError: see `language_model`.
    """
    return _block_list(language_model(model))


FINAL_NORMS = ("norm", "final_norm", "final_layernorm", "ln_f", "embedding_norm")
"""Names of the final norm."""
NORMS_AFTER = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
"""Norms after attention and MLP. A `post_attention_layernorm` alone comes before the MLP, despite its name."""


def sublayers(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the modules whose outputs a decoder block adds to the residual stream: attention, then the MLP.

    Where a norm follows them (Gemma), the norm's output is what is added.

    Raises:
        ModelError: the block has no such parts.
    """
    parts = dict(block.named_children())
    for norms in NORMS_AFTER:
        if all(name in parts for name in norms):
            return parts[norms[0]], parts[norms[1]]
    modules = [
        next((part for name, part in parts.items() if any(word in name for word in words) and "norm" not in name), None)
        for words in (("attn", "attention"), ("mlp", "feed_forward", "ffn"))
    ]
    if None in modules:
        raise ModelError(f"{type(block).__name__} has no attention or no MLP among its parts {', '.join(parts)}")
    return tuple(modules)


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Return the norm between the last block and the unembedding: the decoder's norm outside its blocks.

    Among several, it is the one that is called so; others belong to inputs of single layers.

    Raises:
        ModelError: the decoder has no such norm, or several.
    """
    decoder = language_model(model)
    norms = {name: child for name, child in decoder.named_children() if "norm" in type(child).__name__.lower()}
    if len(norms) > 1:
        norms = {name: norm for name, norm in norms.items() if name in FINAL_NORMS}
    if len(norms) != 1:
        raise ModelError(
            f"{type(decoder).__name__} has {len(norms)} norms outside its blocks that could be the final one; expected "
            "one"
        )
    return next(iter(norms.values()))


def unembedding(model: PreTrainedModel) -> nn.Module:
    """Return the output embeddings of the language model.

    Raises:
        ModelError: the model has no output embeddings.
    """
    for owner in (model, model.get_decoder(), getattr(model.base_model, "language_model", None)):
        head = owner.get_output_embeddings() if isinstance(owner, PreTrainedModel) else None
        if head is not None:
            return head
    raise ModelError(f"{type(model).__name__} has no output embeddings")


def keep_unembedding_contiguous(model: PreTrainedModel) -> None:
    """Have the unembedding copy its input where that is a slice, as `logits_to_keep` makes it.

    If the weights are frozen, PyTorch multiplies a slice in batches, and copies the whole unembedding for each row of
    the batch: seconds per pass where the vocabulary is large.
    """
    try:
        head = unembedding(model)
    except (ModelError, AttributeError):
        return
    if _contiguous_input not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_contiguous_input)


def _contiguous_input(module: nn.Module, args: tuple) -> tuple:
    return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in args)


DEPTHS = ("num_hidden_layers", "depth", "num_layers")
"""Names that vision configs use for their number of blocks."""


def vision_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the blocks of the vision tower, identified by the number of blocks in the vision config.

    Raises:
        ModelError: the model has no vision tower, or the tower does not have exactly one list of that length.
    """
    family = family_of(model.config)
    if family.vision_blocks:
        return _at(model, family.vision_blocks)
    tower, config = model.get_encoder("image"), getattr(model.config, "vision_config", None)
    depth = next((getattr(config, name) for name in DEPTHS if hasattr(config, name)), None)
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    # Other lists of modules may be as long as the blocks, but they contain no attention.
    lists = [
        blocks
        for blocks in lists
        if any("attn" in name or "attention" in name for name, _ in blocks[0].named_children())
    ]
    if tower is model or len(lists) != 1:
        raise ModelError(
            f"{type(model).__name__}: {len(lists)} lists of {depth} blocks in its vision tower, expected one; "
            "name it in interp/families.py"
        )
    return lists[0]


PROJECTORS = ("projector", "merger", "connector", "aligner", "language_projection", "embed_vision")
"""Words in the names that models give to their projector."""


def projector(model: PreTrainedModel) -> nn.Module:
    """Return the module that maps the vision tower's width to the decoder's.

    It is outside the decoder and its name says what it is; the outermost one counts.

    Raises:
        ModelError: there is none, or several.
    """
    if path := family_of(model.config).projector:
        return _at(model, path)
    inside, found = set(language_model(model).modules()), {}
    for name, module in model.named_modules():
        own = name.rpartition(".")[2]
        is_named = any(word in own for word in PROJECTORS) and not isinstance(module, nn.ModuleList)
        if is_named and module not in inside and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise ModelError(
            f"{type(model).__name__}: {len(found)} modules look like its projector ({names}); expected one; name it in "
            "interp/families.py"
        )
    return next(iter(found.values()))


PLACEHOLDERS = ("image", "video", "audio")
"""Kinds of input that processors expand into tokens of their own."""


def placeholder_ids(config: PretrainedConfig, processor: ProcessorMixin | None) -> dict[str, int]:
    """Return the token id that stands for each kind of input besides text, as far as config or processor name it."""
    found = {}
    # The config first, since processors also name tokens that a checkpoint does not use.
    for source, kind in product((config, processor), PLACEHOLDERS):
        for name in (f"{kind}_token_id", f"{kind}_token_index", f"{kind}_pad_token_id"):
            if isinstance(token := getattr(source, name, None), int):
                found.setdefault(kind, token)
    return found


def largest(config: PretrainedConfig, name: str, default: int) -> int:
    """Return the largest value of a setting that some families have for each layer.

    Args:
        config: the text config.
        name: name of the setting.
        default: value where the setting is not there.
    """
    # Families with settings by layer refuse to name one for all, with an error of their own.
    by_layer = getattr(config, "per_layer_config", None) or (config,)
    found: list[int] = []
    for layer in by_layer.values() if isinstance(by_layer, Mapping) else by_layer:
        value = getattr(layer, name, None)
        found += filter(None, value if isinstance(value, (list, tuple)) else (value,))
    return max(found, default=default)


def has_pictures(config: PretrainedConfig) -> bool:
    """Return whether a model of this config takes pictures."""
    names = ("vision_config", "image_token_id", "image_token_index", "vision_feature_layer")
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or any(hasattr(config, n) for n in names)


def image_token_id(config: PretrainedConfig) -> int:
    """Return the id of the token that represents a picture.

    Raises:
        ModelError: the config names no such token.
    """
    token = getattr(config, "image_token_id", None)
    if token is None:
        raise ModelError(f"the config of {config.model_type!r} names no image token; expected image_token_id")
    return token
