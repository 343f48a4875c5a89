"""The arrows of the project: who may import whom, and through which door."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("interp", "probes", "studies", "figures")
ALLOWED = {"interp": {"interp"}, "probes": {"probes"}, "figures": {"figures"}, "studies": set(PACKAGES)}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

LEVELS = (
    {"bookkeeping", "datasets", "generation"},
    {"organism"},
    {"judges"},
    {"llava_qwen"},
    {"llava_smollm2"},
    {"experiment"},
    {"guards", "probing"},
    {"defences"},
    {"attacks", "detectors"},
    {"presets", "report"},
)
"""Folders of `studies`, from the bottom to the top: a folder imports its own level and those below it."""
TOP_LEVEL = {
    "separability",
    "signal_path",
    "layer_sweep",
    "layer_selection",
    "readings",
    "defence_comparison",
    "adaptive",
    "stress",
    "detection",
    "prompt_changes",
    "judge_agreement",
    "benchmarks",
    "equal_strength",
    "claims",
    "claims_by_model",
    "sweep",
    "guard_choice",
    "repro",
    "reproduce",
    "seeds",
}
"""Files of `studies`: one a question, and what the notebooks start from."""
DOORS = {
    "interp": {
        "interp",
        "interp.batches",
        "interp.control_tokens",
        "interp.detectors",
        "interp.display",
        "interp.errors",
        "interp.identity",
        "interp.json_text",
        "interp.lens",
        "interp.pictures",
        "interp.projection",
        "interp.related_directions",
        "interp.related_methods",
        "interp.stage_times",
        "interp.tracing.cluster",
        "interp.typography",
        "interp.verify",
        "interp.whole_files",
    },
    "probes": {"probes"},
    "figures": {"figures", "figures.style", "figures.tables", "figures.words"},
}
"""Modules of a package that others may import from, by package. The names they offer are in their `__all__`."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> tuple[tuple[str, str], ...]:
    """(module, name) of everything that a file imports, inside functions too; the name is empty for whole modules."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                # `from interp import trace` is the function of that name, which the package offers.
                is_module = f"{node.module}.{alias.name}" in MODULES and alias.name not in exported_by(node.module)
                found.append((f"{node.module}.{alias.name}", "") if is_module else (node.module, alias.name))
    return tuple(found)


def modules_bound_in(path: Path) -> dict[str, str]:
    """Return our modules that a file imports whole, by the name that each has there."""
    bound = {}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            # `import a.b` binds `a`, and `import a.b as c` binds `a.b`.
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                bound[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom):
            whole = [alias for alias in node.names if alias.name not in exported_by(node.module)]
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in whole}
    return {name: module for name, module in bound.items() if module in MODULES}


def attributes_of(path: Path) -> set[tuple[str, str]]:
    """(module, name) of everything that a file reads from a module that it imports whole, such as `display.table`."""
    bound, found = modules_bound_in(path), set()

    def module_at(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return bound.get(node.id)
        parent = module_at(node.value) if isinstance(node, ast.Attribute) else None
        return f"{parent}.{node.attr}" if parent and f"{parent}.{node.attr}" in MODULES else None

    for node in ast.walk(tree_of(path)):
        # A module inside a module, as in `interp.lens.Lens`, is not a name that the outer one offers.
        if isinstance(node, ast.Attribute) and (module := module_at(node.value)):
            if node.attr in exported_by(module) or not module_at(node):
                found.add((module, node.attr))
    return found


def edges_of(path: Path) -> set[str]:
    return {module for module, _ in imports_of(path) if module in MODULES}


def by_path(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


@by_path(FILES)
def test_a_package_imports_only_what_the_map_allows(path):
    package = path.relative_to(ROOT).parts[0]
    assert {module.split(".")[0] for module, _ in imports_of(path)} & set(PACKAGES) <= ALLOWED[package]


@by_path(FILES)
def test_only_forward_imports_nnsight(path):
    imports_nnsight = any(module.split(".")[0] == "nnsight" for module, _ in imports_of(path))
    assert imports_nnsight == (path == ROOT / "interp" / "tracing" / "forward.py")


def test_no_file_imports_a_file_that_imports_it():
    """A package's `__init__` is its door: it imports its own files, and none of them imports it."""
    graph = {module: edges_of(path) for module, path in MODULES.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"cycle of imports: {' <- '.join(error.args[1])}")


@by_path([path for path in FILES if path.is_relative_to(ROOT / "studies")])
def test_folders_of_studies_import_downwards(path):
    """Studies and the command line import the folders, never the reverse; nothing imports the command line."""
    parts = path.relative_to(ROOT / "studies").parts
    level_of = {folder: i for i, folders in enumerate(LEVELS) for folder in folders}
    imported = {tuple(module.split("."))[1] for module in edges_of(path) if module.startswith("studies.")}
    if len(parts) == 1:
        assert imported <= set(level_of) | TOP_LEVEL
    elif parts[0] == "cli":
        assert imported <= set(level_of) | TOP_LEVEL | {"cli"}
    elif parts[0] != "notebooks":
        assert imported <= {folder for folder in level_of if level_of[folder] <= level_of[parts[0]]}


def test_the_top_level_of_studies_holds_studies_alone():
    found = {path.stem for path in (ROOT / "studies").glob("*.py")} - {"__init__"}
    assert found == TOP_LEVEL


def exported_by(module: str) -> list[str]:
    for node in tree_of(MODULES[module]).body if module in MODULES else ():
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


@by_path([path for path in FILES if path.is_relative_to(ROOT / "studies")])
def test_studies_reach_the_other_packages_through_their_doors(path):
    for module, name in imports_of(path):
        package = module.split(".")[0]
        if package in DOORS:
            assert module in DOORS[package], f"{module} is not a public module of {package}; expected {DOORS[package]}"
            assert not name or name in exported_by(module), f"{name} is not in {module}.__all__"
    for module, name in attributes_of(path):
        if module.split(".")[0] in DOORS:
            assert name in exported_by(module), f"{name} is not in {module}.__all__"


@pytest.mark.parametrize("door", sorted(set().union(*DOORS.values())))
def test_a_door_lists_what_it_offers_and_offers_what_it_lists(door):
    listed = exported_by(door)
    assert listed, f"{door} has no __all__"
    assert listed == sorted(set(listed)), f"{door}.__all__ is not sorted, or names something twice"
    bound = {name for _, name in imports_of(MODULES[door])}
    for node in tree_of(MODULES[door]).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in getattr(target, "elts", [target])]
            bound |= {name.id for name in names if isinstance(name, ast.Name)}
    bound |= {module.rsplit(".", 1)[1] for module, name in imports_of(MODULES[door]) if not name and "." in module}
    assert set(listed) <= bound
