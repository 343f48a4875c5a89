"""`vlm-guard repro`: the paper's argument, from separability to verdicts."""

from pathlib import Path
from typing import Annotated

import typer

from studies.cli.messages import quieten
from studies.cli.options import (
    DEFAULT_MODEL,
    DeviceMap,
    Model,
    Precision,
    Queries,
    Revision,
    Split,
    Trust,
    loading_of,
)

app = typer.Typer()


@app.command()
def repro(
    model: Model = DEFAULT_MODEL,
    queries: Queries = None,
    scale: Annotated[str, typer.Option(help="How much is measured: tiny, quick (five minutes) or full.")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; saved traces in it are reused.")] = Path(
        "results/repro"
    ),
    split: Split = "test",
    seed: Annotated[int, typer.Option(help="Seed for folds, splits of your own queries, and shuffled labels.")] = 0,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Reproduce the paper's argument: separability, sweep, readings, defences, signal path; figures and verdicts."""
    quieten()
    from rich.console import Console

    from studies import repro as study
    from studies.experiment.config import Config

    loading = loading_of(dtype, device_map, trust_remote_code, revision)
    config = Config(model, str(queries) if queries else None, scale, str(out), split, seed, loading=loading)
    study.run(config, Console())
