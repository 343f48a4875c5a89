"""Every figure that results allow, with its caption, and what was left out and why."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

import figures
from studies.results import STUDIES, Results


@dataclass(frozen=True)
class Drawing:
    """A figure of the gallery: what it is called, and what it is drawn from."""

    name: str
    """Of its files."""
    title: str
    table: str
    """Of `studies.results.STUDIES`."""
    draw: Callable[[pd.DataFrame, Results], Figure]


@dataclass(frozen=True)
class Drawn:
    name: str
    title: str
    table: str
    figure: Figure

    @property
    def caption(self) -> str:
        """What is drawn, of how many, with which intervals; it serves those who can't see the figure, too."""
        return figures.caption(self.figure)


@dataclass(frozen=True)
class LeftOut:
    name: str
    title: str
    table: str
    reason: str


DRAWINGS: tuple[Drawing, ...] = (
    Drawing(
        "probe_auroc",
        "How well harmful and harmless are told apart",
        "separability",
        lambda table, _: figures.probe_auroc(table),
    ),
)
"""In the order of the argument."""


def drawn(results: Results) -> Iterator[Drawn | LeftOut]:
    """Each figure of `DRAWINGS`, or why it can't be drawn: one that fails takes no other with it."""
    for one in DRAWINGS:
        about = (one.name, one.title, one.table)
        if one.table not in results:
            yield LeftOut(*about, f"{one.table}.csv is missing; run `{STUDIES[one.table]}`")
            continue
        try:
            yield Drawn(*about, one.draw(results[one.table], results))
        except (ValueError, LookupError) as error:
            yield LeftOut(*about, str(error))
