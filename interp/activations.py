"""The labelled store: activations on disk, which know what they were made from and can be gone on with.

A store is a folder:

    header.json     what the activations were made from, and the plan; written once, before anything else is
    prompts.jsonl   one line a prompt: its text, its labels, the hashes of its pictures
    states.zarr     an array a site, one chunk a batch and layer, with checksums
    done/           one file a batch, with the hash of what is in its chunks, written after them

A batch without a mark is run again, whole: a process killed at any moment leaves nothing that looks finished.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from interp.batches import BatchPlan
from interp.inputs import Prompt
from interp.labels import columns, prompt_labels
from interp.pictures import LazyPicture, Picture, digest
from interp.token_positions import ALL
from interp.vlm import LLM, VLM

FORMAT = 1
Arrays = Mapping[str, np.ndarray]


class StoreError(ValueError):
    """The folder holds something else, or is damaged; says what, and what to do."""


@dataclass(frozen=True)
class Field:
    """One array: names of its dimensions after `prompt`, and their lengths."""

    dims: tuple[str, ...]
    lengths: tuple[int, ...]
    dtype: str


Fields = Mapping[str, Field]


class Memory:
    """Keeps everything, writes nothing."""

    def __init__(self, fields: Fields, plan: BatchPlan):
        self.plan, self.fields = plan, fields
        n = len(plan.order)
        self._arrays = {name: np.empty((n, *field.lengths), field.dtype) for name, field in fields.items()}

    def has(self, batch: int) -> bool:
        return False

    def write(self, batch: int, arrays: Arrays) -> None:
        for name, values in arrays.items():
            self._arrays[name][self.plan.part(batch)] = check_states(name, values, self.fields[name])

    def dataset(self) -> xr.Dataset:
        return xr.Dataset({name: (("prompt", *field.dims), self._arrays[name]) for name, field in self.fields.items()})


def check_states(name: str, values: np.ndarray, field: Field) -> np.ndarray:
    """In the field's precision.

    Raises:
        StoreError: numbers that are too large for it.
    """
    if field.dtype == "float16":
        largest = np.nanmax(np.abs(values), initial=0)
        if largest > np.finfo(np.float16).max:
            raise StoreError(
                f"{name} reaches {largest:.3g}, more than float16 holds (65504); use dtype='float32', in a new folder"
            )
    # A mean over nothing is no number with a sign, which zarr does not keep where nothing else is in a chunk.
    return np.where(np.isnan(values), np.nan, values).astype(field.dtype)


class Store:
    """A folder of activations, complete or not."""

    def __init__(self, folder: Path):
        """Raises:
        StoreError: there is no store in it, or its header is damaged.
        """
        self.folder = folder
        self.header = _read_header(folder)
        plan = self.header["plan"]
        self.plan = BatchPlan(tuple(plan["order"]), tuple(plan["keys"]), plan["batch_size"])
        self.fields = {
            name: Field(tuple(f["dims"]), tuple(f["lengths"]), f["dtype"]) for name, f in plan["fields"].items()
        }

    @classmethod
    def found(cls, folder: str | Path, about: Mapping, known: Sequence[Mapping]) -> "Store | None":
        """The store in the folder; None where there is none yet.

        Raises:
            StoreError: it was made from something else, is damaged, or the folder holds other things.
        """
        folder = Path(folder)
        if (folder / "header.json").exists():
            store = cls(folder)
            store._refuse_others(about, _lines(known))
            if store.n_done < store.plan.n_batches:
                # What a process leaves that is killed while it writes.
                _remove([*(folder / "states.zarr").rglob("*.partial"), *(folder / "done").glob("*.new")])
            return store
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{str(folder)!r} is there and holds no store; give another folder, or empty it")
        return None

    @classmethod
    def create(
        cls, folder: str | Path, about: Mapping, known: Sequence[Mapping], plan: BatchPlan, fields: Fields
    ) -> "Store":
        """A new store, with room for everything and nothing in it.

        Args:
            folder: is made.
            about: of `provenance`.
            known: of `described`, one for each prompt.
            plan: which prompts go into which batch.
            fields: the arrays.

        Raises:
            StoreError: the folder can't be written to.
        """
        folder, lines = Path(folder).absolute(), _lines(known)
        # Elsewhere first: under its name a store is there whole, whoever else may make one at the same time.
        made = folder.with_name(f".{folder.name}.{os.getpid()}.new")
        planned = {"order": plan.order, "keys": plan.keys, "batch_size": plan.batch_size}
        planned["fields"] = {name: vars(field) for name, field in fields.items()}
        content = {"format": FORMAT, "about": about, "prompts": _hash("".join(lines)), "plan": planned}
        try:
            _remove_leftovers(folder.parent.glob(f".{folder.name}.*.new"))
            (made / "done").mkdir(parents=True)
            (made / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
            root = zarr.open_group(made / "states.zarr", mode="w", zarr_format=3)
            for name, field in fields.items():
                _create_array(root, name, field, plan)
            (made / "header.json").write_text(json.dumps(content), encoding="utf-8")
            made.rename(folder)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            raise StoreError(f"folder {str(folder)!r} can't be written to: {error.strerror or error}") from error
        return cls(folder)

    def _refuse_others(self, about: Mapping, lines: list[str]) -> None:
        """Raises:
        StoreError: says what differs.
        """
        ours = json.loads(json.dumps(about))
        differing = [
            f"{key}: {self.header['about'].get(key)!r} in the store, {ours.get(key)!r} now"
            for key in sorted(ours | self.header["about"])
            if ours.get(key) != self.header["about"].get(key)
        ]
        if _hash("".join(lines)) != self.header["prompts"]:
            stored = self._lines()
            n_new = len(set(lines) - set(stored))
            differing.append(f"prompts: {len(stored)} in the store, {len(lines)} now, {n_new} of them others")
        if differing:
            raise StoreError(
                f"store {str(self.folder)!r} was made from something else ({'; '.join(differing)}); give another folder"
            )

    @cached_property
    def _arrays(self) -> zarr.Group:
        return zarr.open_group(self.folder / "states.zarr", mode="r+")

    def _mark(self, batch: int) -> Path:
        return self.folder / "done" / f"{batch:06d}"

    def has(self, batch: int) -> bool:
        return self._mark(batch).exists()

    @property
    def n_done(self) -> int:
        return sum(self.has(batch) for batch in range(self.plan.n_batches))

    def write(self, batch: int, arrays: Arrays) -> None:
        """Chunks first, the mark that vouches for them after.

        Raises:
            StoreError: numbers that are too large for the store's precision, or no space is left.
        """
        arrays = {name: check_states(name, values, self.fields[name]) for name, values in arrays.items()}
        try:
            for name, values in arrays.items():
                self._arrays[name][self.plan.part(batch)] = values
            _write_whole(self._mark(batch), _contents(arrays))
        except OSError as error:
            raise StoreError(
                f"store {str(self.folder)!r}: batch {batch} can't be written ({error.strerror or error}); what "
                "is there is kept: make room and run the same trace again"
            ) from error

    def dataset(self) -> xr.Dataset:
        """Lazily.

        Raises:
            StoreError: batches are missing.
        """
        n_missing = self.plan.n_batches - self.n_done
        if n_missing:
            raise StoreError(
                f"store {str(self.folder)!r} is not complete: {n_missing} of {self.plan.n_batches} batches are "
                "missing; run the same trace again to go on"
            )
        return xr.open_zarr(self.folder / "states.zarr", consolidated=False, chunks=None)

    @property
    def prompts(self) -> list[dict]:
        """What is known of each prompt."""
        return [json.loads(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        """Raises:
        StoreError: they are not those that the store was made with.
        """
        try:
            lines = (self.folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError):
            lines = []
        if _hash("".join(lines)) != self.header["prompts"]:
            raise StoreError(
                f"prompts.jsonl of store {str(self.folder)!r} is damaged; delete the folder, and trace again"
            )
        return lines

    def damaged(self) -> list[int]:
        """Batches that are not what was written, or can't be read at all."""
        return [batch for batch in range(self.plan.n_batches) if self.has(batch) and not self._is_sound(batch)]

    def _is_sound(self, batch: int) -> bool:
        try:
            found = {name: self._arrays[name][self.plan.part(batch)] for name in self.fields}
        except (ValueError, RuntimeError, OSError):
            return False
        # A chunk that is gone reads as empty: no checksum of its own tells.
        return _contents(found) == self._mark(batch).read_text()

    def forget(self, batch: int) -> None:
        """The next run of the same trace does the batch again."""
        self._mark(batch).unlink()


def open_store(folder: str | Path) -> xr.Dataset:
    """A finished trace, loaded lazily, in the order of its prompts, with the labels that everything selects by.

    Raises:
        StoreError: there is none, or it is not complete.
    """
    store = Store(Path(folder))
    return labelled(store.dataset(), store.plan, store.prompts, store.header["about"])


def labelled(states: xr.Dataset, plan: BatchPlan, prompts: Sequence[Mapping], about: Mapping) -> xr.Dataset:
    """From the order of the plan to that of the prompts, with coordinates.

    Args:
        states: rows in the order of the plan.
        plan: that order.
        prompts: of `described`, one for each prompt.
        about: of `provenance`.
    """
    back = np.argsort(plan.order)
    states = states.isel(prompt=back).set_coords([name for name in ("position",) if name in states])
    tokens = np.arange(states.sizes.get("token", 0)) if about["tokens"] == ALL else np.array(about["tokens"], object)
    places = {
        name: at for name, at in {"layer": np.array(about["layers"]), "token": tokens}.items() if name in states.dims
    }
    known = columns({name: [one[name] for one in prompts] for name in prompts[0] if name != "beginning"})
    flat = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    return states.assign_coords(places | known).assign_attrs(flat)


def prompt_record(prompt: Prompt, seen: dict[LazyPicture | int, str]) -> dict[str, str | bool]:
    """Everything that is known of a prompt, and hashes of what it consists of.

    Args:
        prompt: its pictures are looked at.
        seen: hashes of pictures so far, each of which is looked at only once.

    Raises:
        PictureError: a picture can't be read.
    """
    pictures = [_digest(picture, seen) for picture in prompt.pictures]
    return prompt_labels(prompt) | {
        "picture": " ".join(pictures),
        "prompt_hash": _hash(json.dumps([prompt.system, prompt.text, pictures])),
        # What stands before the request; text alone is not worth sharing.
        "beginning": _hash(json.dumps([prompt.system, pictures])) if pictures else "",
    }


def _digest(picture: Picture, seen: dict[LazyPicture | int, str]) -> str:
    # Images can't be compared for less than it takes to hash them; prompts keep them, and so their ids, alive.
    key = picture if isinstance(picture, LazyPicture) else id(picture)
    if key not in seen:
        seen[key] = digest(picture)
    return seen[key]


def provenance(model: VLM | LLM, asked: Mapping, identify: bool) -> dict:
    """What a trace is made from: model, processor, template, what was asked for, and the libraries' versions.

    Args:
        model: that is traced.
        asked: what is read of it.
        identify: whether to hash the weights, which takes a second for each gigabyte the first time.
    """
    processor, config = model.processor if isinstance(model, VLM) else model.tokenizer, model.model.config
    return {
        "model": model.name,
        "weights": weights_identity(model) if identify else "",
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "processor": _hash(repr(processor)),
        "template": _hash(json.dumps(getattr(processor, "chat_template", None))),
        "revision": str((model.loading or {}).get("revision") or ""),
        "attention": str(getattr(config, "_attn_implementation", "")),
        "quantization": str(getattr(config, "quantization_config", None) or ""),
        **asked,
        "versions": {name: version(name) for name in ("torch", "transformers", "nnsight", "tokenizers", "pillow")},
    }


def weights_identity(model: VLM | LLM) -> str:
    """Hash of the sums over each row and each column of all weights, as the integers that their bits are.

    Found out anew each time, since weights may be changed in place: some seconds for 7B on a CPU, less on a GPU.
    """
    if model.model.device.type == "meta":
        return "on a server"
    about = hashlib.blake2b(digest_size=8)
    for name, tensor in model.model.state_dict().items():
        about.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # Offloaded weights are elsewhere at the moment; their names and shapes stand for them.
        for sums in () if tensor.is_meta else _sums(tensor.detach()):
            about.update(sums.cpu().numpy())
    return f"blake2b {about.hexdigest()}"


WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number."""


def _sums(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = tensor.contiguous().flatten(1) if tensor.dim() > 1 else tensor.contiguous().reshape(1, -1)
    words = rows.view(WORDS[tensor.element_size()])
    return words.sum(0, dtype=torch.int64), words.sum(1, dtype=torch.int64)


def fingerprint(model: VLM | LLM, prompts: Sequence[Prompt]) -> str:
    """Hash of all that a trace depends on: a name for its store."""
    seen = {}
    known = [prompt_record(prompt, seen) for prompt in prompts]
    return _hash(json.dumps([provenance(model, {}, identify=True), known]))


def _lines(known: Sequence[Mapping]) -> list[str]:
    return [json.dumps(one) + "\n" for one in known]


def _contents(arrays: Arrays) -> str:
    """Hash of what a batch consists of, by name."""
    about = hashlib.blake2b(digest_size=8)
    for name in sorted(arrays):
        about.update(name.encode())
        about.update(np.ascontiguousarray(arrays[name]))
    return about.hexdigest()


def _create_array(root: zarr.Group, name: str, field: Field, plan: BatchPlan) -> None:
    """One chunk a batch and layer: a probe reads one layer, and two processes never write into the same chunk."""
    per_layer = (1, *field.lengths[1:]) if field.dims[0].endswith("layer") else field.lengths
    root.create_array(
        name,
        shape=(len(plan.order), *field.lengths),
        chunks=(plan.batch_size, *per_layer),
        dtype=field.dtype,
        fill_value=np.nan if field.dtype != "int32" else -1,
        # bfloat16 values in float32 have empty bytes, which shuffling brings together.
        compressors=[BloscCodec(cname="zstd", clevel=1, shuffle=BloscShuffle.shuffle), Crc32cCodec()],
        dimension_names=("prompt", *field.dims),
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _remove_leftovers(folders: Iterable[Path]) -> None:
    """Of processes that are no more."""
    for folder in folders:
        if not psutil.pid_exists(int(folder.suffixes[-2].removeprefix("."))):
            shutil.rmtree(folder, ignore_errors=True)


def _write_whole(path: Path, text: str) -> None:
    """Under its name it is there whole, or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _read_header(folder: Path) -> dict:
    """Raises:
    StoreError: there is none, or it is damaged.
    """
    path = folder / "header.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if header["format"] != FORMAT:
            raise StoreError(f"store {str(folder)!r} has format {header['format']}; this version reads {FORMAT}")
        return header
    except FileNotFoundError:
        raise StoreError(f"folder {str(folder)!r} holds no store: it has no header.json") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise StoreError(
            f"the header of store {str(folder)!r} is damaged ({type(error).__name__}); delete the folder, "
            "and trace again"
        ) from error
