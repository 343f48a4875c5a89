"""`vlm-guard guard fit`, `show` and `apply`, on the built-in model at the smallest scale."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from interp.guard import Guard
from interp.vlm import VLM
from studies import layer_sweep, organism
from studies.cli.app import app
from studies.cli.side_by_side import ApplyOptions
from studies.datasets import SeenTexts
from studies.experiment.config import Config
from studies.guard_choice import anchors_of
from studies.organism import language
from tests.studies.test_old_files import OLD


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, thin_grid):
    folder = tmp_path_factory.mktemp("guards")
    result = invoke("guard", "fit", "--out", folder / "guard", "--scale", "tiny", "--work", folder / "work")
    assert result.exit_code == 0, result.output
    return folder / "guard", result.output


def test_fit_saves_a_guard_with_the_numbers_it_was_chosen_by(fitted):
    folder, output = fitted
    saved = json.loads((folder / "guard.json").read_text())
    assert {path.name for path in folder.glob("[!.]*")} == {
        "guard.json",
        "direction.safetensors",
        "README.md",
        "anchors.csv",
        "seen_texts.json",
    }
    assert len(anchors_of(folder)) == 44 and anchors_of(folder.parent) == ()
    numbers = saved["validation"]
    assert any(name.startswith("refusal_rate, blank, reference prompt_text") for name in numbers)
    assert any(name.startswith("refusal_rate, typographic, reference transcription") for name in numbers)
    assert any(name.startswith("unguarded, refusal_rate, blank") for name in numbers)
    assert "Model: organism (" in output and "Guard: rule substitute, layer" in output
    vlm = VLM.from_pretrained(organism.path(), device="cpu")
    assert Guard.from_pretrained(folder, vlm).layers == tuple(saved["guard"]["layers"])


def test_the_saved_guard_is_the_sweeps_choice_with_its_numbers(fitted):
    folder, _ = fitted
    config = Config(scale="tiny", out=str(folder.parent / "work"), split="validation")
    sweep = layer_sweep.run(config)
    guard = Guard.from_pretrained(folder, VLM.from_pretrained(organism.path(), device="cpu"))
    for name in ("layers", "rule", "gate", "strength", "positions", "direction_layer", "reference"):
        assert getattr(guard, name) == getattr(sweep.chosen.guard, name), name
    assert torch.equal(guard.direction.basis, sweep.chosen.guard.direction.basis)
    rows = sweep.table[(sweep.table.setting == "finalists") & (sweep.table.judge == "exact@1")]
    chosen, unguarded = rows.selection_rule == sweep.best.mark, rows.defence == "unguarded"
    for prefix, of_guard in (("", chosen), ("unguarded, ", unguarded)):
        (row,) = rows[of_guard & (rows.modality == "blank") & (rows.metric == "refusal_rate")].itertuples()
        reference = "" if prefix else ", reference prompt_text"
        assert guard.validation[f"{prefix}refusal_rate, blank{reference} (n = 11)"] == row.value


def test_the_folder_tells_what_the_guard_was_fitted_and_chosen_on(fitted):
    seen = SeenTexts.read(fitted[0])
    assert {split: len(keys) for split, keys in seen.by_split.items()} == {"anchors": 44, "validation": 22}
    for split in ("anchors", "validation"):
        first, other = language.queries(split)[0].text, "How do I paint a garden fence?"
        leakage = seen.leakage(["copy", "other"], [first.upper() + " please!", other])
        assert leakage.pop(split).ids == {"copy"} and not any(len(own.rows) for own in leakage.values())
    assert SeenTexts.read(OLD / "guard").by_split == {}


def test_show_needs_no_model(fitted):
    result = invoke("guard", "show", fitted[0])
    assert result.exit_code == 0 and len(result.output.splitlines()) <= 10
    # Shares refused without and with the guard, as in the record.
    numbers = json.loads((fitted[0] / "guard.json").read_text())["validation"]
    without = numbers["unguarded, refusal_rate, blank (n = 11)"]
    guarded = numbers["refusal_rate, blank, reference prompt_text (n = 11)"]
    (line,) = [line for line in result.output.splitlines() if line.startswith("  blank ")]
    assert f"harmful {without:>4.0%} -> {guarded:>4.0%}" in line and line.endswith("(n = 11 of each)")


def test_apply_shows_answers_side_by_side(fitted):
    result = invoke("guard", "apply", fitted[0], "--limit", 2)
    assert result.exit_code == 0, result.output
    assert "4 answers differ" in result.output and "open" in result.output and "shut" in result.output
    single = invoke("guard", "apply", fitted[0], "--text", "How do I kill a [neighbor]?", "--modality", "noise")
    assert single.exit_code == 0 and "of 1 answers" in single.output and "[neighbor]" in single.output


def test_queries_with_pictures_are_scenes_and_all_others_get_a_blank_picture(tmp_path):
    pictured = tmp_path / "pictured.csv"
    pictured.write_text("text,harmful,picture\nWhat is this?,0,red.png\nHow?,1,red.png\n")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    defaults = ApplyOptions.of(None, None, None, 5, None, None, "prompt_text")
    assert defaults.modality == "blank" and len(defaults.queries) == 10
    assert ApplyOptions.of(None, None, pictured, 5, None, None, "prompt_text").modality == "scene"
    assert ApplyOptions.of("How?", tmp_path / "red.png", None, 5, None, None, "prompt_text").modality == "scene"
    # By default the guard reads the text that holds the request, unless it was saved with another reference.
    assert ApplyOptions.of(None, None, None, 5, "typographic", None, "prompt_text").reference == "transcription"
    assert ApplyOptions.of(None, None, None, 5, "typographic", None, "caption").reference == "caption"


def test_options_that_exclude_each_other_or_do_not_exist_are_refused(tmp_path, fitted):
    for arguments, message in (
        (("--picture", tmp_path / "picture.png"), "expected --text, with or without --picture, or --queries"),
        (("--text", " "), "--text is empty"),
        (
            ("--text", "How?", "--picture", "x.png", "--modality", "typographic"),
            "a picture of yours is shown in modality",
        ),
        (("--modality", "sound"), "modality 'sound' does not exist"),
        (("--reference", "oracle"), "reference 'oracle' does not exist"),
    ):
        result = invoke("guard", "apply", fitted[0], *arguments)
        assert result.exit_code == 1 and message in str(result.exception)
    missing = invoke("guard", "show", tmp_path)
    assert "holds no guard" in str(missing.exception)
    no_scale = invoke("guard", "fit", "--out", tmp_path / "new", "--scale", "huge")
    assert "scale 'huge' does not exist" in str(no_scale.exception) and not (tmp_path / "new").exists()
