"""A file of the user's that has the name of one of the packages is named in one line, before it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from studies.cli import shadowing

ROOT = Path(__file__).parents[3]
INSTALLED = Path(sys.executable).with_name("vlm-guard")
AS_MODULE = (sys.executable, "-c", "from studies.cli.__main__ import main; main()")


def start(command, folder, *path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = (*command, "figures", "results")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)


def names_the_intruder(done, name, source):
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr == (
        f"vlm-guard: {source} shadows package {name!r} in {ROOT}; rename it, or remove its folder from PYTHONPATH\n"
    )


@pytest.mark.parametrize("name", ["interp", "probes", "figures"])
def test_a_stray_file_is_named(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    done = start(AS_MODULE, tmp_path, tmp_path, ROOT)
    names_the_intruder(done, name, tmp_path / f"{name}.py")


@pytest.mark.skipif(not INSTALLED.exists(), reason="vlm-guard is not installed")
def test_the_installed_command_names_a_stray_file_and_a_stray_folder(tmp_path):
    (tmp_path / "figures").mkdir()
    names_the_intruder(start([INSTALLED], tmp_path, tmp_path), "figures", tmp_path / "figures")
    (tmp_path / "figures.py").write_text("raise SystemExit('imported')\n")
    names_the_intruder(start([INSTALLED], tmp_path, tmp_path), "figures", tmp_path / "figures.py")


def test_without_an_intruder_the_command_runs(tmp_path):
    done = start(AS_MODULE, tmp_path, ROOT)
    assert done.returncode == 2 and "vlm-guard: folder of results" in done.stderr and "shadows" not in done.stderr


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(shadowing, "PACKAGES", (*shadowing.PACKAGES, "no_such_package"))
    with pytest.raises(shadowing.ShadowedPackageError, match="'no_such_package' is missing in .*; reinstall vlm-guard"):
        shadowing.check_packages()
