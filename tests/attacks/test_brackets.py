"""Names that look like rich's markup are printed as they are, and raise nothing after the work is done."""

import io
from pathlib import Path

import pytest
from rich.table import Table

from studies.bookkeeping.console import plain_console

NAMES = ["o[/x]y", "[bold]", "[link=file:///etc]a[/link]", "[@click=quit()]b", "a[red", ":warning:"]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_lines_and_tables_are_no_markup(name, monkeypatch):
    written = io.StringIO()
    console = plain_console()
    console.file = written
    table = Table("name", title=name)
    table.add_row(name)
    console.print(f"path {name}")
    console.print(table)
    assert written.getvalue().count(name) == 3


def test_no_console_with_markup_is_made_in_the_studies():
    made = [
        str(path)
        for path in Path(__file__).parents[2].joinpath("studies").rglob("*.py")
        if "Console(" in path.read_text(encoding="utf-8").replace("plain_console(", "") and path.name != "console.py"
    ]
    assert not made
