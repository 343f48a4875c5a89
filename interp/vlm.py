"""Hugging Face image-text-to-text models, with one name for each part that the toolkit touches."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from interp import display, families
from interp.errors import ModelError
from interp.families import Family, decoder_blocks
from interp.loading import Placement, adapted_model, check_accepts_pictures, hub_options, load, load_model, with_adapter
from interp.processors import load_processor
from interp.unwrapping import check_has_one_decoder, unwrapped

__all__ = ["LLM", "VLM"]

ANY_SIZE = 336
"""Side of pictures, in pixels, where the model does not prescribe it."""


class _HasDecoder:
    """Parts that a VLM and a text-only language model have in common."""

    model: PreTrainedModel

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """Decoder blocks of the language model; `blocks[layer]` outputs `resid_post` of `layer`."""
        return decoder_blocks(self.model)

    @cached_property
    def final_norm(self) -> nn.Module:
        return families.final_norm(self.model)

    @cached_property
    def unembedding(self) -> nn.Module:
        return families.unembedding(self.model)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Device for inputs; the CPU for a model whose weights are on a server."""
        return torch.device("cpu") if self.model.device.type == "meta" else self.model.device

    @property
    def d_model(self) -> int:
        return self.model.config.get_text_config().hidden_size


@dataclass(frozen=True)
class LLM(_HasDecoder):
    """A text-only causal language model: the aligned LLM as a checkpoint of its own."""

    model: PreTrainedModel | nn.Module
    """A Hugging Face model; of a module around one, such as an adapter, the model inside is kept."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    loading: dict | None = field(default=None, repr=False, compare=False)
    """Arguments of `from_pretrained`, for worker processes that load the same model; None for a wrapped model."""

    def __post_init__(self):
        object.__setattr__(self, "model", unwrapped(self.model))
        families.keep_unembedding_contiguous(self.model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str = "auto",
        dtype: torch.dtype | str = "auto",
        device_map: str | dict | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        quantization_config=None,
        chat_template: str | None = None,
    ) -> "LLM":
        """Load a causal language model and its tokenizer from a folder or the hub.

        Args:
            name_or_path: folder in Hugging Face format, or hub id.
            device: see `VLM.from_pretrained`, also for the following.
            dtype: weight precision.
            device_map: how to spread the model over devices.
            attn_implementation: attention kernel.
            revision: commit, tag or branch on the hub.
            trust_remote_code: whether code from the checkpoint may run.
            quantization_config: quantisation of the weights.
            chat_template: chat template, for tokenizers that come without one, such as Vicuna's.

        Raises:
            ModelError: the model does not exist, is not a causal language model, or has no chat template.
        """
        loading = {key: value for key, value in locals().items() if key != "cls"}
        if base := adapted_model(str(name_or_path)):
            own = cls.from_pretrained(**loading | {"name_or_path": base})
            return replace(
                own, model=with_adapter(own.model, str(name_or_path)), name=str(name_or_path), loading=loading
            )
        name, placement = str(name_or_path), Placement.of(device, dtype, device_map, quantization_config)
        hub = hub_options(revision, trust_remote_code)
        config = load(AutoConfig, name, **hub)
        tokenizer = load(AutoTokenizer, name, **hub)
        tokenizer.padding_side = "left"
        tokenizer.chat_template = chat_template or tokenizer.chat_template
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {name!r} has no chat template; give one, e.g. that of the VLM built on it: "
                "chat_template=..."
            )
        model = load_model(AutoModelForCausalLM, name, config, placement, attn_implementation, **hub)
        return cls(model, tokenizer, name, loading)

    def skipped_layers(self, batch: Mapping[str, Tensor]) -> frozenset[int]:
        """Return the empty set: every block runs on text."""
        return frozenset()

    @property
    def family(self) -> Family:
        return Family()

    @property
    def picture_size(self) -> int:
        """Size of pictures that are drawn for prompts; the model itself accepts prompts of text alone."""
        return ANY_SIZE

    def image_positions(self, input_ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Mark nothing: there are no pictures."""
        return torch.zeros_like(input_ids, dtype=torch.bool)

    def placeholder_positions(self, input_ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Mark nothing: everything is text."""
        return torch.zeros_like(input_ids, dtype=torch.bool)

    def check_matches(self, vlm: "VLM") -> None:
        """Check that this could be the language model that the VLM was built on.

        Raises:
            ModelError: width, depth or vocabulary differ; the message says how.
        """
        ours, theirs = self.model.config.get_text_config(), vlm.model.config.get_text_config()
        for unit, key in (("layers", "num_hidden_layers"), ("d_model", "hidden_size")):
            if getattr(ours, key) != getattr(theirs, key):
                raise ModelError(
                    f"{self.name!r} has {getattr(ours, key)} {unit}, {vlm.name!r} has {getattr(theirs, key)}; "
                    "expected the language model that the VLM was built on"
                )
        # VLMs add tokens of their own at the end (<image>, padding); those before must be the same.
        ids, vlm_ids = self.tokenizer.get_vocab(), vlm.tokenizer.get_vocab()
        moved = [token for token, i in ids.items() if vlm_ids.get(token) != i]
        if moved:
            raise ModelError(
                f"{len(moved)} of the {len(ids)} tokens of {self.name!r} have another id in {vlm.name!r} "
                f"({moved[0]!r}, ...); expected the language model that the VLM was built on"
            )


@dataclass(frozen=True)
class VLM(_HasDecoder):
    """A vision-language model, its processor, and one name for each part that the toolkit touches.

    `VLM(model, processor)` wraps a model that is already loaded.
    """

    model: PreTrainedModel | nn.Module
    """A Hugging Face model; of a module around one, such as an adapter, the model inside is kept."""
    processor: ProcessorMixin | None
    """None where inputs are made by hand; prompts can't be used then."""
    name: str = ""
    loading: dict | None = field(default=None, repr=False, compare=False)
    """Arguments of `from_pretrained`, for worker processes that load the same model; None for a wrapped model."""

    def __post_init__(self):
        object.__setattr__(self, "model", unwrapped(self.model))
        if not families.has_pictures(self.model.config):
            raise ModelError(
                f"{type(self.model).__name__} accepts no pictures; LLM(model, tokenizer, name) is for models of text"
            )
        if not self.name:
            object.__setattr__(self, "name", self.model.config.name_or_path or type(self.model).__name__)
        if self.processor is not None:
            self.processor.tokenizer.padding_side = "left"
        families.keep_unembedding_contiguous(self.model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str = "auto",
        dtype: torch.dtype | str = "auto",
        device_map: str | dict | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        quantization_config=None,
    ) -> "VLM":
        """Load any image-text-to-text model of transformers from a folder or the hub.

        Args:
            name_or_path: folder in Hugging Face format, or hub id.
            device: `auto` uses a GPU if there is one; `meta` loads no weights, for traces on a server.
            dtype: weight precision; `auto` is the checkpoint's own, but float32 on a CPU where bfloat16 is not faster
                (with a device map or quantisation, always the checkpoint's own).
            device_map: spreads the model over devices (needs accelerate); `device` is then ignored.
            attn_implementation: `eager`, `sdpa` or `flash_attention_2`; by default transformers chooses.
            revision: commit, tag or branch on the hub.
            trust_remote_code: runs code from the checkpoint. Leave it off unless you have read that code.
            quantization_config: a quantisation config of transformers, e.g. `BitsAndBytesConfig`.

        Raises:
            ModelError: the model does not exist, accepts no pictures, lacks weights, or does not fit into memory.
        """
        loading = {key: value for key, value in locals().items() if key != "cls"}
        if base := adapted_model(str(name_or_path)):
            own = cls.from_pretrained(**loading | {"name_or_path": base})
            return replace(
                own, model=with_adapter(own.model, str(name_or_path)), name=str(name_or_path), loading=loading
            )
        name, placement = str(name_or_path), Placement.of(device, dtype, device_map, quantization_config)
        if (Path(name) / "model_index.json").exists():
            raise ModelError(
                f"model {name!r} is a diffusion pipeline; expected a vision-language model that writes text"
            )
        hub = hub_options(revision, trust_remote_code)
        config = load(AutoConfig, name, **hub)
        check_accepts_pictures(name, config)
        check_has_one_decoder(name, config)
        with warnings.catch_warnings():
            # Without torchvision, transformers uses the PIL image processor and warns about it each time.
            warnings.filterwarnings("ignore", message=".*torchvision.*")
            processor = load_processor(name, **hub)
        if not getattr(processor, "chat_template", None):
            raise ModelError(
                f"the processor of {name!r} has no chat template; set processor.chat_template, save it with "
                "processor.save_pretrained, and load that folder"
            )
        model = load_model(AutoModelForImageTextToText, name, config, placement, attn_implementation, **hub)
        return cls(model, processor, name, loading)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the processor, which pads on the left.

        Raises:
            ModelError: the model has no processor.
        """
        if self.processor is None:
            raise ModelError(f"{self.name!r} has no processor; give one: VLM(model, processor)")
        return self.processor.tokenizer

    @cached_property
    def family(self) -> Family:
        return families.family_of(self.model.config)

    @cached_property
    def vision_blocks(self) -> nn.ModuleList:
        return families.vision_blocks(self.model)

    @cached_property
    def projector(self) -> nn.Module:
        return families.projector(self.model)

    @property
    def image_token_id(self) -> int:
        """Token id at each position that a picture occupies."""
        return families.image_token_id(self.model.config)

    def image_positions(self, input_ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Mark the positions that pictures occupy; there are none where pictures enter through cross-attention."""
        if not self.family.pictures_in_sequence:
            return torch.zeros_like(input_ids, dtype=torch.bool)
        return input_ids == self.image_token_id

    def placeholder_positions(self, input_ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Mark the positions that are no text: of pictures, and of videos and sound in families that have them."""
        marked = self.image_positions(input_ids)
        for token in self.other_placeholder_ids.values():
            marked = marked | (input_ids == token)
        return marked

    @cached_property
    def other_placeholder_ids(self) -> dict[str, int]:
        """Token id of each kind of input besides text and pictures, such as videos and sound."""
        found = families.placeholder_ids(self.model.config, self.processor)
        # Some processors name tokens that the vocabulary lacks, some turn videos into pictures.
        unknown = getattr(getattr(self.processor, "tokenizer", None), "unk_token_id", None)
        other = (found.pop("image", None), unknown)
        return {kind: token for kind, token in found.items() if token not in other}

    def picture_mark_positions(self, input_ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Mark pictures with the tokens around them that families embed together with the picture."""
        marked = self.image_positions(input_ids)
        for token in getattr(self.model.config, "visual_indicator_token_ids", None) or ():
            marked = marked | (input_ids == token)
        return marked

    def skipped_layers(self, batch: Mapping[str, Tensor]) -> frozenset[int]:
        """Return the blocks that a batch without pictures skips: those that attend only to pictures."""
        if self.family.pictures_in_sequence or "pixel_values" in batch:
            return frozenset()
        return frozenset(self.model.config.get_text_config().cross_attention_layers)

    @property
    def picture_size(self) -> int:
        """Side, in pixels, of the square picture that the vision tower sees; `ANY_SIZE` if it accepts any size."""
        size = getattr(getattr(self.model.config, "vision_config", None), "image_size", None) or ANY_SIZE
        return size if isinstance(size, int) else max(size)

    def __repr__(self) -> str:
        """Summarise the model in one line, without its modules and file paths."""
        kind, dtype = type(self.model).__name__, str(self.model.dtype).removeprefix("torch.")
        return f"VLM({self.name!r}: {kind}, {self.n_layers} layers of width {self.d_model}, {dtype} on {self.device})"

    _repr_html_ = display.html
