"""The model inside what people put around one: adapters, parallel wrappers, modules of their own."""

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from interp.errors import ModelError


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """Return the Hugging Face model whose forward pass runs, with the adapters that are inside its layers.

    Args:
        model: it, or something around it.

    Raises:
        ModelError: it is compiled, holds no such model or several, or is an encoder-decoder.
    """
    while not isinstance(model, PreTrainedModel):
        model = _inside(model)
    check_has_one_decoder(type(model).__name__, model.config)
    return model


def check_has_one_decoder(name: str, config: PretrainedConfig) -> None:
    """Check that a model is no encoder-decoder.

    Raises:
        ModelError: it is one.
    """
    configs = config, config.get_text_config()
    if any(getattr(each, "is_encoder_decoder", False) for each in configs):
        raise ModelError(
            f"{name} ({config.model_type}) is an encoder-decoder, whose prompts and answers have positions of their "
            "own; expected a model with one decoder for both"
        )


def _inside(model: nn.Module) -> nn.Module:
    """Return what a wrapper is around.

    Raises:
        ModelError: see `unwrapped`.
    """
    kind = type(model).__name__
    # `torch.compile` returns a module around the model, whose own hooks would run, but none inside.
    if (compiled := getattr(model, "_orig_mod", None)) is not None:
        raise ModelError(
            f"a compiled {type(compiled).__name__}: hooks don't run in it; pass the model that was compiled "
            "(model._orig_mod), and run that"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    if callable(base := getattr(model, "get_base_model", None)):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ModelError(
                f"a {kind} whose adapter is learned prompts, which are no part of the model inside: traces and guards "
                "would be those of another model; expected an adapter in its layers, such as LoRA"
            )
        # PEFT puts its layers into the model; the model itself then has the hooks, and everything runs through it.
        return base()
    found = _outermost(model)
    if len(found) != 1:
        names = ", ".join(type(inner).__name__ for inner in found) or "none"
        raise ModelError(f"a {kind} around {len(found)} Hugging Face models ({names}); pass the one that is meant")
    return found[0]


def _outermost(model: nn.Module) -> list[PreTrainedModel]:
    """Return the Hugging Face models in a module that are not inside one another."""
    found = []
    for child in model.children():
        found += [child] if isinstance(child, PreTrainedModel) else _outermost(child)
    return found
