"""Load the model of a run, and check it before a study rests on it."""

from dataclasses import replace

import torch

from interp.verify import check_vlm, transformer_lens_agrees
from interp.vlm import VLM, ModelError
from studies import organism
from studies.experiment.config import BUILT_IN, ConfigError

MODEL_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    name: str,
    dtype: str = "auto",
    device_map: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> VLM:
    """The built-in model by its name, or any other.

    Raises:
        ModelError: see `VLM.from_pretrained`; or no such precision.
    """
    if dtype not in MODEL_DTYPES:
        raise ModelError(f"dtype {dtype!r} does not exist; expected one of {', '.join(MODEL_DTYPES)}")
    vlm = VLM.from_pretrained(
        organism.path() if name == BUILT_IN else name,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        device_map=device_map,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    return replace(vlm, name=name)


def _check(vlm: VLM) -> None:
    """The contract, before a study rests on it; of the built-in model a test has it.

    The second opinion may differ: no study rests on it.

    Raises:
        ConfigError: the model breaks it; says how.
    """
    second_opinion = transformer_lens_agrees.__doc__
    broken = [f for f in check_vlm(vlm) if not f.is_accepted and f.claim != second_opinion]
    if broken:
        raise ConfigError(
            f"model {vlm.name!r}: {broken[0].verdict}: {broken[0].claim} ({broken[0].measured}); "
            f"{len(broken)} properties fail, `vlm-guard check` shows them all"
        )
