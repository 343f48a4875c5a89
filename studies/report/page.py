"""The page: what stands in it, and how it is written."""

import base64
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from studies.experiment.config import BUILT_IN
from studies.report.gallery import DrawnFigure, OmittedFigure, drawn
from studies.report.packing import packed
from studies.report.pictures import as_data
from studies.report.results import STUDIES, Results, ResultsError
from studies.report.words import HEADINGS, ClaimShown, summary_lines

HERE = Path(__file__).parent
SCRIPTS = ("data", "theme", "tables", "zoom", "plot", "explorer")
"""In this order they are one script: they share what `data` defines."""
PIXELS_PER_INCH = 128
"""Letters of 8 points are as tall as the captions then."""


@dataclass(frozen=True)
class PagePicture:
    name: str
    title: str
    caption: str
    source: str
    """A `data:` address."""
    width: int
    """Pixels: a figure for one column stays narrow."""


@dataclass(frozen=True)
class Section:
    """One study: its figures, what could not be drawn and why, its table or what to run for it."""

    name: str
    heading: str
    question: str
    pictures: tuple[PagePicture, ...]
    left_out: tuple[OmittedFigure, ...]
    table: dict | None
    """As `packed` makes it."""
    commands: tuple[str, ...]


def write(
    results: Results,
    out: Path,
    progress: Callable[[str], object] = lambda done: None,
    shown: Sequence[DrawnFigure | OmittedFigure] | None = None,
) -> Path:
    """The report: one HTML file that asks the network for nothing. The same results give the same file.

    Args:
        out: the file. What was there is replaced once the new one is whole.
        progress: told the name of each figure when it is in.
        shown: figures of these results that `studies.report.gallery.drawn` has made already; by default it makes them.

    Raises:
        ResultsError: nothing can be written there; found out before anything is drawn.
    """
    out = Path(out)
    _check_writable(out)
    html = _environment().get_template("page.html").render(_content(results, shown, progress))
    part = out.with_name(f".{out.name}.part")
    part.write_text(html, encoding="utf-8", newline="\n")
    os.replace(part, out)
    return out


def _check_writable(out: Path) -> None:
    if out.is_dir():
        raise ResultsError(f"--out {out} is a folder; give the name of a file, such as {out / 'report.html'}")
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise ResultsError(f"--out {out} can't be written: {error.strerror}; give another place") from None


def _environment() -> Environment:
    """Everything is escaped unless a file of this package says that it is markup."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Past ASCII is escaped (json's default), so the line separators that end a JavaScript string are, too.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["with_code"] = _with_code
    return environment


def _content(
    results: Results, shown: Sequence[DrawnFigure | OmittedFigure] | None, progress: Callable[[str], object]
) -> dict:
    claims = _claims(results)
    sections = {section.name: section for section in _sections(results, shown, progress)}
    return {
        "model": results.model,
        "is_built_in": results.model == BUILT_IN,
        "facts": _facts(results),
        "layer": results.guard_layer,
        "claims": claims,
        "verdicts": summary_lines([claim.verdict for claim in claims]) if claims else "",
        "summary": sections.pop("claims"),
        "points": sections.pop("points"),
        "changes_missing": _commands("changes") if "changes" not in results else (),
        "studies": list(sections.values()),
        "missing_studies": [section for section in sections.values() if section.table is None],
        "provenance": list(_provenance(results)),
        "changed": [path.name for path in results.changed],
        "style": _own("page.css"),
        "early": _own("early.js"),
        "script": Markup("\n").join(_own(f"{name}.js") for name in SCRIPTS),
        "plotly": _plotly(),
    }


def _claims(results: Results) -> list[ClaimShown]:
    if "claims" not in results:
        return []
    table = results["claims"].fillna("").astype(str)
    return [ClaimShown.of(row.claim, row.theirs, row.ours, row.verdict) for row in table.itertuples()]


def _sections(
    results: Results, shown: Sequence[DrawnFigure | OmittedFigure] | None, progress: Callable[[str], object]
) -> Iterator[Section]:
    pictures: dict[str, list[PagePicture]] = {name: [] for name in STUDIES}
    left_out: dict[str, list[OmittedFigure]] = {name: [] for name in STUDIES}
    for one in drawn(results) if shown is None else shown:
        if isinstance(one, DrawnFigure):
            width = round(one.figure.get_figwidth() * PIXELS_PER_INCH)
            pictures[one.table].append(PagePicture(one.name, one.title, one.caption, as_data(one.figure), width))
        else:
            left_out[one.table].append(one)
        progress(one.name)
    for name in STUDIES:
        heading, question = HEADINGS.get(name, (name.replace("_", " ").capitalize(), ""))
        table = packed(results[name]) if name in results else None
        yield Section(name, heading, question, tuple(pictures[name]), tuple(left_out[name]), table, _commands(name))


def _commands(name: str) -> tuple[str, ...]:
    return tuple(STUDIES[name].split(", or "))


def _facts(results: Results) -> list[tuple[str, str]]:
    """What a reader asks first, from whatever folder knows it."""
    known = [*results.configs.values(), *results.provenance.values()]
    inputs = [about.get("inputs", {}) for about in results.provenance.values()]

    def every(key: str, places: list[dict]) -> str | None:
        """Folders of one report may differ in it: then all of them are told."""
        return ", ".join(dict.fromkeys(str(place[key]) for place in places if place.get(key) is not None)) or None

    facts = {
        "Model": results.model,
        "Weights": every("model", inputs),
        "Queries": every("queries", inputs),
        "Scale": every("scale", known),
        "Split": every("split", known),
        "Seed": every("seed", known),
        "Layer of the guard": results.guard_layer,
        "Toolkit": every("vlm-guard", [about.get("versions", {}) for about in results.provenance.values()]),
    }
    return [(term, str(value)) for term, value in facts.items() if value is not None]


def _provenance(results: Results) -> Iterator[dict]:
    """Per folder: its name, what config.json and provenance.json say, and which tables changed since their run."""
    names = [folder.name for folder in results.folders]
    for folder in results.folders:
        config, about = results.configs.get(folder, {}), dict(results.provenance.get(folder, {}))
        yield {
            # The last part says enough unless two folders share it: where they lie on a disk is nobody's business.
            "folder": folder.name if names.count(folder.name) == 1 else str(folder),
            "config": list(_flat(config)),
            "tables": _table_rows(about.pop("tables", {}), {p.name for p in results.changed if p.parent == folder}),
            "about": list(_flat(about)),
        }


def _table_rows(tables: Mapping[str, Mapping], changed: set[str]) -> list[tuple[str, str, bool]]:
    return [(name, str(about.get("sha256", "unknown")), name in changed) for name, about in sorted(tables.items())]


def _flat(content: Mapping, before: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as `a.b`, value by value."""
    for key, value in sorted(content.items()):
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value if isinstance(value, str) else json.dumps(value)


def _own(name: str) -> Markup:
    """A file of this package, as it is: nothing from outside is in it."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _plotly() -> str:
    """Plotly's script, packed: 4.8 MB would be half of what a report may weigh. `plot.js` unpacks it when idle."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _with_code(text: str) -> Markup:
    """What stands between backticks as code."""
    parts = enumerate(str(text).split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in parts)
