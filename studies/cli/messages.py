"""Printing that verbs share, and silence for the libraries below them."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console


def print_paths(console: Console, tables: Iterable[Path], drawn: Iterable[Path]) -> None:
    """Print where tables and figures were written."""
    for path in (*tables, *(path for path in drawn if path.suffix == ".png")):
        console.print(f"  {path}", soft_wrap=True)


def quieten() -> None:
    """Silence the progress bars and warnings of the model libraries; the command line reports these itself."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub.set_verbosity_error()
