"""Traced activations on disk: written once, found again by what they were made from."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import xarray as xr

from interp.inputs import Prompt


def fingerprint(model_identity: str, prompts: Sequence[Prompt]) -> str:
    """Hash of all that a trace depends on: model, messages, pictures, labels, library versions."""
    digest = hashlib.sha256(json.dumps([model_identity, version("torch"), version("transformers")]).encode())
    for prompt in prompts:
        query = prompt.query
        known = [prompt.system, prompt.text, prompt.modality, query.text, query.harmful, query.category, query.pair]
        digest.update(json.dumps(known).encode())
        for picture in prompt.pictures:
            digest.update(repr((picture.mode, picture.size)).encode() + picture.tobytes())
    return digest.hexdigest()[:24]


def stored(folder: Path, key: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The dataset of this key from `folder`, made and written there if it is not there yet.

    It appears under its name only when it is whole: an interrupted run leaves nothing that looks finished.
    """
    place = folder / f"{key}.zarr"
    if not place.exists():
        unfinished = folder / f"{key}.{os.getpid()}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        make().to_zarr(unfinished, mode="w", zarr_format=3, consolidated=False)
        unfinished.rename(place)
    return xr.open_zarr(place, consolidated=False).load()
