"""Load a Hugging Face image-text-to-text model, name its parts once, and prove that the names are right."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


class ModelError(ValueError):
    """The model can't be loaded, or is not what its name says."""


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of the language model, layer 0 first.

    Found by the model's own accessor and checked against the text config, never by searching for module
    lists: a vision tower has one too.

    Raises:
        ModelError: the accessor leads nowhere, or to another number of blocks than the config has.
    """
    expected = model.config.get_text_config().num_hidden_layers
    blocks = getattr(model.get_decoder(), "layers", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != expected:
        found = f"{len(blocks)} blocks" if isinstance(blocks, nn.ModuleList) else "no list of blocks"
        raise ModelError(f"{type(model).__name__}: its decoder has {found}, its text config says {expected}")
    return blocks


def _load(loader, name: str, **kwargs):
    """`loader.from_pretrained`, with one clear line for whatever goes wrong."""
    try:
        return loader.from_pretrained(name, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {str(name)!r} can't be loaded: {reason} "
            "Expected a folder in Hugging Face format, a hub id that can be reached, or 'organism'."
        ) from error


def _placement(device: str, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype | str]:
    """On a CPU float32, which is faster there than bfloat16; elsewhere what the checkpoint is stored in."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device), dtype or (torch.float32 if device == "cpu" else "auto")


@dataclass(frozen=True)
class LLM:
    """A causal language model without eyes: the aligned LLM as its own checkpoint."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: str = "auto", dtype: torch.dtype | None = None) -> "LLM":
        """Loads the model and its tokenizer.

        Raises:
            ModelError: there is no such model, or it is no causal language model.
        """
        place, dtype = _placement(device, dtype)
        tokenizer = _load(AutoTokenizer, str(name_or_path))
        tokenizer.padding_side = "left"
        model = _load(AutoModelForCausalLM, str(name_or_path), dtype=dtype).to(place).eval()
        return cls(model, tokenizer, str(name_or_path))

    @cached_property
    def blocks(self) -> nn.ModuleList:
        return decoder_blocks(self.model)


@dataclass(frozen=True)
class VLM:
    """A vision-language model, its processor, and one name for each part that the toolkit touches."""

    model: PreTrainedModel
    processor: ProcessorMixin
    name: str

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: str = "auto", dtype: torch.dtype | None = None) -> "VLM":
        """Loads any image-text-to-text model of transformers from a folder or the hub.

        Args:
            name_or_path: folder in Hugging Face format, or hub id.
            device: `auto` takes a GPU if there is one.
            dtype: by default float32 on a CPU, the checkpoint's own elsewhere.

        Raises:
            ModelError: there is no such model, or it takes no pictures.
        """
        place, dtype = _placement(device, dtype)
        name = str(name_or_path)
        config = _load(AutoConfig, name)
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise ModelError(
                f"model {name!r} is of type {config.model_type!r}, which takes no pictures; "
                "expected a vision-language model (transformers: image-text-to-text)"
            )
        with warnings.catch_warnings():
            # Without torchvision transformers takes the PIL image processor, and says so each time.
            warnings.filterwarnings("ignore", message=".*torchvision.*")
            processor = _load(AutoProcessor, name)
        processor.tokenizer.padding_side = "left"
        model = _load(AutoModelForImageTextToText, name, dtype=dtype).to(place).eval()
        return cls(model, processor, name)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks of the language model; `blocks[layer]` puts out `resid_post` of `layer`."""
        return decoder_blocks(self.model)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def image_token_id(self) -> int:
        """The id that stands at each position which a picture takes."""
        return self.model.config.image_token_id

    @property
    def picture_size(self) -> int:
        """Side, in pixels, of the square that the vision tower sees."""
        return self.model.config.vision_config.image_size
