"""Load a Hugging Face image-text-to-text model, and one name for each part that the toolkit touches."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

import psutil
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from interp import families
from interp.families import Family, ModelError, decoder_blocks, first_line
from interp.processors import load_processor

__all__ = ["LLM", "VLM", "ModelError"]


def _load(loader, name: str, **kwargs):
    """`loader.from_pretrained`, with one clear line for whatever goes wrong."""
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise ModelError(f"model folder {name!r} does not exist")
    try:
        return loader.from_pretrained(name, **kwargs)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"model {name!r} does not fit into memory: {first_line(error)} {SMALLER}") from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model {name!r} can't be loaded: {first_line(error)} "
            "Expected a folder in Hugging Face format, a hub id that can be reached, or 'organism'."
        ) from error


SMALLER = "Give dtype=torch.bfloat16, device_map='auto' (needs accelerate), or a quantization_config."


@dataclass(frozen=True)
class _Placement:
    """Where the weights go, and in which precision."""

    device: torch.device
    dtype: torch.dtype | str
    loading: dict
    """What `from_pretrained` is told of it."""

    @classmethod
    def of(cls, device: str, dtype: torch.dtype | str, device_map, quantization_config) -> "_Placement":
        """On a CPU float32, which is faster there than bfloat16; elsewhere what the checkpoint is stored in."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(
                f"device {device!r} can't be used: {first_line(error)}; expected auto, cpu, cuda, ..."
            ) from None
        if dtype == "auto" and device == "cpu" and device_map is None and quantization_config is None:
            dtype = torch.float32
        loading = {"device_map": device_map, "quantization_config": quantization_config}
        return cls(torch.device(device), dtype, {k: v for k, v in loading.items() if v is not None} | {"dtype": dtype})

    def place(self, model: PreTrainedModel) -> PreTrainedModel:
        """Spread or quantised weights stay where they were loaded.

        Raises:
            ModelError: the device has no room.
        """
        try:
            return (model if len(self.loading) > 1 else model.to(self.device)).eval()
        except torch.OutOfMemoryError as error:
            raise ModelError(f"the model does not fit on {self.device}: {first_line(error)} {SMALLER}") from error


def _check_memory(name: str, placement: _Placement) -> None:
    """Before anything is read: a machine that runs out of memory half way is no place to learn about it.

    Raises:
        ModelError: the weights are larger than what is free.
    """
    if len(placement.loading) > 1 or not Path(name).is_dir():
        return
    needed = sum(_loaded_bytes(file, placement.dtype) for file in Path(name).glob("*.safetensors"))
    free = psutil.virtual_memory().available
    if placement.device.type == "cuda":
        free = torch.cuda.mem_get_info(placement.device)[0]
    if needed > free:
        raise ModelError(f"model {name!r} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. {SMALLER}")


def _loaded_bytes(file: Path, dtype: torch.dtype | str) -> int:
    """Of the weights in a safetensors file, in the precision that they are loaded in."""
    if dtype == "auto":
        return file.stat().st_size
    with safe_open(file, framework="pt") as weights:
        return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys()) * dtype.itemsize


def _load_model(
    auto, name: str, config: PretrainedConfig, placement: _Placement, attn_implementation: str | None, **hub
) -> PreTrainedModel:
    """Raises:
    ModelError: it can't be loaded, or some of its weights are not in the checkpoint.
    """
    if placement.device.type == "meta":
        with placement.device:
            told = {"dtype": placement.dtype} if placement.dtype != "auto" else {}
            return auto.from_config(config, trust_remote_code=hub["trust_remote_code"], **told).eval()
    _check_memory(name, placement)
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    model, found = _load(auto, name, config=config, output_loading_info=True, **placement.loading, **attention, **hub)
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"model {name!r}: {len(missing)} weights ({missing[0]}, ...) are not in the checkpoint and would be "
            "random; download it again, or check that its config belongs to it"
        )
    return placement.place(model)


class _HasDecoder:
    """What a language model has, with eyes or without."""

    model: PreTrainedModel

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks of the language model; `blocks[layer]` puts out `resid_post` of `layer`."""
        return decoder_blocks(self.model)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where inputs go. A model whose weights are on a server takes them from here."""
        return torch.device("cpu") if self.model.device.type == "meta" else self.model.device

    @property
    def d_model(self) -> int:
        return self.model.config.get_text_config().hidden_size


@dataclass(frozen=True)
class LLM(_HasDecoder):
    """A causal language model without eyes: the aligned LLM as its own checkpoint."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    loading: dict | None = field(default=None, repr=False, compare=False)
    """What `from_pretrained` was told, for processes that load the same; None for a model already in hand."""

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
        """Loads the model and its tokenizer; arguments as for `VLM.from_pretrained`.

        Args:
            chat_template: for tokenizers that come without one, as Vicuna's.

        Raises:
            ModelError: there is no such model, it is no causal language model, or it has no chat template.
        """
        loading = {key: value for key, value in locals().items() if key != "cls"}
        name, placement = str(name_or_path), _Placement.of(device, dtype, device_map, quantization_config)
        hub = _hub(revision, trust_remote_code)
        config = _load(AutoConfig, name, **hub)
        tokenizer = _load(AutoTokenizer, name, **hub)
        tokenizer.padding_side = "left"
        tokenizer.chat_template = chat_template or tokenizer.chat_template
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {name!r} has no chat template; give one, e.g. that of the VLM built on it: "
                "chat_template=..."
            )
        model = _load_model(AutoModelForCausalLM, name, config, placement, attn_implementation, **hub)
        return cls(model, tokenizer, name, loading)

    def skipped_layers(self, batch: Mapping[str, Tensor]) -> frozenset[int]:
        """None: every block runs on text."""
        return frozenset()

    def check_matches(self, vlm: "VLM") -> None:
        """That this could be the language model that the VLM was built on.

        Raises:
            ModelError: width, depth or vocabulary differ; the message says how.
        """
        ours, theirs = self.model.config.get_text_config(), vlm.model.config.get_text_config()
        for what, key in (("layers", "num_hidden_layers"), ("d_model", "hidden_size")):
            if getattr(ours, key) != getattr(theirs, key):
                raise ModelError(
                    f"{self.name!r} has {getattr(ours, key)} {what}, {vlm.name!r} has {getattr(theirs, key)}; "
                    "expected the language model that the VLM was built on"
                )
        # VLMs add tokens of their own at the end (<image>, padding); those before must be the same.
        mine, its = self.tokenizer.get_vocab(), vlm.tokenizer.get_vocab()
        moved = [token for token, i in mine.items() if its.get(token) != i]
        if moved:
            raise ModelError(
                f"{len(moved)} of the {len(mine)} tokens of {self.name!r} have another id in {vlm.name!r} "
                f"({moved[0]!r}, ...); expected the language model that the VLM was built on"
            )


def _hub(revision: str | None, trust_remote_code: bool) -> dict:
    return {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})


def _refuse_what_is_no_vlm(name: str, config: PretrainedConfig) -> None:
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and "AutoModelForImageTextToText" not in (
        getattr(config, "auto_map", None) or {}
    ):
        raise ModelError(
            f"model {name!r} is of type {config.model_type!r}, which takes no pictures; "
            "expected a vision-language model (transformers: image-text-to-text)"
        )


@dataclass(frozen=True)
class VLM(_HasDecoder):
    """A vision-language model, its processor, and one name for each part that the toolkit touches.

    `VLM(model, processor)` takes a model already in hand.
    """

    model: PreTrainedModel
    processor: ProcessorMixin | None
    """None where inputs are made by hand; then nothing can be made from prompts."""
    name: str = ""
    loading: dict | None = field(default=None, repr=False, compare=False)
    """What `from_pretrained` was told, for processes that load the same; None for a model already in hand."""

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", self.model.config.name_or_path or type(self.model).__name__)
        if self.processor is not None:
            self.processor.tokenizer.padding_side = "left"

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
        """Loads any image-text-to-text model of transformers from a folder or the hub.

        Args:
            name_or_path: folder in Hugging Face format, or hub id.
            device: `auto` takes a GPU if there is one; `meta` loads no weights, for traces on a server.
            dtype: `auto` is float32 on a CPU, the checkpoint's own elsewhere.
            device_map: spreads the model over devices (needs accelerate); `device` is left aside then.
            attn_implementation: `eager`, `sdpa`, `flash_attention_2`; by default transformers chooses.
            revision: commit, tag or branch on the hub.
            trust_remote_code: runs code from the checkpoint. Off unless you have read that code.
            quantization_config: of transformers, e.g. `BitsAndBytesConfig`.

        Raises:
            ModelError: there is no such model, it takes no pictures, it lacks weights, or it does not fit into memory.
        """
        loading = {key: value for key, value in locals().items() if key != "cls"}
        name, placement = str(name_or_path), _Placement.of(device, dtype, device_map, quantization_config)
        if (Path(name) / "model_index.json").exists():
            raise ModelError(
                f"model {name!r} is a diffusion pipeline; expected a vision-language model that writes text"
            )
        hub = _hub(revision, trust_remote_code)
        config = _load(AutoConfig, name, **hub)
        _refuse_what_is_no_vlm(name, config)
        with warnings.catch_warnings():
            # Without torchvision transformers takes the PIL image processor, and says so each time.
            warnings.filterwarnings("ignore", message=".*torchvision.*")
            processor = load_processor(name, **hub)
        if not getattr(processor, "chat_template", None):
            raise ModelError(
                f"the processor of {name!r} has no chat template; set processor.chat_template, save it with "
                "processor.save_pretrained, and load that folder"
            )
        model = _load_model(AutoModelForImageTextToText, name, config, placement, attn_implementation, **hub)
        return cls(model, processor, name, loading)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's own, which pads on the left.

        Raises:
            ModelError: the model came without a processor.
        """
        if self.processor is None:
            raise ModelError(f"{self.name!r} has no processor; give one: VLM(model, processor)")
        return self.processor.tokenizer

    @cached_property
    def family(self) -> Family:
        return families.family_of(self.model.config)

    @cached_property
    def final_norm(self) -> nn.Module:
        return families.final_norm(self.model)

    @cached_property
    def unembedding(self) -> nn.Module:
        return families.unembedding(self.model)

    @cached_property
    def vision_blocks(self) -> nn.ModuleList:
        return families.vision_blocks(self.model)

    @cached_property
    def projector(self) -> nn.Module:
        return families.projector(self.model)

    @property
    def image_token_id(self) -> int:
        """The id that stands at each position which a picture takes."""
        return families.image_token_id(self.model.config)

    def image_positions(self, input_ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Where pictures stand in the sequence. None where they come in through cross-attention."""
        if not self.family.pictures_in_sequence:
            return torch.zeros_like(input_ids, dtype=torch.bool)
        return input_ids == self.image_token_id

    def skipped_layers(self, batch: Mapping[str, Tensor]) -> frozenset[int]:
        """Blocks that a batch without pictures passes by: those that attend to pictures and to nothing else."""
        if self.family.pictures_in_sequence or "pixel_values" in batch:
            return frozenset()
        return frozenset(self.model.config.get_text_config().cross_attention_layers)

    @cached_property
    def deepstack_layers(self) -> range:
        """Layers whose state changes once more at image positions before the next block takes it."""
        return families.deepstack_layers(self.model.config)

    @property
    def picture_size(self) -> int:
        """Side, in pixels, of the square that the vision tower sees; 336 where it takes any size."""
        size = getattr(getattr(self.model.config, "vision_config", None), "image_size", None) or 336
        return size if isinstance(size, int) else max(size)

    def __repr__(self) -> str:
        """Not every module of it, nor where its files lie."""
        kind, dtype = type(self.model).__name__, str(self.model.dtype).removeprefix("torch.")
        return f"VLM({self.name!r}: {kind}, {self.n_layers} layers of width {self.d_model}, {dtype} on {self.device})"

    def _repr_html_(self) -> str:
        from interp import cards

        return cards.of_vlm(self)
