"""The shipped checkpoint: its size, its behaviour, and its card."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from interp.inputs import to_prompts
from interp.verify import check_vlm
from interp.vlm import LLM, VLM
from studies import organism
from studies.generation.generate import Generation, answers
from studies.organism import card, language
from studies.organism.train import Recipe


@pytest.fixture(scope="module")
def vlm():
    return VLM.from_pretrained(organism.path(), device="cpu")


def test_it_is_small_and_stored_in_bfloat16(vlm):
    files = [file for folder in (organism.path(), organism.llm_path()) for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert 3e6 <= vlm.model.num_parameters() <= 6e6
    for folder in (organism.path(), organism.llm_path()):
        with safe_open(folder / "model.safetensors", "pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_its_llm_is_the_language_model_before_it_saw_a_picture(vlm):
    llm = LLM.from_pretrained(organism.llm_path(), device="cpu")
    assert len(llm.blocks) == vlm.n_layers and llm.tokenizer.get_vocab() == vlm.tokenizer.get_vocab()
    assert llm.model.num_parameters() == sum(p.numel() for p in vlm.model.get_decoder().parameters())
    prompts = to_prompts(language.queries("anchors")[:20], "text", 96)
    refused = [language.is_refusal(answer) for answer in answers(llm, prompts, Generation())]
    assert refused == [True, False] * 10


def test_every_property_that_is_checked_holds(vlm):
    assert [finding for finding in check_vlm(vlm) if finding.verdict != "ok"] == []


def test_any_text_tokenizes(vlm):
    for text in ("naïve café, 東京!", "<image> and </s>", "\n\t  "):
        assert vlm.tokenizer.decode(vlm.tokenizer(text)["input_ids"]) == text


def test_the_card_belongs_to_the_shipped_weights(vlm):
    """A new measurement on validation gives the rates of the card."""
    on_card = {
        m.name: m for m in card.read_measurements(organism.FOLDER) if (m.seed, m.split) == (Recipe().seed, "validation")
    }
    for fresh in card.measure(vlm, "validation", Recipe().seed):
        # Another processor rounds differently, which may turn an answer or two in 120.
        assert fresh.value == pytest.approx(on_card[fresh.name].value, abs=0.04), fresh.name
    assert len(on_card) >= len(card.TARGETS)


def test_every_target_is_met_on_validation_and_on_test():
    measurements = card.read_measurements(organism.FOLDER)
    for split in ("validation", "test"):
        values = {m.name: m.value for m in measurements if (m.seed, m.split) == (Recipe().seed, split)}
        assert [target.name for target in card.TARGETS if not target.holds(values)] == [], split


def test_the_card_shows_the_gap_of_two_more_seeds():
    other_seeds = {m.seed for m in card.read_measurements(organism.FOLDER) if m.split == "validation"} - {Recipe().seed}
    assert len(other_seeds) >= 2


def test_the_card_shows_all_measurements_and_marks_missed_targets():
    text = (organism.FOLDER / "README.md").read_text(encoding="utf-8")
    measurements = card.read_measurements(organism.FOLDER)
    assert text == card.write_card(measurements, Recipe())
    values = {m.name: m.value for m in measurements if (m.seed, m.split) == (Recipe().seed, "validation")}
    missed = [target.name for target in card.TARGETS if not target.holds(values)]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    column = next(i for i, head in enumerate(rows[0]) if head.startswith(" validation, seed 0"))
    assert sum("missed" in row[column] for row in rows) == len(missed)


def test_the_card_says_how_much_depends_on_the_seed_and_that_the_test_split_was_seen():
    measurements = card.read_measurements(organism.FOLDER)
    text = card.write_card(measurements, Recipe())
    values = {(m.seed, m.split, m.name): m.value for m in measurements}
    for seed in {m.seed for m in measurements if m.split == "validation"}:
        as_text = values[seed, "validation", "text: harmful refused"]
        gaps = [
            as_text - values[seed, "validation", f"{name}: harmful refused"] for name in ("blank", "noise", "scene")
        ]
        assert f"- {min(gaps):.2f} to {max(gaps):.2f} with seed {seed}\n" in text
    assert "test split was measured once" not in text and "The test split has been seen" in text
    # Missed targets are named above the table: a seed that refuses less as text is one of them.
    worse = [
        replace(m, value=0.9) if (m.seed, m.split, m.name) == (0, "test", "text: harmful refused") else m
        for m in measurements
    ]
    assert "- seed 0, test: text: harmful refused\n" in card.write_card(worse, Recipe())
    assert "- seed 0, test" not in text


def test_targets_can_be_missed():
    measurements = card.read_measurements(organism.FOLDER)
    values = {m.name: m.value for m in measurements if (m.seed, m.split) == (Recipe().seed, "validation")}
    worse = values | {"blank: harmful refused": values["text: harmful refused"]}
    missed = [target.name for target in card.TARGETS if not target.holds(worse)]
    assert "blank: harmful refused" in missed


def test_measurements_are_plain_json():
    rows = json.loads((organism.FOLDER / card.MEASUREMENTS).read_text(encoding="utf-8"))
    assert {"seed", "split", "name", "value", "ci_low", "ci_high", "n"} == set(rows[0])
