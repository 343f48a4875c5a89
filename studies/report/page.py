"""The page of results: its content, and how it is written."""

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from interp.whole_files import write_whole
from studies.experiment.config import BUILT_IN
from studies.report.gallery import DrawnFigure, OmittedFigure, draw_figures
from studies.report.packing import packed
from studies.report.pictures import data_url
from studies.report.results import STUDIES, Results, ResultsError
from studies.report.words import ABOUT_THE_PAPER, HEADINGS, ClaimEntry, verdict_summary

HERE = Path(__file__).parent
SCRIPTS = ("data", "theme", "tables", "zoom", "plot", "explorer")
"""Files that are joined into one script in this order; all use what `data` defines."""
PIXELS_PER_INCH = 128
"""Resolution at which letters of 8 points are as tall as those of the captions."""


@dataclass(frozen=True)
class PagePicture:
    """A figure as the page shows it."""

    name: str
    title: str
    caption: str
    source: str
    """A `data:` URL."""
    width: int
    """Width in pixels; figures for one column stay narrow."""


@dataclass(frozen=True)
class Section:
    """The part of the page about one study."""

    name: str
    heading: str
    question: str
    pictures: tuple[PagePicture, ...]
    omitted: tuple[OmittedFigure, ...]
    """Figures that could not be drawn."""
    table: dict | None
    """Table of the study as returned by `packed`; None if it is not in the results."""
    commands: tuple[str, ...]
    """Commands that write the table."""


def write(
    results: Results,
    out: Path,
    progress: Callable[[str], object] = lambda name: None,
    drawn: Sequence[DrawnFigure | OmittedFigure] | None = None,
) -> Path:
    """Write the report as one HTML file that needs no network. The same results give the same file.

    Args:
        results: what the report is about.
        out: the file; an existing one is replaced when the new one is complete.
        progress: called with the name of each figure when it is on the page.
        drawn: figures of these results, if `studies.report.gallery.draw_figures` has drawn them already.

    Returns:
        The path of the file.

    Raises:
        ResultsError: the file can't be written; raised before anything is drawn.
    """
    out = Path(out)
    _check_writable(out)
    html = _environment().get_template("page.html").render(_content(results, drawn, progress))
    write_whole(out, html)
    return out


def _check_writable(out: Path) -> None:
    if out.is_dir():
        raise ResultsError(f"--out {out} is a folder; give the name of a file, such as {out / 'report.html'}")
    partial = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise ResultsError(f"--out {out} can't be written: {error.strerror}; give another place") from None


def _environment() -> Environment:
    """Build the template environment, which escapes everything that is not marked as markup by this package."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # json escapes everything beyond ASCII by default, including line separators, which end a JavaScript string.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["with_code"] = _with_code
    return environment


def _content(
    results: Results, drawn: Sequence[DrawnFigure | OmittedFigure] | None, progress: Callable[[str], object]
) -> dict:
    claims = _claims(results)
    sections = {section.name: section for section in _sections(results, drawn, progress)}
    return {
        "model": results.model,
        "is_built_in": results.model == BUILT_IN,
        "facts": _facts(results),
        "layer": results.guard_layer,
        "claims": claims,
        "about_the_paper": ABOUT_THE_PAPER,
        "verdicts": verdict_summary([claim.verdict for claim in claims]) if claims else "",
        "summary": sections.pop("claims"),
        "points": sections.pop("points"),
        "changes_missing": _commands("changes") if "changes" not in results else (),
        "studies": list(sections.values()),
        "missing_studies": [section for section in sections.values() if section.table is None],
        "provenance": list(_provenance(results)),
        "changed": [path.name for path in results.changed],
        "style": _package_file("page.css"),
        "early": _package_file("early.js"),
        "script": Markup("\n").join(_package_file(f"{name}.js") for name in SCRIPTS),
        "plotly": _plotly(),
    }


def _claims(results: Results) -> list[ClaimEntry]:
    if "claims" not in results:
        return []
    table = results["claims"].fillna("").astype(str)
    # Tables of earlier versions do not name the guard.
    guards = table.guard if "guard" in table else [""] * len(table)
    columns = (table[name] for name in ("claim", "theirs", "ours", "verdict"))
    return [ClaimEntry.of(*row) for row in zip(*columns, guards, strict=True)]


def _sections(
    results: Results, drawn: Sequence[DrawnFigure | OmittedFigure] | None, progress: Callable[[str], object]
) -> Iterator[Section]:
    pictures: dict[str, list[PagePicture]] = {name: [] for name in STUDIES}
    omitted: dict[str, list[OmittedFigure]] = {name: [] for name in STUDIES}
    for entry in draw_figures(results) if drawn is None else drawn:
        if isinstance(entry, DrawnFigure):
            width = round(entry.figure.get_figwidth() * PIXELS_PER_INCH)
            picture = PagePicture(entry.name, entry.title, entry.caption, data_url(entry.figure), width)
            pictures[entry.table].append(picture)
        else:
            omitted[entry.table].append(entry)
        progress(entry.name)
    for name in STUDIES:
        heading, question = HEADINGS.get(name, (name.replace("_", " ").capitalize(), ""))
        table = packed(results[name]) if name in results else None
        yield Section(name, heading, question, tuple(pictures[name]), tuple(omitted[name]), table, _commands(name))


def _commands(name: str) -> tuple[str, ...]:
    return tuple(STUDIES[name].split(", or "))


def _facts(results: Results) -> list[tuple[str, str]]:
    """Return terms and values for the top of the page, collected from all folders."""
    provenance = list(results.provenance.values())
    records = [*results.configs.values(), *provenance]
    inputs = [record.get("inputs", {}) for record in provenance]

    def all_values(key: str, records: list[dict]) -> str | None:
        """Join the different values of several folders."""
        return ", ".join(dict.fromkeys(str(record[key]) for record in records if record.get(key) is not None)) or None

    facts = {
        "Model": results.model,
        "Weights": all_values("model", inputs),
        "Queries": all_values("queries", inputs),
        "Scale": all_values("scale", records),
        "Split": all_values("split", records),
        "Seed": all_values("seed", records),
        "Guard": results.guard or None,
        "Toolkit": all_values("vlm-guard", [record.get("versions", {}) for record in provenance]),
    }
    return [(term, str(value)) for term, value in facts.items() if value is not None]


def _provenance(results: Results) -> Iterator[dict]:
    """Yield for each folder its name, config and provenance, and its tables with a flag for those that changed."""
    names = [folder.name for folder in results.folders]
    for folder in results.folders:
        config, run = results.configs.get(folder, {}), dict(results.provenance.get(folder, {}))
        changed = {path.name for path in results.changed if path.parent == folder}
        yield {
            # Paths on the author's disk stay private; only folders of the same name need more than their last part.
            "folder": folder.name if names.count(folder.name) == 1 else str(folder),
            "config": list(_flat(config)),
            "tables": _table_rows(run.pop("tables", {}), changed),
            "run": list(_flat(run)),
        }


def _table_rows(tables: Mapping[str, Mapping], changed: set[str]) -> list[tuple[str, str, bool]]:
    return [(name, str(entry.get("sha256", "unknown")), name in changed) for name, entry in sorted(tables.items())]


def _flat(content: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings one by one, with keys such as `a.b`."""
    for key, value in sorted(content.items()):
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _package_file(name: str) -> Markup:
    """Read a file of this package; it needs no escaping, since it contains nothing from outside."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _plotly() -> str:
    """Return Plotly's script, compressed, because its 4.8 MB would double the page; `plot.js` unpacks it when idle."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _with_code(text: str) -> Markup:
    """Turn text between backticks into code."""
    parts = enumerate(str(text).split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in parts)
