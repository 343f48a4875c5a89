"""Load the model of a run, and check it before a study relies on it."""

from dataclasses import replace

import torch

from interp import LLM, VLM, ModelError, is_text_only
from interp.verify import check_vlm, transformer_lens_agrees
from studies.experiment.config import ConfigError
from studies.experiment.shipped_models import shipped_model

MODEL_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    name: str,
    dtype: str = "auto",
    device_map: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    weights: str | None = None,
    chat_template: str | None = None,
    device: str = "auto",
) -> VLM | LLM:
    """Load a model that the project provides by its name, or any other; an `LLM` if it accepts no pictures.

    Args:
        name: `organism`, one of `built_models.PROVIDED`, a folder in Hugging Face format, or a hub id.
        dtype: weight precision: auto, float32, bfloat16 or float16.
        device_map: `auto` spreads a large model over several devices.
        revision: commit, tag or branch on the hub.
        trust_remote_code: whether code from the checkpoint may run.
        weights: folder with another training of the built-in model; by default the one that ships.
        chat_template: template of a text-only model whose tokenizer has none.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` is a GPU if there is one.

    Raises:
        ModelError: see `VLM.from_pretrained`; or the precision does not exist.
        ConfigError: see `studies.experiment.shipped_models.shipped_model`.
    """
    if dtype not in MODEL_DTYPES:
        raise ModelError(f"dtype {dtype!r} does not exist; expected one of {', '.join(MODEL_DTYPES)}")
    own = shipped_model(name, weights)
    kind = LLM if own is None and is_text_only(name, revision, trust_remote_code) else VLM
    template = {"chat_template": chat_template} if chat_template and kind is LLM else {}
    model = kind.from_pretrained(
        own.vlm if own else name,
        device=device,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        device_map=device_map,
        revision=revision,
        trust_remote_code=trust_remote_code,
        **template,
    )
    return replace(model, name=name)


def check_model(vlm: VLM) -> None:
    """Check the contract of `interp.verify`; for the built-in model a test does so.

    transformer-lens may disagree: no study relies on it.

    Raises:
        ConfigError: the model breaks the contract; the message says how.
    """
    second_opinion = transformer_lens_agrees.__doc__
    broken = [finding for finding in check_vlm(vlm) if not finding.is_accepted and finding.claim != second_opinion]
    if broken:
        raise ConfigError(
            f"model {vlm.name!r}: {broken[0].verdict}: {broken[0].claim} ({broken[0].measured}); "
            f"{len(broken)} properties fail, `vlm-guard check` shows them all"
        )
