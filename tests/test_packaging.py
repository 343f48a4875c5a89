"""The distribution holds exactly the packages that exist, with their data, and is kept off public indexes."""

import tomllib
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
TOP_LEVEL = ("interp", "probes", "studies", "figures")
NOT_INSTALLED = ("studies/LOG.md", "studies/notebooks/*")
"""Files in the packages that are for readers of a checkout."""


def existing_packages() -> set[str]:
    folders = (path.parent for name in TOP_LEVEL for path in (ROOT / name).rglob("__init__.py"))
    return {".".join(folder.relative_to(ROOT).parts) for folder in folders}


def test_the_listed_packages_are_those_that_exist():
    listed = SETUPTOOLS["packages"]
    assert len(listed) == len(set(listed)) and set(listed) == existing_packages()


def test_every_python_file_is_in_a_package():
    packages = {ROOT.joinpath(*name.split(".")) for name in existing_packages()}
    files = {path for name in TOP_LEVEL for path in (ROOT / name).rglob("*.py")}
    assert {path.parent for path in files} <= packages


def data_files() -> set[str]:
    """Files that package data names, relative to the repository."""
    found = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        for name in SETUPTOOLS["packages"] if package == "*" else [package]:
            folder = ROOT.joinpath(*name.split("."))
            found |= {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_every_other_file_is_package_data_or_left_out_on_purpose():
    files = {path for name in TOP_LEVEL for path in (ROOT / name).rglob("*") if path.is_file()}
    others = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.suffix != ".py" and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
    }
    assert {name for name in others - data_files() if not any(fnmatch(name, left) for left in NOT_INSTALLED)} == set()


@pytest.mark.parametrize("package", TOP_LEVEL)
def test_a_package_says_that_it_is_typed(package):
    assert f"{package}/py.typed" in data_files()


def test_the_distribution_cannot_be_uploaded():
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


def test_the_command_is_the_one_that_exists():
    module, _, name = PROJECT["project"]["scripts"]["vlm-guard"].partition(":")
    assert callable(getattr(import_module(module), name))
