"""Hooks of the site: they generate the reference, draw formulas, and adapt links that lead out of `docs/`.

The pages can be read in the repository, and link to its files. The site does not contain these files: pictures are
copied into it, and other links are replaced by the name of the file. Formulas become MathML when the site is built, so
that a page needs no script to show them.
"""

import ast
import posixpath
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import typer
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PUBLIC = re.compile(r"<!-- public: ([\w.]+)(?: -> ([\w., ]+))? -->")
"""Place of the public names of a package; after the arrow those of some of its modules, or of the `others`."""
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
REFERENCE = "reference/"
COMMANDS = "<!-- commands -->"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)\)")
PICTURES = (".png", ".svg")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.startswith(REFERENCE):
        # Who searches for a word wants the guide that explains it before the names that contain it.
        page.meta.setdefault("search", {"boost": 0.2})
    markdown = PUBLIC.sub(lambda match: "\n".join(public(match[1], match[2])), markdown)
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(commands()))
    return LINK.sub(lambda match: _link(match, page.file.src_uri, config, files), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return FORMULA.sub(_drawn, html)


def _drawn(match: re.Match) -> str:
    return convert(unescape(match[2]), display="inline" if match[1] == "span" else "block")


def _link(match: re.Match, page: str, config: MkDocsConfig, files: Files) -> str:
    mark, text, target = match.groups()
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    if path.startswith("docs/"):
        return match[0]
    if not mark:
        return text if f"`{path}`" in text else f"{text} (`{path}`)"
    if not path.endswith(PICTURES):
        return match[0]
    if not files.get_file_from_path(path):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    source = posixpath.relpath(path, posixpath.dirname(page) or ".")
    # Figures are small on a page; a click opens the full size.
    return f"[![{text}]({source})]({source})"


# --- the reference ---------------------------------------------------------------------------------------------


def public(package: str, chosen: str | None = None) -> Iterator[str]:
    """Yield the reference of the public names that a package imports, module by module, in the order of its file.

    A module that has an `__all__` of its own is listed with all of it.

    Args:
        package: name of the package.
        chosen: modules of the package, in the order in which they are wanted; "others" are those that no page chooses.
    """
    modules = dict(_imported(package))
    if chosen == "others":
        elsewhere = {f"{package}.{name}" for name in _chosen_anywhere(package)}
        modules = {module: names for module, names in modules.items() if module not in elsewhere}
    elif chosen:
        modules = {f"{package}.{name}": modules[f"{package}.{name}"] for name in chosen.split(", ")}
    for module, names in modules.items():
        members = dict.fromkeys([*names, *_exported(module)])
        yield f"\n::: {module}\n    options:\n      members: [{', '.join(members)}]\n"


def _imported(package: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every module that a package imports names from, with the names; some are imported late, by `everything`."""
    folder = ROOT / package.replace(".", "/")
    for path in (folder / "__init__.py", folder / "everything.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else ():
            if isinstance(node, ast.ImportFrom) and node.module.startswith(f"{package}."):
                yield node.module, [name.name for name in node.names]


def _chosen_anywhere(package: str) -> Iterator[str]:
    """Yield the modules of a package that some page of the reference chooses, or describes a part of."""
    for path in sorted((ROOT / "docs" / REFERENCE).glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for name, chosen in PUBLIC.findall(text):
            yield from chosen.split(", ") if name == package else ()
        yield from re.findall(rf"^::: {re.escape(package)}\.([a-z_.]+[a-z_])", text, re.MULTILINE)


def _exported(module: str) -> list[str]:
    """Return the names in the `__all__` of a module; empty if it has none."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else ():
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


def commands() -> Iterator[str]:
    """Yield the reference of every command, with its arguments and options as in `--help`."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from studies.cli.app import app
    from studies.cli.verbs import PANEL

    yield from _commands(typer.main.get_command(app), "vlm-guard", PANEL)


def _commands(command, name: str, shared: str) -> Iterator[str]:
    """Yield the reference of a command or of those in its group, but for the options in the panel that all share."""
    if subcommands := getattr(command, "commands", None):
        yield f"{command.help}\n"
        for word, subcommand in subcommands.items():
            if getattr(subcommand, "commands", None):
                yield f"## {name} {word}\n"
            yield from _commands(subcommand, f"{name} {word}", shared)
        return
    # A command in a group is a subsection of the group.
    yield f"{'#' * (len(name.split()))} {name}\n"
    shown = [parameter for parameter in command.params if not parameter.hidden and parameter.rich_help_panel != shared]
    usage = [name, *(parameter.metavar for parameter in shown if _is_argument(parameter))]
    required = [f"{p.opts[0]} {p.metavar}" for p in shown if not _is_argument(p) and p.required]
    yield f"    {' '.join([*usage, *required])} [options]\n"
    yield f"{_help(command.help)}\n"
    if shown:
        yield "| | | default |\n|---|---|---|"
    for parameter in shown:
        opts = "" if _is_argument(parameter) else f"{', '.join(parameter.opts)} "
        label = f"{opts}{parameter.metavar}".strip()
        yield f"| `{label}` | {_help(getattr(parameter, 'help', None))} | {_default(parameter)} |"
    yield ""


def _is_argument(parameter) -> bool:
    return parameter.param_type_name == "argument"


def _default(parameter) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"


def _help(text: str | None) -> str:
    return re.sub(r"\s*\n\s*(?!\n)", " ", text or "").replace("|", r"\|").replace("<", "&lt;").strip()
