"""The store: labelled activations on disk, with a record of what they were made from. It can be resumed.

A store is a folder:

    header.json     what the activations were made from, and the plan; written once, before anything else
    prompts.jsonl   one line per prompt: its text, its labels, the hashes of its pictures
    states.zarr     one array per site, one chunk per batch and layer, with checksums
    done/           one file per finished batch, with a hash of its chunks, written after them

A batch without such a mark is run again, whole: a process killed at any moment leaves nothing that looks finished.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from interp.batches import BatchPlan
from interp.identity import text_hash
from interp.json_text import parse_json
from interp.labels import prompt_coordinates
from interp.token_positions import ALL_TOKENS
from interp.whole_files import write_whole, written_by_one

FORMAT = 1
Arrays = Mapping[str, np.ndarray]
"""Arrays by the name of their site (or `position`), with one row per prompt."""


class StoreError(ValueError):
    """The folder holds something else, or is damaged; the message says what, and what to do."""


@dataclass(frozen=True)
class Field:
    """One array: the names and lengths of its dimensions after `prompt`, and its precision."""

    dims: tuple[str, ...]
    lengths: tuple[int, ...]
    dtype: str


Fields = Mapping[str, Field]


LOCK = ".writing.lock"
"""File in a store that the process which writes it has locked."""


class MemoryStore:
    """A store without a folder: everything is kept in memory."""

    def __init__(self, fields: Fields, plan: BatchPlan):
        self.plan, self.fields = plan, fields
        n = len(plan.order)
        self._arrays = {name: np.empty((n, *field.lengths), field.dtype) for name, field in fields.items()}

    def written(self) -> AbstractContextManager[None]:
        """Return a block that does nothing: no other process sees this store."""
        return nullcontext()

    def has(self, batch: int) -> bool:
        """Return False: no batch was run before."""
        return False

    def write(self, batch: int, arrays: Arrays) -> None:
        """Keep the arrays of one batch."""
        for name, values in arrays.items():
            self._arrays[name][self.plan.part(batch)] = check_states(name, values, self.fields[name])

    def dataset(self) -> xr.Dataset:
        """Return all arrays, in the order of the plan."""
        return xr.Dataset({name: (("prompt", *field.dims), self._arrays[name]) for name, field in self.fields.items()})


def check_states(name: str, values: np.ndarray, field: Field) -> np.ndarray:
    """Return the values in the field's precision.

    Raises:
        StoreError: some are too large for it.
    """
    if field.dtype == "float16":
        largest = np.nanmax(np.abs(values), initial=0)
        if largest > np.finfo(np.float16).max:
            raise StoreError(
                f"{name} reaches {largest:.3g}, more than float16 holds (65504); use dtype='float32', in a new folder"
            )
    # 0 / 0 is a NaN with a sign; zarr drops chunks that are all fill value, and with them the sign.
    return np.where(np.isnan(values), np.nan, values).astype(field.dtype)


class Store:
    """A folder of activations, complete or not."""

    def __init__(self, folder: Path):
        """Open a store.

        Raises:
            StoreError: the folder holds no store, or its header is damaged.
        """
        self.folder = folder
        with _header_damage_reported(folder):
            self.header = _read_header(folder)
            plan = self.header["plan"]
            self.plan = BatchPlan(tuple(plan["order"]), tuple(plan["keys"]), plan["batch_size"])
            self.fields = {
                name: Field(tuple(field["dims"]), tuple(field["lengths"]), field["dtype"])
                for name, field in plan["fields"].items()
            }

    @classmethod
    def existing(cls, folder: str | Path, origin: Mapping, records: Sequence[Mapping]) -> "Store | None":
        """Open the store in a folder if there is one; return None if the folder is empty or missing.

        Raises:
            StoreError: the store was made from something else or is damaged, or the folder holds other things.
        """
        folder = Path(folder)
        if (folder / "header.json").exists():
            store = cls(folder)
            store._check_origin(origin, _lines(records))
            return store
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(
                f"folder {str(folder)!r} exists but is not a trace store; choose another folder or empty it"
            )
        return None

    @classmethod
    def create(
        cls, folder: str | Path, origin: Mapping, records: Sequence[Mapping], plan: BatchPlan, fields: Fields
    ) -> "Store":
        """Create a store with room for everything and nothing in it.

        Args:
            folder: created; must not hold anything yet.
            origin: what the activations are made from, from `interp.identity.provenance`.
            records: one `interp.identity.prompt_record` per prompt.
            plan: which prompts go into which batch.
            fields: the arrays.

        Raises:
            StoreError: the folder can't be written to.
        """
        folder, lines = Path(folder).absolute(), _lines(records)
        # Made under another name and renamed: whoever sees the folder sees a whole store.
        new = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.new")
        plan_content = {"order": plan.order, "keys": plan.keys, "batch_size": plan.batch_size}
        plan_content["fields"] = {name: vars(field) for name, field in fields.items()}
        content = {"format": FORMAT, "about": origin, "prompts": text_hash("".join(lines)), "plan": plan_content}
        try:
            with written_by_one(folder):
                # Nobody else creates this store now, so these belong to processes that were killed.
                for leftover in folder.parent.iterdir():
                    if re.fullmatch(rf"\.{re.escape(folder.name)}\.[0-9a-f]+\.new", leftover.name):
                        shutil.rmtree(leftover, ignore_errors=True)
                if (folder / "header.json").exists():
                    raise FileExistsError(errno.EEXIST, "another process has just created it; run the same trace again")
                (new / "done").mkdir(parents=True)
                (new / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
                _create_arrays(new / "states.zarr", fields, plan)
                (new / "header.json").write_text(json.dumps(content), encoding="utf-8")
                new.rename(folder)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            raise StoreError(f"folder {str(folder)!r} can't be written to: {error.strerror or error}") from error
        return cls(folder)

    def _check_origin(self, origin: Mapping, lines: list[str]) -> None:
        """Check that the store was made from the same model, request and prompts.

        Raises:
            StoreError: it was not; says what differs.
        """
        # As JSON returns it: tuples are lists there.
        now, stored = json.loads(json.dumps(origin)), self.header["about"]
        differences = [
            f"{key}: {stored.get(key)!r} in the store, {now.get(key)!r} now"
            for key in sorted(now | stored)
            if now.get(key) != stored.get(key)
        ]
        if text_hash("".join(lines)) != self.header["prompts"]:
            stored_lines = self._lines()
            n_new = len(set(lines) - set(stored_lines))
            differences.append(f"prompts: {len(stored_lines)} in the store, {len(lines)} now, {n_new} of them new")
        if differences:
            raise StoreError(
                f"store {str(self.folder)!r} was made from something else ({'; '.join(differences)}); choose another "
                "folder"
            )

    @cached_property
    def _arrays(self) -> zarr.Group:
        """The arrays, all of which are there, and as the header says.

        Raises:
            StoreError: they are not.
        """
        try:
            group = zarr.open_group(self.folder / "states.zarr", mode="r+", zarr_format=3)
            n_prompts = len(self.plan.order)
            wrong = [
                name
                for name, field in self.fields.items()
                if (group[name].shape, group[name].dtype) != ((n_prompts, *field.lengths), np.dtype(field.dtype))
            ]
        except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError, RuntimeError) as error:
            raise self._damaged_metadata(f"{type(error).__name__}: {str(error)[:80]}") from None
        if wrong:
            raise self._damaged_metadata(f"{', '.join(wrong)} with another shape or type")
        return group

    def _damaged_metadata(self, reason: str) -> "StoreError":
        return StoreError(f"the arrays of store {str(self.folder)!r} can't be opened ({reason}); {self._how_to_mend}")

    @property
    def _how_to_mend(self) -> str:
        return f"run `vlm-guard store {self.folder} --mend`, then run the same trace again"

    def check(self) -> None:
        """Read everything, and compare it with what was written.

        Raises:
            StoreError: batches are damaged.
        """
        if batches := self.damaged():
            raise StoreError(
                f"batches {batches} of store {str(self.folder)!r} are not what was written; {self._how_to_mend}"
            )

    def mend(self) -> list[int]:
        """Write the arrays' metadata again if it is damaged, and unmark every batch that is not what was written.

        Returns:
            The batches that the next run of the same trace repeats.
        """
        try:
            self._arrays  # noqa: B018 (opens them)
        except StoreError:
            # All of it follows from the header. Chunks are kept, and checked below.
            with TemporaryDirectory(dir=self.folder) as new:
                _create_arrays(Path(new) / "states.zarr", self.fields, self.plan)
                for path in Path(new).rglob("zarr.json"):
                    write_whole(self.folder / path.relative_to(new), path.read_bytes())
        batches = self.damaged()
        for batch in batches:
            self._mark(batch).unlink(missing_ok=True)
        return batches

    @contextmanager
    def written(self) -> Iterator[None]:
        """Let this process, and its workers, write batches inside the block, and remove what killed ones have left.

        Raises:
            StoreError: another process is writing them.
        """
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"store {str(self.folder)!r} is being written by another process; wait for it, and run the same trace "
                "again"
            ) from None
        try:
            for path in [*(self.folder / "states.zarr").rglob("*.partial"), *(self.folder / "done").glob(".*.new")]:
                path.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def _mark(self, batch: int) -> Path:
        return self.folder / "done" / f"{batch:06d}"

    def has(self, batch: int) -> bool:
        """Return whether the batch is finished."""
        return self._mark(batch).exists()

    @property
    def n_done(self) -> int:
        """Number of finished batches."""
        return sum(self.has(batch) for batch in range(self.plan.n_batches))

    def write(self, batch: int, arrays: Arrays) -> None:
        """Write the chunks of one batch, then the mark that vouches for them.

        Raises:
            StoreError: numbers are too large for the store's precision, or the disk is full.
        """
        arrays = {name: check_states(name, values, self.fields[name]) for name, values in arrays.items()}
        try:
            for name, values in arrays.items():
                self._arrays[name][self.plan.part(batch)] = values
            write_whole(self._mark(batch), _content_hash(arrays))
        except OSError as error:
            raise StoreError(
                f"store {str(self.folder)!r}: batch {batch} can't be written ({error.strerror or error}); finished "
                "batches are kept: make room and run the same trace again"
            ) from error

    def dataset(self) -> xr.Dataset:
        """Return all arrays, loaded lazily, in the order of the plan.

        Raises:
            StoreError: batches are missing.
        """
        n_missing = self.plan.n_batches - self.n_done
        if n_missing:
            raise StoreError(
                f"store {str(self.folder)!r} is not complete: {n_missing} of {self.plan.n_batches} batches are "
                "missing; run the same trace again to resume"
            )
        self._arrays  # noqa: B018 (checks that they are all there)
        return xr.open_zarr(self.folder / "states.zarr", consolidated=False, chunks=None)

    @property
    def prompts(self) -> list[dict]:
        """One `interp.identity.prompt_record` per prompt."""
        return [parse_json(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        """Return the lines of `prompts.jsonl`.

        Raises:
            StoreError: they are not those that the store was made with.
        """
        try:
            lines = (self.folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError):
            lines = []
        if text_hash("".join(lines)) != self.header["prompts"]:
            raise StoreError(
                f"prompts.jsonl of store {str(self.folder)!r} is damaged; delete the folder, and trace again"
            )
        return lines

    def damaged(self) -> list[int]:
        """Return the batches whose content is not what was written, or can't be read."""
        self._arrays  # noqa: B018 (an error about all of them is none about a batch)
        return [batch for batch in range(self.plan.n_batches) if self.has(batch) and not self._is_sound(batch)]

    def _is_sound(self, batch: int) -> bool:
        try:
            arrays = {name: self._arrays[name][self.plan.part(batch)] for name in self.fields}
        except (ValueError, RuntimeError, FileNotFoundError):
            return False
        # A missing chunk reads as fill values, without an error: only the hash shows it.
        return _content_hash(arrays).encode() == self._mark(batch).read_bytes()


def open_store(folder: str | Path) -> xr.Dataset:
    """Open a finished trace, loaded lazily, in the order of its prompts and with their labels as coordinates.

    Raises:
        StoreError: the folder holds no store, or the store is not complete.
    """
    store = Store(Path(folder))
    return labelled(store.dataset(), store.plan, store.prompts, store.header["about"])


def labelled(states: xr.Dataset, plan: BatchPlan, records: Sequence[Mapping], origin: Mapping) -> xr.Dataset:
    """Bring states from the order of the plan to that of the prompts, and add coordinates.

    Args:
        states: rows in the order of the plan.
        plan: that order.
        records: one `interp.identity.prompt_record` per prompt.
        origin: from `interp.identity.provenance`.
    """
    prompt_order = np.argsort(plan.order)
    states = states.isel(prompt=prompt_order).set_coords([name for name in ("position",) if name in states])
    tokens = (
        np.arange(states.sizes.get("token", 0))
        if origin["tokens"] == ALL_TOKENS
        else np.array(origin["tokens"], object)
    )
    axes = {"layer": np.array(origin["layers"]), "token": tokens}
    axes = {name: values for name, values in axes.items() if name in states.dims}
    # `beginning` only served to plan the batches.
    names = [name for name in records[0] if name != "beginning"]
    labels = prompt_coordinates({name: [record[name] for record in records] for name in names})
    attributes = {key: value if isinstance(value, str) else json.dumps(value) for key, value in origin.items()}
    return states.assign_coords(axes | labels).assign_attrs(attributes)


def _lines(records: Sequence[Mapping]) -> list[str]:
    return [json.dumps(record) + "\n" for record in records]


def _content_hash(arrays: Arrays) -> str:
    digester = hashlib.blake2b(digest_size=8)
    for name in sorted(arrays):
        digester.update(name.encode())
        digester.update(np.ascontiguousarray(arrays[name]))
    return digester.hexdigest()


def _create_arrays(folder: Path, fields: Fields, plan: BatchPlan) -> None:
    root = zarr.open_group(folder, mode="w", zarr_format=3)
    for name, field in fields.items():
        _create_array(root, name, field, plan)


def _create_array(root: zarr.Group, name: str, field: Field, plan: BatchPlan) -> None:
    """Create an array with one chunk per batch and layer.

    A probe reads one layer, and two processes never write into the same chunk.
    """
    per_layer = (1, *field.lengths[1:]) if field.dims[0].endswith("layer") else field.lengths
    root.create_array(
        name,
        shape=(len(plan.order), *field.lengths),
        chunks=(plan.batch_size, *per_layer),
        dtype=field.dtype,
        fill_value=np.nan if field.dtype != "int32" else -1,
        # bfloat16 values stored as float32 have two empty bytes each, which shuffling brings together.
        compressors=[BloscCodec(cname="zstd", clevel=1, shuffle=BloscShuffle.shuffle), Crc32cCodec()],
        dimension_names=("prompt", *field.dims),
    )


def _read_header(folder: Path) -> dict:
    """Return the content of `header.json`.

    Raises:
        StoreError: it is missing, or has another format.
    """
    try:
        header = parse_json((folder / "header.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"folder {str(folder)!r} holds no store: it has no header.json") from None
    if header["format"] != FORMAT:
        raise StoreError(f"store {str(folder)!r} has format {header['format']}; this version reads {FORMAT}")
    return header


@contextmanager
def _header_damage_reported(folder: Path) -> Iterator[None]:
    """Turn errors about what the header holds into one that names the store.

    Raises:
        StoreError: the header is damaged.
    """
    try:
        yield
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"the header of store {str(folder)!r} is damaged ({type(error).__name__}); delete the folder, "
            "and trace again"
        ) from error
