"""`vlm-guard trace` and `vlm-guard store`: queries in several modalities into a store, and what a store holds."""

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import xarray as xr

from interp import VLM, Query, TraceError, to_prompts, trace
from interp.activations import Store
from interp.token_positions import ALL
from interp.trace import PromptsLeftOut
from interp.tracing.prefix import SharingDisabled
from studies.bookkeeping.progress import phase
from studies.bookkeeping.typed_lists import numbers, words
from studies.datasets import read_queries
from studies.experiment.config import SPLITS
from studies.organism import language


@dataclass(frozen=True)
class TraceOptions:
    """The words of the command line, taken apart."""

    modalities: tuple[str, ...]
    options: dict
    """Of `interp.trace`."""

    @classmethod
    def of(
        cls,
        modality: str,
        sites: str,
        tokens: str,
        layers: str | None,
        batch_size: int | None,
        stored_as: str,
        skip_unreadable: bool,
    ) -> "TraceOptions":
        """Raises:
        TraceError: layers that are no numbers.
        """
        options = {"sites": words(sites), "batch_size": batch_size, "dtype": stored_as}
        options["skip_unreadable"] = skip_unreadable
        options["tokens"] = ALL if tokens == ALL else tuple(_as_place(token) for token in words(tokens))
        options["layers"] = numbers(layers) if layers else None
        return cls(words(modality), options)


def _as_place(token: str) -> str | int:
    return int(token) if token.removeprefix("-").isdecimal() else token


def queries_of(file: Path | None) -> tuple[Query, ...]:
    """Of the file; by default the built-in ones, of every split.

    Raises:
        QueryFileError: bad queries.
    """
    if file:
        # The trace looks at every picture, and names all that can't be read.
        return read_queries(file, look=False)
    return tuple(replace(query, split=split) for split in SPLITS for query in language.queries(split))


def run(
    vlm: VLM, queries: Sequence[Query], asked: TraceOptions, out: Path, ray: str | None = None, cpus_per_worker: int = 1
) -> xr.Dataset:
    """Traces, and shows how far it is: prompts a second, the time left, memory.

    Raises:
        TraceError, StoreError, PictureError: see `interp.trace`.
    """
    try:
        prompts = [
            prompt for modality in asked.modalities for prompt in to_prompts(queries, modality, vlm.picture_size)
        ]
    except ValueError as error:
        raise TraceError(str(error)) from error
    last, process = time.monotonic(), psutil.Process()
    with warnings.catch_warnings(), phase("trace", len(prompts)) as report:
        for told in (SharingDisabled, PromptsLeftOut):
            warnings.simplefilter("default", told)

        def advance(n: int) -> None:
            nonlocal last
            last, took = time.monotonic(), time.monotonic() - last
            memory = process.memory_info().rss / 1e9
            # What an earlier run has done goes by in no time.
            rate = f"{n / took:.1f} prompts/s" if took > 1e-3 else "was there"
            report(n, note=f"{rate}, {memory:.1f} GB")

        cluster = {"ray": ray, "cpus_per_worker": cpus_per_worker}
        return trace(vlm, prompts, out=out, advance=advance, **asked.options, **cluster)


def summary(folder: Path) -> str:
    """What a store holds, in a few lines.

    Raises:
        StoreError: there is none, or its header is damaged.
    """
    store = Store(folder)
    about, prompts = store.header["about"], store.prompts
    kinds = Counter((prompt["modality"], "harmful" if prompt["harmful"] else "harmless") for prompt in prompts)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    lines = {
        "model": f"{about['model']} ({about['weights']}, {about['dtype']})",
        "prompts": f"{len(prompts)}: " + ", ".join(f"{n} {' '.join(kind)}" for kind, n in kinds.items()),
        "sites": ", ".join(about["sites"]),
        "tokens": about["tokens"] if about["tokens"] == ALL else ", ".join(map(str, about["tokens"])),
        "layers": ", ".join(map(str, about["layers"])),
        "batches": f"{store.n_done} of {store.plan.n_batches} done, {store.plan.batch_size} prompts each",
        "on disk": f"{size / 1e6:.1f} MB, {about['stored_as']}",
        "made with": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
    }
    arrays = {
        f"  {name}": f"{' '.join(('prompt', *field.dims))}: {' x '.join(map(str, (len(prompts), *field.lengths)))}"
        for name, field in store.fields.items()
    }
    return "\n".join(f"{name:<20} {value}" for name, value in (lines | arrays).items())


def damaged(folder: Path, mend: bool) -> list[int]:
    """Batches that are not what was written.

    Args:
        folder: of the store.
        mend: forgets them, so that the next run of the same trace does them again.
    """
    store = Store(folder)
    found = store.damaged()
    for batch in found if mend else ():
        store.forget(batch)
    return found
