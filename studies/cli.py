"""The command `vlm-guard`."""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    help="Does an image undo a vision-language model's refusals, and can its own LLM bring them back?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
BAD_INPUT = 2
DTYPES = ("auto", "float32", "bfloat16", "float16")

Model = Annotated[str, typer.Option(help="Folder in Hugging Face format, hub id, or 'organism' (the built-in model).")]


@app.command()
def repro(
    model: Model = "organism",
    queries: Annotated[
        Path | None,
        typer.Option(help="CSV with columns text,harmful[,category,pair,picture]; by default the built-in queries."),
    ] = None,
    scale: Annotated[str, typer.Option(help="tiny, quick (five minutes) or full.")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; traces in it are used again.")] = Path(
        "results/repro"
    ),
    split: Annotated[str, typer.Option(help="What is reported: test, or validation while developing.")] = "test",
    seed: Annotated[int, typer.Option(help="Of folds, of splits of your own queries, and of shuffled labels.")] = 0,
) -> None:
    """Runs the paper's argument: separability, layer sweep, defences, path of the signal; figures and verdicts."""
    _quieten()
    from studies import repro as study
    from studies.material import Config

    config = Config(model, str(queries) if queries else None, scale, str(out), split, seed)
    study.run(config, Console())


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Folder in Hugging Face format, hub id, or 'organism'.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON array.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code from the checkpoint. Read it first.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="'auto' spreads a large model (needs accelerate).")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch on the hub.")] = None,
) -> None:
    """Proves on a model that what the toolkit reads and changes is what it says. Run it before you trust a new model.

    One line a property: ok, degraded (rounding), silently wrong, error, or not applicable. Exit code 1 on anything
    worse than degraded.
    """
    _quieten()
    import torch

    from interp.verify import check_vlm
    from interp.vlm import VLM, ModelError
    from studies import organism

    folder = organism.path() if model == "organism" else model
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} does not exist; expected one of {', '.join(DTYPES)}")
    precision = dtype if dtype == "auto" else getattr(torch, dtype)
    loading = {"dtype": precision, "device_map": device_map, "revision": revision}
    findings = check_vlm(VLM.from_pretrained(folder, trust_remote_code=trust_remote_code, **loading))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.verdict:<15} {finding.claim}  ({finding.measured})")
    if not all(finding.is_accepted for finding in findings):
        raise typer.Exit(1)


def _quieten() -> None:
    """The libraries' own bars and warnings; progress and errors are told by us."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub.set_verbosity_error()


def _is_about_input(error: Exception) -> bool:
    """Apart from mistakes of ours, which keep their traceback. Imports late: `--help` answers at once."""
    from interp.vlm import ModelError
    from studies.datasets import QueryFileError
    from studies.material import ConfigError

    return isinstance(error, (ModelError, QueryFileError, ConfigError, OSError))


def main() -> None:
    """Bad input is one line and exit code 2, never a traceback."""
    warnings.filterwarnings("ignore")
    try:
        app()
    except (ValueError, OSError) as error:
        if not _is_about_input(error):
            raise
        print(f"vlm-guard: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("vlm-guard: stopped; traces that were finished are kept and will be used again", file=sys.stderr)
        sys.exit(130)
