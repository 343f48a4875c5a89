"""Saved guards: tensors in safetensors, settings in JSON with the model they belong to, and a card for people.

The settings hold a checksum of the tensors and one of themselves: a damaged guard would be a guard that is off. They
are written before the tensors, under another name, so that the moment in which the new tensors take their place
decides which guard the folder holds: settings count only if their checksum is that of the tensors.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load, save

from interp.directions import SafetyDirection
from interp.errors import first_line
from interp.identity import weights_identity
from interp.json_text import parse_json
from interp.projection import ProbeGate
from interp.vlm import LLM, VLM
from interp.whole_files import hash_of, write_whole

FORMAT = 2
"""Version 1 has no checksums."""
SETTINGS, TENSORS, CARD = "guard.json", "direction.safetensors", "README.md"
COMING = f"{SETTINGS}.new"
"""Settings of a guard that is being saved."""
LOCK = ".lock"
PARTS = ("model", "direction", "guard", "validation")
DIRECTION_SETTINGS = ("estimator", "token", "anchors")
GUARD_SETTINGS = (
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
"""Fields of a guard that are numbers, words or tuples of numbers."""


class GuardFileError(ValueError):
    """There is no guard at this place, it is damaged, or it is for another model."""


def write(
    folder: Path,
    vlm: VLM | LLM,
    direction: SafetyDirection,
    settings: Mapping[str, object],
    probe: ProbeGate | None,
    validation: Mapping[str, float],
) -> None:
    """Write the parts of a guard to a folder.

    Args:
        folder: created if it does not exist.
        vlm: the model that the guard is for.
        direction: its direction.
        settings: the fields named in `GUARD_SETTINGS`.
        probe: the probe of the gate `probe`.
        validation: numbers on validation, by name.
    """
    tensors = {name: tensor.contiguous() for name, tensor in direction.tensors.items()}
    saved_settings = dict(settings)
    if probe is not None:
        tensors["probe_weight"] = probe.weight
        saved_settings["probe"] = {"bias": probe.bias, "threshold": probe.threshold}
    content = save(tensors)
    record = {
        "format": FORMAT,
        "model": _identity(vlm),
        "direction": {name: value for name, value in vars(direction).items() if isinstance(value, str)},
        "guard": saved_settings,
        "validation": dict(validation),
    }
    record["checksums"] = {"tensors": hash_of(content), "settings": _settings_hash(record)}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        write_whole(folder / COMING, json.dumps(record, indent=1) + "\n")
        write_whole(folder / TENSORS, content)
        os.replace(folder / COMING, folder / SETTINGS)
        write_whole(folder / CARD, _card(record))


def _settings_hash(record: Mapping) -> str:
    parts = {name: record[name] for name in PARTS}
    return hash_of(json.dumps(parts, sort_keys=True).encode())


def upload(folder: Path, repo_id: str, private: bool) -> None:
    """Upload a folder to a model repository on the Hugging Face Hub, which is created if it does not exist."""
    hub = HfApi()
    hub.create_repo(repo_id, private=private, exist_ok=True)
    hub.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=[LOCK])


def _identity(vlm: VLM | LLM) -> dict[str, str]:
    dtype = str(vlm.model.dtype).removeprefix("torch.")
    return {"name": vlm.name, "weights": weights_identity(vlm), "dtype": dtype}


def read_guard_settings(name_or_path: str | Path) -> dict:
    """Read the record of a saved guard, and of its tensors only the rank of the direction.

    Returns:
        `model`, `direction`, `guard` and `validation`, each a dictionary of plain values.

    Raises:
        GuardFileError: no guard is found, or it is damaged.
    """
    record, tensors = _read(_folder_of(name_or_path))
    return record | {"direction": record["direction"] | {"rank": tensors["basis"].shape[1]}}


def _read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return the parts of a guard's record, and its tensors, if they are what was saved.

    Raises:
        GuardFileError: files are missing or damaged, or this version can't read them.
    """
    try:
        return _read_once(folder)
    except GuardFileError:
        # It may be read just while it is saved, between its two files.
        return _read_once(folder)


def _read_once(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    with _damage_reported(folder):
        if missing := [name for name in (SETTINGS, TENSORS) if not (folder / name).is_file()]:
            raise FileNotFoundError(errno.ENOENT, "no such file", missing[0])
        content = (folder / TENSORS).read_bytes()
        record = _record_of(folder, hash_of(content))
        tensors = load(content)
        _check_content(record, tensors)
        numbers = {name: float(value) for name, value in record["validation"].items()}
        return {part: record[part] for part in PARTS} | {"validation": numbers}, tensors


def _record_of(folder: Path, tensors_hash: str) -> dict:
    """Return the settings that belong to the tensors, after a save that was killed between the two as well.

    Raises:
        GuardFileError: there are none.
    """
    try:
        coming = parse_json((folder / COMING).read_text(encoding="utf-8"))
        if coming["checksums"]["tensors"] == tensors_hash:
            return _checked(coming, tensors_hash)
    except (OSError, ValueError, KeyError, TypeError):
        # The save ended, or its tensors never came.
        pass
    return _checked(parse_json((folder / SETTINGS).read_text(encoding="utf-8")), tensors_hash)


def _checked(record: dict, tensors_hash: str) -> dict:
    if (version := record["format"]) not in (1, FORMAT):
        raise ValueError(f"format {version!r}; this version reads 1 and {FORMAT}")
    checksums = {"checksums"} if version == FORMAT else set()
    if set(record) != {"format", *PARTS} | checksums:
        raise ValueError(f"{SETTINGS} has the entries {sorted(record)}; expected {sorted({'format', *PARTS})}")
    if version == FORMAT and record["checksums"]["tensors"] != tensors_hash:
        raise ValueError(f"{TENSORS} is not what was saved: its checksum differs")
    if version == FORMAT and record["checksums"]["settings"] != _settings_hash(record):
        raise ValueError(
            f"the settings in {SETTINGS} are not those that were saved: their checksum differs; to change a guard, "
            "load it, use dataclasses.replace, and save it"
        )
    return record


def _check_content(record: Mapping, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that a guard's files hold what `write` writes, and no more: controls can't be saved."""
    for part, allowed in (("guard", (*GUARD_SETTINGS, "probe", "chosen_by")), ("direction", DIRECTION_SETTINGS)):
        if unknown := set(record[part]) - set(allowed):
            raise ValueError(f"{SETTINGS} sets {sorted(unknown)}, which a saved guard never does")
    guard = record["guard"]
    for layer in (*guard["layers"], *([guard["direction_layer"]] if guard["direction_layer"] is not None else ())):
        if type(layer) is not int:
            raise ValueError(f"layer {layer!r}; expected a whole number")
    n_layers, rank, d_model = tensors["basis"].shape
    shapes = dict.fromkeys(("harmful", "harmless", "explained"), (n_layers, rank))
    shapes |= dict.fromkeys(("basis", "readout"), (n_layers, rank, d_model)) | {
        "centre": (n_layers, d_model),
        "probe_weight": (d_model,),
    }
    for name, tensor in tensors.items():
        if name not in shapes or tensor.shape != shapes[name]:
            expected = f"the shape {shapes[name]}" if name in shapes else f"some of {', '.join(sorted(shapes))}"
            raise ValueError(f"{TENSORS} holds {name} of shape {tuple(tensor.shape)}; expected {expected}")


@contextmanager
def opened(name_or_path: str | Path, vlm: VLM | LLM) -> Iterator[dict[str, object]]:
    """Yield the fields of a saved guard; an error inside the block is reported as damage to the files.

    Args:
        name_or_path: a folder, or a repository on the Hugging Face Hub.
        vlm: the model that the guard is loaded for.

    Raises:
        GuardFileError: no guard is found, it is damaged, or it was made for another model.
    """
    folder = _folder_of(name_or_path)
    record, tensors = _read(folder)
    with _damage_reported(folder):
        settings, theirs, ours = dict(record["guard"]), record["model"], _identity(vlm)
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
        direction = SafetyDirection(**tensors, **record["direction"])
        yield {"direction": direction, **settings, "model": vlm.name, "validation": record["validation"]}


def _folder_of(name_or_path: str | Path) -> Path:
    """Return the folder itself, or the downloaded copy of a repository."""
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
def _damage_reported(folder: Path) -> Iterator[None]:
    """Turn errors about missing or damaged files into one that names the folder.

    Raises:
        GuardFileError: a file is missing, or what it holds is not a guard.
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


def _card(record: Mapping) -> str:
    """Return the guard card in Markdown."""
    guard, direction, model = record["guard"], record["direction"], record["model"]
    rows = {name: value for name, value in guard.items() if value is not None}
    rows |= {"estimator": direction["estimator"], "read at": direction["token"], "anchors": direction["anchors"]}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    numbers = "\n".join(f"| {name} | {value:.3g} |" for name, value in record["validation"].items())
    measured = f"\n| on validation | |\n|---|---|\n{numbers}\n" if numbers else "\nNothing was measured.\n"
    # A guard reads the prompt's own text by itself; any other reference has to be passed.
    references = "" if guard["reference"] == "prompt_text" else ", references=[...]"
    return f"""---
library_name: vlm-guard
tags: [vlm-guard, steering, safety]
---

# A guard for {model["name"]}

After VLM-Guard (arXiv:2502.10486): at inference time the guard changes the model's coordinate along its safety
steering direction by the rule `{guard["rule"]}`. It fits only these weights: `{model["weights"]}`, {model["dtype"]}.

```python
guard = Guard.from_pretrained("this folder", vlm)
with guard.on(vlm{references}):
    vlm.model.generate(**batch)
```

| setting | |
|---|---|
{table}
{measured}
Its effect is unknown wherever it was not measured: other languages, other pictures, other attacks.
"""
