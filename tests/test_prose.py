"""The house rules that a machine can hold: names, sizes, comments and docstrings."""

import ast
import io
import re
import statistics
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("interp", "probes", "studies", "figures")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
NOT_A_SENTENCE = ("Of", "As", "By", "In", "Where", "Whether", "What", "From", "To", "Raises:", "Args:", "Returns:")
"""Beginnings of docstrings that can't be read without the name above them."""
LONG_FILES = {
    "interp/activations.py",
    "interp/verify.py",
}
"""One idea each that needs more than 350 lines: the store of activations; the contract."""
LONGEST = 350


def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


TREES = trees()
by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def functions_of(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def docstrings_of(tree: ast.AST):
    """(line, text) of every docstring, those of attributes and constants included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for child in body:
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                if isinstance(child.value.value, str):
                    yield child.lineno, child.value.value


@by_file
def test_a_docstring_begins_with_a_sentence(path):
    wrong = [
        f"line {line}: {text.strip().splitlines()[0][:80]}"
        for line, text in docstrings_of(TREES[path])
        if text.strip() and text.strip().split()[0] in NOT_A_SENTENCE
    ]
    assert not wrong, "\n".join(wrong)


def is_command(node: ast.FunctionDef) -> bool:
    """Functions of the command line describe their options in `help=`."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def public_functions(tree: ast.Module):
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (child for child in node.body if isinstance(child, ast.FunctionDef))


@by_file
def test_public_functions_of_four_parameters_describe_them(path):
    wrong = []
    for node in public_functions(TREES[path]):
        given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        names = [argument.arg for argument in given if argument.arg not in ("self", "cls")]
        if node.name.startswith("_") or is_command(node) or len(names) < 4:
            continue
        if "Args:" not in (ast.get_docstring(node) or ""):
            wrong.append(f"line {node.lineno}: {node.name}({', '.join(names)})")
    assert not wrong, "\n".join(wrong)


def test_no_class_name_is_used_twice():
    names = Counter(node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert not [name for name, n in names.items() if n > 1]


def stem_of(word: str) -> str:
    return re.sub(r"(ing|ings|ed|es|e|s|er|ers)$", "", word)


def test_no_module_is_named_by_an_inflection_of_a_neighbour():
    for folder in {path.parent for path in FILES}:
        stems = Counter(stem_of(path.stem) for path in folder.glob("*.py"))
        assert not [stem for stem, n in stems.items() if n > 1], folder


@by_file
def test_files_stay_short(path):
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= LONGEST or str(path.relative_to(ROOT)) in LONG_FILES, f"{n_lines} lines"


def test_functions_stay_short():
    lengths = []
    for tree in TREES.values():
        for node in functions_of(tree):
            doc = ast.get_docstring(node, clean=False)
            first = node.body[1] if doc is not None and len(node.body) > 1 else node.body[0]
            lengths.append(node.end_lineno - first.lineno + 1)
    assert statistics.median(lengths) <= 8
    assert sum(length <= 20 for length in lengths) >= 0.9 * len(lengths)


@pytest.mark.parametrize("package", ["interp", "probes"])
def test_dense_code_is_commented(package):
    comments = code = 0
    for path in (path for path in FILES if path.relative_to(ROOT).parts[0] == package):
        text = path.read_text(encoding="utf-8")
        docs = set()
        for node in ast.walk(TREES[path]):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                docs |= set(range(node.lineno, node.end_lineno + 1))
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        own = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
        lines = text.splitlines()
        comments += sum(lines[line - 1].lstrip().startswith("#") for line in own)
        code += sum(bool(line.strip()) and i not in docs for i, line in enumerate(lines, 1)) - len(own)
    assert comments >= 0.03 * code, f"{comments} comment lines on {code} lines of code"


@by_file
def test_no_lambda_has_a_name(path):
    assert "E731" not in path.read_text(encoding="utf-8")
