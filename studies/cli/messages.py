"""Printing that verbs share, and silence for the libraries below them."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from studies.bookkeeping.console import VERBOSE, VERBOSITY


def print_paths(console: Console, paths: Iterable[Path]) -> None:
    """Print where files were written; of a figure's formats, one."""
    for path in paths:
        if path.suffix != ".pdf":
            console.print(f"  {path}", soft_wrap=True)


def quieten() -> None:
    """Silence progress bars and warnings of the model libraries, unless `--verbose` asks for them."""
    if VERBOSITY.get() == VERBOSE:
        return
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub.set_verbosity_error()
