"""The command `vlm-guard`: its verbs, its exit codes, and what Ctrl-C says."""

import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer
from typer.core import TyperGroup

from studies.cli import (
    agreement,
    attack,
    check,
    compare,
    data,
    defend,
    detect,
    equal_strength,
    figures,
    guard,
    judge,
    lists,
    model,
    probe,
    report,
    repro,
    reproduce,
    seeds,
    store,
    stress,
    sweep,
    trace,
)
from studies.cli.arguments import ArgumentError
from studies.cli.errors import is_about_input
from studies.cli.verbs import paragraphs

BAD_INPUT = 2
INTERRUPTED = 130


class _Interruptible(TyperGroup):
    """A group of verbs that says on Ctrl-C what is saved; typer by itself ends without a word."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            message = "Stopped. Finished work is saved; rerun the same command to resume."
            print(f"vlm-guard: {message}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from interrupt


ABOUT = """Does a picture undo a vision-language model's refusals, and can its own LLM bring them back?

Begin with `vlm-guard repro`, the whole argument on a small built-in model. Then do the same with yours:
`vlm-guard check --model MODEL` and `vlm-guard repro --model MODEL`.
"""
app = typer.Typer(
    cls=_Interruptible,
    help=paragraphs(ABOUT),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> bool:
    if is_asked:
        print(f"vlm-guard {version('vlm-guard')}")
        raise typer.Exit()
    return is_asked


@app.callback(help=paragraphs(ABOUT))
def vlm_guard(
    is_version: Annotated[
        bool,
        typer.Option("--version", metavar="", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Hold the options of the command itself."""


for verb in (
    repro,
    reproduce,
    check,
    trace,
    store,
    probe,
    sweep,
    defend,
    equal_strength,
    detect,
    attack,
    stress,
    judge,
    agreement,
    figures,
    report,
    seeds,
    compare,
):
    app.add_typer(verb.app)
app.add_typer(guard.app, name="guard")
app.add_typer(data.app, name="data")
app.add_typer(lists.app, name="defences")
app.add_typer(model.app, name="model")


def main() -> None:
    """Run the command line. Bad input is reported in one line, with exit code 2, and never as a traceback."""
    warnings.filterwarnings("ignore")
    warnings.showwarning = lambda message, *where: print(f"vlm-guard: {message}", file=sys.stderr)
    try:
        app()
    except ArgumentError as error:
        print(f"vlm-guard: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except (ValueError, OSError, RuntimeError) as error:
        if not is_about_input(error):
            raise
        print(f"vlm-guard: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
