"""`vlm-guard trace`: activations of queries, in several modalities, into a store."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studies.cli import arguments
from studies.cli.messages import quieten
from studies.cli.options import (
    DEFAULT_MODEL,
    ColumnNames,
    CpusPerWorker,
    HarmfulValues,
    Layers,
    Limit,
    Loading,
    Model,
    Queries,
    Ray,
    choice,
    choices,
    flag,
    loads_model,
    numbers,
    query_columns,
    words,
)
from studies.cli.store import summary
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    import xarray as xr

    from interp import VLM, Query
    from studies.datasets import Columns

app = Verbs()


@app.command()
@loads_model
def trace(
    model: Model = DEFAULT_MODEL,
    queries: Queries = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    modality: Annotated[
        str,
        choices("modality", arguments.MODALITIES, "How requests are shown"),
    ] = "text",
    sites: Annotated[
        str,
        choices("site", arguments.SITES, "Places in the network whose states are kept"),
    ] = "resid_post",
    tokens: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Tokens whose states are kept, separated by commas: last (of the prompt), instruction (last of the "
            "request), image_mean, text_mean (means over tokens of the picture, of the text), or positions such as 0 "
            "and -2; or all.",
        ),
    ] = "last",
    layers: Layers = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the states; an interrupted trace in it is resumed.")
    ] = Path("results/trace"),
    limit: Limit = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Prompts that run together; by default what fits memory.")
    ] = None,
    stored_as: Annotated[str, choice("dtype", arguments.STORED_AS, "Precision of the stored states")] = "float32",
    skip_unreadable: Annotated[
        bool, flag("--skip-unreadable", "Leave out prompts whose pictures can't be read.")
    ] = False,
    ray: Ray = None,
    cpus_per_worker: CpusPerWorker = 1,
    *,
    loading: Loading,
) -> VerbResult:
    """Save a model's hidden states for a set of requests. Rerun it to resume where it stopped."""
    quieten()
    from studies.experiment.model_loading import load_model

    options = TraceOptions.of(modality, sites, tokens, layers, batch_size, stored_as, skip_unreadable)
    chosen = queries_of(queries, query_columns(queries, columns, harmful_values), limit)
    vlm = load_model(model, **loading)
    run(vlm, chosen, options, out, ray, cpus_per_worker)
    print(f"{out} is complete; `vlm-guard store {out}` shows what it holds")
    return VerbResult({"store": out} | summary(out))


@dataclass(frozen=True)
class TraceOptions:
    """Modalities and keyword arguments of a trace, parsed from the command line."""

    modalities: tuple[str, ...]
    options: dict
    """Keyword arguments of `interp.trace`."""

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
        """Read the values of the command line's options.

        Args:
            modality: names, as `text,blank`.
            sites: names, as `resid_post,mlp_out`.
            tokens: roles and positions, as `last,-2`, or `all`.
            layers: as `0,5,8-12`; None for every layer.
            batch_size: prompts per batch; None for what fits memory.
            stored_as: precision of stored states.
            skip_unreadable: whether prompts whose pictures can't be read are left out.

        Raises:
            TraceError: layers that can't be read.
        """
        from interp import ALL_TOKENS

        options = {"sites": words(sites), "batch_size": batch_size, "dtype": stored_as}
        options["skip_unreadable"] = skip_unreadable
        options["tokens"] = (
            ALL_TOKENS if tokens == ALL_TOKENS else tuple(_role_or_position(token) for token in words(tokens))
        )
        options["layers"] = numbers(layers) if layers else None
        return cls(words(modality), options)


def _role_or_position(token: str) -> str | int:
    return int(token) if token.removeprefix("-").isdecimal() else token


def queries_of(file: Path | None, columns: "Columns | None" = None, limit: int | None = None) -> tuple["Query", ...]:
    """Return the queries of a file, whose columns may be mapped; by default the built-in queries of every split.

    Args:
        file: table of queries.
        columns: what its columns are called.
        limit: at most this many queries of each class, of a file or of every split; None for all.

    Raises:
        QueryFileError: the file can't be read.
    """
    from studies.datasets import read_queries
    from studies.experiment.config import SPLITS
    from studies.experiment.experiment import first_of_each_class
    from studies.organism import language

    if file:
        # The trace looks at every picture, and names all that can't be read.
        return first_of_each_class(read_queries(file, check_pictures=False, columns=columns), limit)
    splits = {split: first_of_each_class(language.queries(split), limit) for split in SPLITS}
    return tuple(replace(query, split=split) for split, queries in splits.items() for query in queries)


def run(
    vlm: "VLM",
    queries: Sequence["Query"],
    options: TraceOptions,
    out: Path,
    ray: str | None = None,
    cpus_per_worker: int = 1,
) -> "xr.Dataset":
    """Trace queries, and show progress: prompts per second, the time left, memory.

    Args:
        vlm: the model.
        queries: shown in every modality of `options`.
        options: which states are kept, and how.
        out: folder of the store.
        ray: address of a cluster.
        cpus_per_worker: CPUs per worker on a cluster without GPUs.

    Returns:
        The store, as `interp.trace` opens it.

    Raises:
        TraceError, StoreError, PictureError: see `interp.trace`.
    """
    from interp import PromptsLeftOut, SharingDisabled, TraceError, to_prompts
    from interp import trace as trace_prompts
    from studies.bookkeeping.progress import phase

    try:
        prompts = [
            prompt for modality in options.modalities for prompt in to_prompts(queries, modality, vlm.picture_size)
        ]
    except ValueError as error:
        raise TraceError(str(error)) from error
    with warnings.catch_warnings(), phase("trace", len(prompts)) as report:
        for category in (SharingDisabled, PromptsLeftOut):
            warnings.simplefilter("default", category)
        cluster = {"ray": ray, "cpus_per_worker": cpus_per_worker}
        return trace_prompts(vlm, prompts, out=out, advance=_with_speed(report), **options.options, **cluster)


def _with_speed(report: Callable[..., None]) -> Callable[[int], None]:
    """Return a callback that reports finished prompts, with their speed and the memory in use."""
    import psutil

    last, process = time.monotonic(), psutil.Process()

    def advance(n: int) -> None:
        nonlocal last
        last, seconds = time.monotonic(), time.monotonic() - last
        memory = process.memory_info().rss / 1e9
        # Batches of an earlier run pass in no time.
        rate = f"{n / seconds:.1f} prompts/s" if seconds > 1e-3 else "saved before"
        report(n, note=f"{rate}, {memory:.1f} GB")

    return advance
