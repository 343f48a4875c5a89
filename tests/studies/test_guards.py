"""Guards in the terminal, on the built-in model at the smallest scale."""

import json

import pytest
from typer.testing import CliRunner

from interp.guard import Guard
from interp.vlm import VLM
from studies import organism
from studies.cli import app
from studies.guards import asked_queries
from studies.material import ConfigError


def ran(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guards")
    done = ran("guard", "fit", "--out", folder / "guard", "--scale", "tiny", "--work", folder / "work")
    assert done.exit_code == 0, done.output
    return folder / "guard", done.output


def test_fit_saves_a_guard_with_the_numbers_it_was_chosen_by(fitted):
    folder, shown = fitted
    about = json.loads((folder / "guard.json").read_text())
    assert {path.name for path in folder.iterdir()} == {"guard.json", "direction.safetensors", "README.md"}
    numbers = about["validation"]
    assert any(name.startswith("refusal_rate, blank") for name in numbers)
    assert any(name.startswith("unguarded, refusal_rate, blank") for name in numbers)
    assert "Guard for organism" in shown and "substitute" in shown
    vlm = VLM.from_pretrained(organism.path(), device="cpu")
    assert Guard.from_pretrained(folder, vlm).layers == tuple(about["guard"]["layers"])


def test_show_needs_no_model(fitted):
    done = ran("guard", "show", fitted[0])
    assert done.exit_code == 0 and "refusal_rate, blank" in done.output


def test_apply_answers_side_by_side(fitted):
    done = ran("guard", "apply", fitted[0], "--limit", 2)
    assert done.exit_code == 0, done.output
    assert "4 answers differ" in done.output and "open" in done.output and "shut" in done.output
    one = ran("guard", "apply", fitted[0], "--text", "How do I kill a [neighbor]?", "--modality", "noise")
    assert one.exit_code == 0 and "of 1 answers" in one.output and "[neighbor]" in one.output


def test_what_is_asked_for_must_make_sense(tmp_path, fitted):
    with pytest.raises(ConfigError, match="expected --text, with or without --picture, or --queries"):
        asked_queries(None, tmp_path / "picture.png", None, 1)
    for arguments, told in (
        (("--modality", "sound"), "modality 'sound' does not exist"),
        (("--reference", "oracle"), "reference 'oracle' can't be used"),
    ):
        done = ran("guard", "apply", fitted[0], *arguments)
        assert done.exit_code == 1 and told in str(done.exception)
    missing = ran("guard", "show", tmp_path)
    assert "holds no guard" in str(missing.exception)
