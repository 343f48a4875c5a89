"""Guards on disk: tensors in safetensors, settings in JSON, and a card for people. They know the model they are for."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from interp.activations import weights_identity
from interp.directions import SafetyDirection
from interp.families import first_line
from interp.projection import ProbeGate
from interp.vlm import VLM

if TYPE_CHECKING:
    from interp.guard import Guard

FORMAT = 1
SETTINGS, TENSORS, CARD = "guard.json", "direction.safetensors", "README.md"
PLAIN = (
    "layers",
    "rule",
    "gate",
    "gate_scope",
    "positions",
    "strength",
    "reference",
    "source",
    "direction_layer",
    "threshold",
    "keeps_norm",
    "frozen_shift",
    "all_writes",
)
"""Fields of a guard that are numbers and words."""


class GuardFileError(ValueError):
    """There is no guard, it is damaged, or it is for another model."""


def save(guard: "Guard", folder: Path, vlm: VLM, validation: Mapping[str, float]) -> None:
    """See `Guard.save_pretrained`."""
    if guard.control is not None:
        raise ValueError(
            f"a guard with control {guard.control!r} is what a guard is held against; expected one without"
        )
    folder.mkdir(parents=True, exist_ok=True)
    direction = guard.direction
    named = {field.name: getattr(direction, field.name) for field in fields(direction)}
    tensors = {name: value.contiguous() for name, value in named.items() if isinstance(value, torch.Tensor)}
    settings = {name: getattr(guard, name) for name in PLAIN}
    if guard.probe is not None:
        tensors["probe_weight"] = guard.probe.weight
        settings["probe"] = {"bias": guard.probe.bias, "threshold": guard.probe.threshold}
    save_file(tensors, folder / TENSORS)
    about = {
        "format": FORMAT,
        "model": _identity(vlm),
        "direction": {name: value for name, value in named.items() if isinstance(value, str)},
        "guard": settings,
        "validation": dict(validation),
    }
    (folder / SETTINGS).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_card(about), encoding="utf-8")


def _identity(vlm: VLM) -> dict[str, str]:
    dtype = str(vlm.model.dtype).removeprefix("torch.")
    return {"name": vlm.name, "weights": weights_identity(vlm), "dtype": dtype}


def read_settings(name_or_path: str | Path) -> dict:
    """What a guard says of itself, without its tensors.

    Raises:
        GuardFileError: there is no guard, or it is damaged.
    """
    with _whole(folder := _found(name_or_path)):
        about = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise GuardFileError(f"guard {str(folder)!r} has format {about['format']}; this version reads {FORMAT}")
        numbers = {name: float(value) for name, value in about["validation"].items()}
        return {part: about[part] for part in ("model", "direction", "guard")} | {"validation": numbers}


def load(kind: type["Guard"], name_or_path: str | Path, vlm: VLM) -> "Guard":
    """See `Guard.from_pretrained`."""
    about = read_settings(name_or_path)
    with _whole(folder := _found(name_or_path)):
        tensors = load_file(folder / TENSORS)
        settings, theirs, ours = dict(about["guard"]), about["model"], _identity(vlm)
        if theirs["weights"] != ours["weights"]:
            raise GuardFileError(
                f"the guard in {str(folder)!r} was made for {theirs['name']!r} ({theirs['weights']}, "
                f"{theirs['dtype']}), not for {ours['name']!r} ({ours['weights']}, {ours['dtype']}); fit one on "
                "this model, or load it in the same dtype"
            )
        probe = settings.pop("probe", None)
        if probe:
            settings["probe"] = ProbeGate(tensors.pop("probe_weight"), **probe)
        settings["layers"] = tuple(settings["layers"])
        known = {"model": vlm.name, "validation": about["validation"]}
        return kind(SafetyDirection(**tensors, **about["direction"]), **settings, **known)


def _found(name_or_path: str | Path) -> Path:
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=[SETTINGS, TENSORS]))
    except (OSError, ValueError) as error:
        raise GuardFileError(
            f"no guard at {str(name_or_path)!r}: neither a folder nor a repository that can be reached "
            f"({first_line(error)})"
        ) from error


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Raises:
    GuardFileError: in place of whatever goes wrong with files that are missing or damaged.
    """
    try:
        yield
    except FileNotFoundError as error:
        missing = Path(error.filename or TENSORS).name
        raise GuardFileError(f"folder {str(folder)!r} holds no guard: it has no {missing}") from None
    except GuardFileError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise GuardFileError(
            f"the guard in {str(folder)!r} is damaged ({type(error).__name__}: {first_line(error)}); save it again"
        ) from error


def _card(about: Mapping) -> str:
    """Markdown."""
    guard, direction = about["guard"], about["direction"]
    rows = {name: value for name, value in guard.items() if value is not None}
    rows |= {"estimator": direction["estimator"], "read at": direction["token"], "anchors": direction["anchors"]}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    numbers = "\n".join(f"| {name} | {value:.3g} |" for name, value in about["validation"].items())
    measured = f"\n| on validation | |\n|---|---|\n{numbers}\n" if numbers else "\nNothing was measured.\n"
    model = about["model"]
    # What it reads by itself is the prompt's own text.
    passed = "" if guard["reference"] == "prompt_text" else ", references=[...]"
    return f"""---
library_name: vlm-guard
tags: [vlm-guard, steering, safety]
---

# A guard for {model["name"]}

After VLM-Guard (arXiv:2502.10486): at inference time the model's coordinate along its safety steering direction is
changed, by the rule `{guard["rule"]}`. It is for these weights alone: `{model["weights"]}`, {model["dtype"]}.

```python
guard = Guard.from_pretrained("this folder", vlm)
with guard.on(vlm{passed}):
    vlm.model.generate(**batch)
```

| setting | |
|---|---|
{table}
{measured}
What it was not measured on, it is not known to do: other languages, other pictures, other attacks.
"""
