"""A check that the project's packages are its own: their names are generic, so other files can shadow them."""

from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("interp", "probes", "studies", "figures")
HOME = Path(__file__).resolve().parents[2]
"""Folder that holds the packages: a checkout, or where they are installed."""


class ShadowedPackageError(ImportError):
    """Python would import one of the packages from somewhere else."""


def check_packages() -> None:
    """Check that all four packages are siblings; none of them is imported for it.

    Raises:
        ShadowedPackageError: one of them comes from another folder; the message names it.
    """
    for name in PACKAGES:
        source = _source_of(name)
        if source is None:
            raise ShadowedPackageError(f"package {name!r} is missing in {HOME}; reinstall vlm-guard")
        if source.resolve() not in (HOME / name, HOME / name / "__init__.py"):
            raise ShadowedPackageError(
                f"{source} shadows package {name!r} in {HOME}; rename it, or remove its folder from PYTHONPATH"
            )


def _source_of(name: str) -> Path | None:
    """Return the file that Python would import; for a folder without `__init__.py`, the folder."""
    spec = find_spec(name)
    if spec is None:
        return None
    if spec.origin is None:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin)
