"""The page of results: its content, and how it is written."""

import base64
import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from interp.whole_files import write_whole
from studies.experiment.config import BUILT_IN
from studies.report.gallery import DrawnFigure, OmittedFigure, draw_figures
from studies.report.glossary import NAMES, TERMS, all_places, with_terms
from studies.report.headline import Headline
from studies.report.origin import facts, origin
from studies.report.packing import packed
from studies.report.pictures import data_url, pdf_base64
from studies.report.results import STUDIES, Results, ResultsError
from studies.report.samples import samples, without_withheld
from studies.report.words import ABOUT_THE_PAPER, HEADINGS, ORDER, ClaimEntry, verdict_summary

HERE = Path(__file__).parent
SCRIPTS = ("data", "address", "save", "theme", "tip", "tables", "pivot", "samples", "zoom", "plot", "explorer")
"""Files that are joined into one script in this order; all use what `data` defines."""
STYLES = ("page", "parts")
"""Files that are joined into one style sheet: the frame of the page, and its parts one by one."""
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
    pdf: str
    """The figure for papers, in base64."""
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
    """Table of the study as returned by `packed`; None if it is not in the results, and the page has no such part."""


def write(
    results: Results,
    out: Path,
    progress: Callable[[str], object] = lambda name: None,
    drawn: Sequence[DrawnFigure | OmittedFigure] | None = None,
    harmful_answers: bool = False,
) -> Path:
    """Write the report as one HTML file that needs no network. The same results give the same file.

    Args:
        results: what the report is about.
        out: the file; an existing one is replaced when the new one is complete.
        progress: called with the name of each figure when it is on the page.
        drawn: figures of these results, if `studies.report.gallery.draw_figures` has drawn them already.
        harmful_answers: True to show a real model's answers to harmful requests, which are withheld by default.

    Returns:
        The path of the file.

    Raises:
        ResultsError: the file can't be written; raised before anything is drawn.
    """
    out = Path(out)
    _check_writable(out)
    html = _environment().get_template("page.html").render(_content(results, drawn, progress, harmful_answers))
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
    environment.filters["with_terms"] = with_terms
    environment.filters["plain"] = _plain
    return environment


def _content(
    results: Results,
    drawn: Sequence[DrawnFigure | OmittedFigure] | None,
    progress: Callable[[str], object],
    harmful_answers: bool,
) -> dict:
    shown = replace(
        results,
        tables={
            name: without_withheld(table, results.model, harmful_answers) for name, table in results.tables.items()
        },
    )
    sections = {section.name: section for section in _sections(shown, drawn, progress)}
    pictures = {picture.name: picture for section in sections.values() for picture in section.pictures}
    answers = samples(results, harmful_answers)
    headline = Headline.of(results)
    claims = _claims(results)
    return {
        "model": results.model,
        "is_built_in": results.model == BUILT_IN,
        "headline": headline,
        "guard": results.guard,
        "terms": TERMS,
        "names": {
            "names": NAMES,
            "places": all_places([*results.tables.values(), *([answers] if answers is not None else [])]),
        },
        "facts": facts(results, headline.n if headline else ""),
        "layer": results.guard_layer,
        "claims": claims,
        "about_the_paper": ABOUT_THE_PAPER,
        "verdicts": verdict_summary([claim.verdict for claim in claims]) if claims else "",
        "summary": sections.pop("claims"),
        "samples": packed(answers) if answers is not None else None,
        "judge": results.judge,
        "points": sections.pop("points"),
        "changes_missing": _commands("changes") if "changes" not in results else (),
        "studies": [section for section in sections.values() if section.table is not None],
        "figures": pictures,
        "tables": set(results.tables),
        "missing": [(_heading(name)[0], _commands(name)) for name in results.missing],
        "origin": list(origin(results)),
        "changed": [path.name for path in results.changed],
        "style": Markup("\n").join(_package_file(f"{name}.css") for name in STYLES),
        "early": _package_file("early.js"),
        "script": Markup("\n").join(_package_file(f"{name}.js") for name in SCRIPTS),
        "plotly": _plotly() if "points" in results else "",
    }


def _claims(results: Results) -> list[ClaimEntry]:
    if "claims" not in results:
        return []
    table = results["claims"].fillna("").astype(str)
    # Tables of earlier versions do not name the guard.
    guards = table.guard if "guard" in table else [""] * len(table)
    columns = (table[name] for name in ("claim", "theirs", "ours", "verdict"))
    claims = [ClaimEntry.of(*row) for row in zip(*columns, guards, strict=True)]
    return sorted(claims, key=lambda claim: ORDER.index(claim.icon))


def _sections(
    results: Results, drawn: Sequence[DrawnFigure | OmittedFigure] | None, progress: Callable[[str], object]
) -> Iterator[Section]:
    pictures: dict[str, list[PagePicture]] = {name: [] for name in STUDIES}
    omitted: dict[str, list[OmittedFigure]] = {name: [] for name in STUDIES}
    for entry in draw_figures(results) if drawn is None else drawn:
        if isinstance(entry, DrawnFigure):
            pictures[entry.table].append(_picture(entry))
        else:
            omitted[entry.table].append(entry)
        progress(entry.name)
    for name in STUDIES:
        heading, question = _heading(name)
        table = packed(results[name]) if name in results else None
        yield Section(name, heading, question, tuple(pictures[name]), tuple(omitted[name]), table)


def _picture(drawn: DrawnFigure) -> PagePicture:
    width = round(drawn.figure.get_figwidth() * PIXELS_PER_INCH)
    source, pdf = data_url(drawn.figure), pdf_base64(drawn.figure)
    return PagePicture(drawn.name, drawn.title, drawn.caption, source, pdf, width)


def _heading(name: str) -> tuple[str, str]:
    """Return the heading of a table's section, and its question."""
    return HEADINGS.get(name, (name.replace("_", " ").capitalize(), ""))


def _commands(name: str) -> tuple[str, ...]:
    return tuple(STUDIES[name].split(", or "))


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


def _plain(text: str) -> str:
    """Return a caption without the marks of code, for readers who can't see the figure."""
    return str(text).replace("`", "")
