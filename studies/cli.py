"""The command `vlm-guard`."""

import sys
import warnings
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
    seed: Annotated[int, typer.Option(help="Of folds, of splits of your own queries, and of controls.")] = 0,
) -> None:
    """Runs the paper's argument: separability, layer sweep, defences; draws the figures, judges the claims."""
    from studies import repro as study
    from studies.material import Config

    config = Config(model, str(queries) if queries else None, scale, str(out), split, seed)
    study.run(config, Console())


@app.command()
def check(model: Annotated[str, typer.Argument(help="Folder in Hugging Face format, hub id, or 'organism'.")]) -> None:
    """Proves on a model that what the toolkit reads and changes is what it says."""
    from interp.verify import verify
    from interp.vlm import VLM
    from studies import organism

    vlm = VLM.from_pretrained(organism.path() if model == "organism" else model)
    findings = verify(vlm)
    for finding in findings:
        print(f"{'ok   ' if finding.holds else 'FAILS'}  {finding.claim}  ({finding.measured})")
    if not all(finding.holds for finding in findings):
        raise typer.Exit(1)


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
