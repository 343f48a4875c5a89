"""Identity of models and prompts: hashes by which stored results are matched with what they were made from."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

import torch
from torch import nn

from interp.errors import ModelError
from interp.inputs import Prompt
from interp.labels import prompt_labels
from interp.offloading import is_on_server, offloaded_weights
from interp.pictures import LazyPicture, Picture, digest
from interp.vlm import LLM, VLM

__all__ = [
    "fingerprint",
    "prompt_record",
    "weights_identity",
]

INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type with as many bytes as a number of the weights."""


def prompt_record(prompt: Prompt, digests: dict[LazyPicture | int, str]) -> dict[str, str | bool]:
    """Return the labels of a prompt, and hashes of what it consists of.

    Args:
        prompt: its pictures are opened.
        digests: hashes of the pictures so far; new ones are added, so that each picture is opened only once.

    Raises:
        PictureError: a picture can't be read.
    """
    pictures = [_digest(picture, digests) for picture in prompt.pictures]
    # Prompts of one turn keep the hashes that stores on disk know them by.
    earlier = [prompt.earlier] if prompt.earlier else []
    return prompt_labels(prompt) | {
        "picture": " ".join(pictures),
        "prompt_hash": text_hash(json.dumps([prompt.system, prompt.text, pictures, *earlier])),
        # What comes before the request; text alone is not worth sharing.
        "beginning": text_hash(json.dumps([prompt.system, pictures, *earlier])) if pictures else "",
    }


def _digest(picture: Picture, digests: dict[LazyPicture | int, str]) -> str:
    # Comparing images costs as much as hashing them, so they are keyed by id; prompts keep them, and the ids, alive.
    key = picture if isinstance(picture, LazyPicture) else id(picture)
    if key not in digests:
        digests[key] = digest(picture)
    return digests[key]


def provenance(model: VLM | LLM, request: Mapping, identify: bool) -> dict:
    """Return what a trace is made from: model, processor, chat template, request, and versions of the libraries.

    Args:
        model: the traced model.
        request: settings of the trace, as JSON can hold them.
        identify: hash the weights too, which takes about a second per gigabyte.

    Returns:
        The `about` of a store's header.
    """
    processor, config = model.processor if isinstance(model, VLM) else model.tokenizer, model.model.config
    return {
        "model": model.name,
        "weights": weights_identity(model) if identify else "",
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "processor": text_hash(repr(processor)),
        "template": text_hash(json.dumps(getattr(processor, "chat_template", None))),
        "revision": str((model.loading or {}).get("revision") or ""),
        "attention": str(getattr(config, "_attn_implementation", "")),
        "quantization": str(getattr(config, "quantization_config", None) or ""),
        **request,
        "versions": {name: version(name) for name in ("torch", "transformers", "nnsight", "tokenizers", "pillow")},
    }


def weights_identity(model: VLM | LLM) -> str:
    """Return a hash of all that the forward pass uses: sums over rows and columns of weights, with bits as integers.

    Adapters count with their state: which are active, merged or disabled. Offloaded weights are read where they are.
    Computed at every call, since weights can be changed in place: some seconds for 7B on a CPU, less on a GPU.

    Raises:
        ModelError: weights are offloaded in a way that does not show where they are.
    """
    if is_on_server(model.model):
        return "on a server"
    digester, offloaded = hashlib.blake2b(digest_size=8), offloaded_weights(model.model)
    for name, tensor in model.model.state_dict().items():
        digester.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.is_meta:
            if name not in offloaded:
                raise ModelError(f"the values of {name} are neither in memory nor where accelerate puts them")
            tensor = offloaded[name]()
        for part in _plain_parts(tensor.detach()):
            for sums in _sums(part):
                digester.update(sums.cpu().numpy())
    for state in _adapter_states(model.model):
        digester.update(state.encode())
    return f"blake2b {digester.hexdigest()}"


def _plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the plain tensors that a tensor consists of: quantised ones of torchao hold several."""
    if type(tensor) in (torch.Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_parts(getattr(tensor, name).detach())


def _sums(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = tensor.contiguous().flatten(1) if tensor.dim() > 1 else tensor.contiguous().reshape(1, -1)
    # Sums of integers do not depend on the order of the additions, as those of floats do.
    integers = rows.view(INTEGER_OF_SIZE[tensor.element_size()])
    return integers.sum(0, dtype=torch.int64), integers.sum(1, dtype=torch.int64)


def _adapter_states(model: nn.Module) -> Iterator[str]:
    """Yield the state of each layer with PEFT adapters, whose weights are there even while they are switched off."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    for name, module in model.named_modules() if tuners else ():
        if isinstance(module, tuners.BaseTunerLayer):
            states = [module.disable_adapters, module.merged_adapters, module.active_adapters]
            yield f"{name} {states} {sorted(getattr(module, 'scaling', {}).items())}"


def fingerprint(model: VLM | LLM, prompts: Sequence[Prompt]) -> str:
    """Return a hash of everything that a trace depends on, to name its store by."""
    digests = {}
    records = [prompt_record(prompt, digests) for prompt in prompts]
    return text_hash(json.dumps([provenance(model, {}, identify=True), records]))


def text_hash(text: str) -> str:
    """Return the first 16 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
