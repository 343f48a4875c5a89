"""Weights from a folder or the hub into memory, with a one-line error for whatever goes wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from interp.errors import ModelError, first_line
from interp.json_text import parse_json

SMALLER = "Give dtype=torch.bfloat16, device_map='auto' (needs accelerate), or a quantization_config."
"""Advice in messages about memory."""
ADAPTER = "adapter_config.json"
"""File that makes a folder an adapter of PEFT."""
WIDE = 512
"""Width from which products in bfloat16 are faster on a CPU with instructions for them."""


def load(loader, name: str, **kwargs):
    """Call `loader.from_pretrained`, with a one-line error for whatever goes wrong.

    Raises:
        ModelError: the model does not exist, can't be read, or does not fit into memory.
    """
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise ModelError(f"model folder {name!r} does not exist")
    try:
        return loader.from_pretrained(name, **kwargs)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"model {name!r} does not fit into memory: {first_line(error)} {SMALLER}") from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError, SafetensorError) as error:
        raise ModelError(
            f"model {name!r} can't be loaded: {first_line(error)} "
            "Expected a folder in Hugging Face format, a hub id that can be reached, or 'organism'."
        ) from error


@dataclass(frozen=True)
class Placement:
    """Device and precision of the weights."""

    device: torch.device
    dtype: torch.dtype | str
    loading: dict
    """The arguments for `from_pretrained`."""

    @classmethod
    def of(cls, device: str, dtype: torch.dtype | str, device_map, quantization_config) -> "Placement":
        """Resolve the device `auto`; the precision `auto` waits for the checkpoint, see `in_precision_of`.

        Args:
            device: auto, cpu, cuda, meta, ...
            dtype: weight precision, or `auto`.
            device_map: how to spread the model over devices.
            quantization_config: quantisation of the weights.

        Raises:
            ModelError: the device can't be used.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(
                f"device {device!r} can't be used: {first_line(error)}; expected auto, cpu, cuda, ..."
            ) from None
        loading = {"device_map": device_map, "quantization_config": quantization_config}
        return cls(torch.device(device), dtype, {k: v for k, v in loading.items() if v is not None} | {"dtype": dtype})

    def in_precision_of(self, config: PretrainedConfig) -> "Placement":
        """Resolve the precision `auto`: the checkpoint's own, but on a CPU float32 where bfloat16 is not faster.

        Width and processor decide, and no measurement, so that every run on a machine has the same precision.

        Args:
            config: config of the model.
        """
        if self.dtype != "auto" or self.device.type != "cpu" or len(self.loading) > 1:
            return self
        text = config.get_text_config()
        is_faster = (config.dtype or text.dtype) == torch.bfloat16 and text.hidden_size >= WIDE and has_bfloat16()
        dtype = torch.bfloat16 if is_faster else torch.float32
        return replace(self, dtype=dtype, loading=self.loading | {"dtype": dtype})

    def place(self, model: PreTrainedModel) -> PreTrainedModel:
        """Move the model to its device, unless it was spread over devices or quantised.

        Raises:
            ModelError: the device does not have enough memory.
        """
        try:
            return (model if len(self.loading) > 1 else model.to(self.device)).eval()
        except torch.OutOfMemoryError as error:
            raise ModelError(f"the model does not fit on {self.device}: {first_line(error)} {SMALLER}") from error


def has_bfloat16() -> bool:
    """Return whether this processor multiplies in bfloat16; all others are several times slower than in float32."""
    supports = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in supports)


def _check_memory(name: str, placement: Placement) -> None:
    """Check that the weights fit into memory before any of them is read.

    Raises:
        ModelError: the weights are larger than the free memory.
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
    """Return the size of the weights in a safetensors file, in the precision that they are loaded in."""
    if dtype == "auto":
        return file.stat().st_size
    try:
        with safe_open(file, framework="pt") as weights:
            return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys()) * dtype.itemsize
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{str(file)!r} is damaged: {first_line(error)}; download it again") from error


def load_model(
    auto, name: str, config: PretrainedConfig, placement: Placement, attn_implementation: str | None, **hub
) -> PreTrainedModel:
    """Load the weights, or build an empty model on the meta device.

    Args:
        auto: class that builds the model, e.g. `AutoModelForImageTextToText`.
        name: folder in Hugging Face format, or hub id.
        config: config of the model.
        placement: device and precision.
        attn_implementation: attention kernel; by default transformers chooses.
        hub: arguments from `hub_options`.

    Raises:
        ModelError: the model can't be loaded, or some of its weights are not in the checkpoint.
    """
    if placement.device.type == "meta":
        with placement.device:
            dtype = {"dtype": placement.dtype} if placement.dtype != "auto" else {}
            return auto.from_config(config, trust_remote_code=hub["trust_remote_code"], **dtype).eval()
    placement = placement.in_precision_of(config)
    _check_memory(name, placement)
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    model, report = load(auto, name, config=config, output_loading_info=True, **placement.loading, **attention, **hub)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"model {name!r}: {len(missing)} weights ({missing[0]}, ...) are not in the checkpoint and would be "
            "random; download it again, or check that its config belongs to it"
        )
    return placement.place(model)


def hub_options(revision: str | None, trust_remote_code: bool) -> dict:
    """Return the arguments of `from_pretrained` about the hub.

    Returns:
        `trust_remote_code`, and `revision` if one is given.
    """
    return {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})


def adapted_model(name: str) -> str | None:
    """Return the model that an adapter was made for, if the folder holds an adapter of PEFT; else None.

    Raises:
        ModelError: the adapter does not say which model it is for.
    """
    file = Path(name) / ADAPTER
    if not file.is_file():
        return None
    try:
        base = parse_json(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"adapter {name!r}: {ADAPTER} can't be read: {first_line(error)}") from None
    if not base:
        raise ModelError(f"adapter {name!r} names no base model; expected base_model_name_or_path in {ADAPTER}")
    return base


def with_adapter(model: PreTrainedModel, name: str) -> nn.Module:
    """Return a model with the adapter of a folder on it.

    Raises:
        ModelError: PEFT is not installed, or the adapter does not fit the model.
    """
    try:
        import peft
    except ImportError:
        raise ModelError(
            f"{name!r} is an adapter; pip install peft, or merge it into its model and save that"
        ) from None
    try:
        return peft.PeftModel.from_pretrained(model, name).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"adapter {name!r} does not fit its model: {first_line(error)}") from error


def is_text_only(name_or_path: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> bool:
    """Return whether a checkpoint is a causal language model without pictures, which `LLM` loads instead of `VLM`.

    Raises:
        ModelError: it does not exist, or its config can't be read.
    """
    name = adapted_model(str(name_or_path)) or str(name_or_path)
    if (Path(name) / "model_index.json").exists():
        return False
    config = load(AutoConfig, name, **hub_options(revision, trust_remote_code))
    return not _accepts_pictures(config) and (
        config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in _auto_map(config)
    )


def _accepts_pictures(config: PretrainedConfig) -> bool:
    return (
        config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        or "AutoModelForImageTextToText" in _auto_map(config)
    )


def _auto_map(config: PretrainedConfig) -> Mapping[str, str]:
    return getattr(config, "auto_map", None) or {}


def check_accepts_pictures(name: str, config: PretrainedConfig) -> None:
    """Check that the model is a vision-language model.

    Raises:
        ModelError: it is of another type.
    """
    if not _accepts_pictures(config):
        raise ModelError(
            f"model {name!r} is of type {config.model_type!r}, which accepts no pictures; "
            "expected a vision-language model (transformers: image-text-to-text)"
        )
