"""What the site is built with beside its pages: the reference, and links that lead out of `docs/`.

Pages read well where they lie, and link to files of the repository. The site holds no such files: pictures are taken
in, other links become the name of the file.
"""

import ast
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PUBLIC = re.compile(r"<!-- public: ([\w.]+) -->")
COMMANDS = "<!-- commands -->"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)\)")
PICTURES = (".png", ".svg")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    markdown = PUBLIC.sub(lambda found: "\n".join(public(found[1])), markdown)
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(commands()))
    return LINK.sub(lambda found: _link(found, page.file.src_uri, config, files), markdown)


def _link(found: re.Match, page: str, config: MkDocsConfig, files: Files) -> str:
    mark, text, target = found.groups()
    place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    if place.startswith("docs/"):
        return found[0]
    if not mark:
        return text if f"`{place}`" in text else f"{text} (`{place}`)"
    if not place.endswith(PICTURES):
        return found[0]
    if not files.get_file_from_path(place):
        files.append(File.generated(config, place, abs_src_path=str(ROOT / place)))
    shown = posixpath.relpath(place, posixpath.dirname(page) or ".")
    # In the column of a page a figure is small: a click shows it whole.
    return f"[![{text}]({shown})]({shown})"


# --- the reference ---------------------------------------------------------------------------------------------


def public(package: str) -> Iterator[str]:
    """What a package's `__init__.py` names, module by module, in its order."""
    text = (ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom):
            names = ", ".join(name.name for name in node.names)
            yield f"\n::: {node.module}\n    options:\n      members: [{names}]\n"


def commands() -> Iterator[str]:
    """Every command, with its arguments and options, as `--help` tells them."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from studies.cli.app import app

    yield from _commands(typer.main.get_command(app), "vlm-guard")


def _commands(command, name: str) -> Iterator[str]:
    if found := getattr(command, "commands", None):
        yield f"{command.help}\n"
        for word, one in found.items():
            if getattr(one, "commands", None):
                yield f"## {name} {word}\n"
            yield from _commands(one, f"{name} {word}")
        return
    # A command of a group is a section of it.
    yield f"{'#' * (len(name.split()))} {name}\n"
    usage = [name, *(parameter.name.upper() for parameter in command.params if _is_argument(parameter))]
    needed = [f"{p.opts[0]} {p.name.upper()}" for p in command.params if not _is_argument(p) and p.required]
    yield f"    {' '.join([*usage, *needed])} [options]\n"
    yield f"{_help(command.help)}\n"
    yield "| | | default |\n|---|---|---|"
    for parameter in command.params:
        shown = parameter.name.upper() if _is_argument(parameter) else ", ".join(parameter.opts)
        yield f"| `{shown}` | {_help(getattr(parameter, 'help', None))} | {_default(parameter)} |"
    yield ""


def _is_argument(parameter) -> bool:
    return parameter.param_type_name == "argument"


def _default(parameter) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"


def _help(text: str | None) -> str:
    return re.sub(r"\s*\n\s*(?!\n)", " ", text or "").replace("|", r"\|").replace("<", "&lt;").strip()
