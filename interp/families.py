"""What can't be read off a model by its structure. One small table, and the parts that it helps to find."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class ModelError(ValueError):
    """The model can't be loaded, or is not what its name says."""


def first_line(error: Exception) -> str:
    """What an error says, short enough to be part of another message; its type where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    words = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)
    )


@dataclass(frozen=True)
class Family:
    """What differs from LLaVA. Paths are dotted, from the model."""

    projector: str = "model.multi_modal_projector"
    vision_blocks: str | None = None
    """Where the vision tower has several lists of blocks of the same length."""
    pictures_in_sequence: bool = True
    """False where pictures come in through cross-attention: one token stands for a whole picture."""
    bare_text: str | None = None
    """How a prompt without picture is written where the processor takes none: with `{text}`, the template's output."""
    is_sum: bool = True
    """False where gates scale what attention and MLP put out: `attn_out` and `mlp_out` are not what a block adds."""
    is_causal: bool = True
    """False where a prompt attends to itself in both directions: a later token then changes the states before it."""


FAMILIES = {
    "glm4v": Family(projector="model.visual.merger"),
    "idefics2": Family(projector="model.connector"),
    "idefics3": Family(projector="model.connector"),
    "instructblip": Family(projector="language_projection"),
    "mllama": Family(vision_blocks="model.vision_model.transformer.layers", pictures_in_sequence=False, is_sum=False),
    "paligemma": Family(bare_text="<bos>{text}\n", is_causal=False),
    "qwen2_5_vl": Family(projector="model.visual.merger"),
    "qwen2_vl": Family(projector="model.visual.merger"),
    "qwen3_vl": Family(projector="model.visual.merger"),
    "smolvlm": Family(projector="model.connector"),
}


def deepstack_layers(config: PretrainedConfig) -> range:
    """Decoder blocks after which visual features are added at image positions (DeepStack, arXiv:2406.04334).

    There `resid_post` of a layer, its block's output, is not `resid_pre` of the next.
    """
    vision = getattr(config, "vision_config", None)
    return range(len(getattr(vision, "deepstack_visual_indexes", None) or ()))


def family_of(config: PretrainedConfig) -> Family:
    return FAMILIES.get(config.model_type, Family())


def _at(model: nn.Module, path: str) -> nn.Module | None:
    return reduce(lambda module, name: getattr(module, name, None), path.split("."), model)


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """The module that owns the decoder blocks, found by the model's own accessor.

    Never by searching for lists of modules: a vision tower has one too, and often the longer one.

    Raises:
        ModelError: the accessor leads nowhere, or to another number of blocks than the text config has.
    """
    expected = model.config.get_text_config().num_hidden_layers
    module, seen = model.get_decoder(), []
    while module is not None and module not in seen:
        seen.append(module)
        blocks = _block_list(module)
        if blocks is not None:
            if len(blocks) == expected:
                return module
            break
        # A causal language model inside: its decoder is one step further in.
        module = module.get_decoder() if isinstance(module, PreTrainedModel) else None
    found = f"{len(blocks)} blocks" if seen and blocks is not None else "no list of blocks"
    raise ModelError(f"{type(model).__name__}: its decoder has {found}, its text config says {expected}")


def _block_list(decoder: nn.Module) -> nn.ModuleList | None:
    for name in ("layers", "blocks", "h"):
        blocks = getattr(decoder, name, None)
        if isinstance(blocks, nn.ModuleList):
            return blocks
    return None


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of the language model, layer 0 first.

    Raises:
        ModelError: see `language_model`.
    """
    return _block_list(language_model(model))


NORMS_AFTER = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
"""Norms behind attention and MLP. `post_attention_layernorm` alone stands before the MLP, whatever it is called."""


def sublayers(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """What adds to the residual stream in a decoder block: attention first, then the MLP.

    Where a norm stands between them and the stream (Gemma), it is the norm that puts out what is added.

    Raises:
        ModelError: the block has no such parts.
    """
    parts = dict(block.named_children())
    for norms in NORMS_AFTER:
        if all(name in parts for name in norms):
            return parts[norms[0]], parts[norms[1]]
    found = [
        next((part for name, part in parts.items() if any(word in name for word in words) and "norm" not in name), None)
        for words in (("attn", "attention"), ("mlp", "feed_forward", "ffn"))
    ]
    if None in found:
        raise ModelError(f"{type(block).__name__} has no attention or no MLP among its parts {', '.join(parts)}")
    return tuple(found)


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last block and the unembedding: the decoder's own only norm beside its blocks.

    Raises:
        ModelError: there is none, or more than one.
    """
    decoder = language_model(model)
    norms = [child for child in decoder.children() if "norm" in type(child).__name__.lower()]
    if len(norms) != 1:
        raise ModelError(f"{type(decoder).__name__} has {len(norms)} norms beside its blocks; expected the final one")
    return norms[0]


def unembedding(model: PreTrainedModel) -> nn.Module:
    """Raises:
    ModelError: the model has no output embeddings.
    """
    for owner in (model, model.get_decoder(), getattr(model.base_model, "language_model", None)):
        head = owner.get_output_embeddings() if isinstance(owner, PreTrainedModel) else None
        if head is not None:
            return head
    raise ModelError(f"{type(model).__name__} has no output embeddings")


DEPTHS = ("num_hidden_layers", "depth", "num_layers")


def vision_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of the vision tower, as many as the vision config says.

    Raises:
        ModelError: there is no vision tower, or no single list of that length in it.
    """
    family = family_of(model.config)
    if family.vision_blocks:
        return _at(model, family.vision_blocks)
    tower, config = model.get_encoder("image"), getattr(model.config, "vision_config", None)
    depth = next((getattr(config, name) for name in DEPTHS if hasattr(config, name)), None)
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    # A list of parts beside the blocks may be as long; blocks attend, such parts do not.
    lists = [
        found for found in lists if any("attn" in name or "attention" in name for name, _ in found[0].named_children())
    ]
    if tower is model or len(lists) != 1:
        raise ModelError(
            f"{type(model).__name__}: {len(lists)} lists of {depth} blocks in its vision tower, expected one; "
            "name it in interp/families.py"
        )
    return lists[0]


def projector(model: PreTrainedModel) -> nn.Module:
    """From the vision tower's width to the decoder's.

    Raises:
        ModelError: it is not where the table has it.
    """
    path = family_of(model.config).projector
    module = _at(model, path)
    if module is None:
        raise ModelError(f"{type(model).__name__} has no {path}; name its projector in interp/families.py")
    return module


def image_token_id(config: PretrainedConfig) -> int:
    """Raises:
    ModelError: the config names none.
    """
    token = getattr(config, "image_token_id", None)
    if token is None:
        raise ModelError(f"the config of {config.model_type!r} names no image token; expected image_token_id")
    return token
