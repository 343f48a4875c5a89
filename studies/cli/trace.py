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
    Loading,
    Model,
    Queries,
    Ray,
    loads_model,
    numbers,
    query_columns,
    words,
)

if TYPE_CHECKING:
    import xarray as xr

    from interp import VLM, Query
    from studies.datasets import Columns

app = typer.Typer()


@app.command()
@loads_model
def trace(
    out: Annotated[Path, typer.Option(help="Folder of the store; an interrupted trace is resumed.")],
    model: Model = DEFAULT_MODEL,
    queries: Queries = None,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    modality: Annotated[
        str,
        typer.Option(
            help="How queries are shown, comma-separated: text, blank, noise, scene, typographic, typographic_scene.",
            callback=arguments.some_of("modality", arguments.MODALITIES),
        ),
    ] = "text",
    sites: Annotated[
        str,
        typer.Option(
            help="Where states are read, comma-separated: resid_post, resid_pre, attn_out, mlp_out, vision_resid_post, "
            "projector_out.",
            callback=arguments.some_of("site", arguments.SITES),
        ),
    ] = "resid_post",
    tokens: Annotated[
        str,
        typer.Option(
            help="Tokens that are kept, comma-separated: last, instruction, image_mean, text_mean, or positions such "
            "as 0 and -2; or all."
        ),
    ] = "last",
    layers: Layers = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts per batch; by default what fits memory.")] = (
        None
    ),
    stored_as: Annotated[
        str,
        typer.Option(
            help="Precision of stored states: float32 or float16.",
            callback=arguments.one_of("dtype", arguments.STORED_AS),
        ),
    ] = "float32",
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out prompts whose pictures can't be read.")
    ] = False,
    ray: Ray = None,
    cpus_per_worker: CpusPerWorker = 1,
    *,
    loading: Loading,
) -> None:
    """Trace activations into a store. Rerun it to resume where it stopped."""
    quieten()
    from studies.experiment.model_loading import load_model

    options = TraceOptions.of(modality, sites, tokens, layers, batch_size, stored_as, skip_unreadable)
    chosen = queries_of(queries, query_columns(queries, columns, harmful_values))
    vlm = load_model(model, **loading)
    run(vlm, chosen, options, out, ray, cpus_per_worker)
    print(f"{out} is complete; `vlm-guard store {out}` shows what it holds")


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


def queries_of(file: Path | None, columns: "Columns | None" = None) -> tuple["Query", ...]:
    """Return the queries of a file, whose columns may be mapped; by default the built-in queries of every split.

    Raises:
        QueryFileError: the file can't be read.
    """
    from studies.datasets import read_queries
    from studies.experiment.config import SPLITS
    from studies.organism import language

    if file:
        # The trace looks at every picture, and names all that can't be read.
        return read_queries(file, check_pictures=False, columns=columns)
    return tuple(replace(query, split=split) for split in SPLITS for query in language.queries(split))


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
