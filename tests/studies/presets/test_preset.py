"""Presets are read strictly, and the ones that ship are complete."""

from pathlib import Path

import pytest

from studies.presets.preset import Preset, PresetError, preset_names, read_preset
from tests.studies.presets.preset_files import write_preset

SHIPPED = (
    "hiddendetect-llava-1.6-7b",
    "llava-1.5-7b",
    "qwen2.5-vl-7b",
    "refusal-direction-gemma-2b",
    "refusal-direction-qwen-1.8b",
    "shiftdc-llava-1.5-7b",
)


def test_the_presets_that_ship():
    assert preset_names() == list(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_preset_says_where_everything_is_from(name):
    preset = read_preset(name)
    assert preset.targets and all(target.source and target.read_in in "PS" for target in preset.targets)
    assert all(data.get for data in preset.data)
    assert all(data.sha256 for data in preset.data if data.file.startswith("refusal_direction/"))
    assert preset.model.revision_note or preset.model.revision != "main"
    for target in preset.targets:
        # Every target is of something that the preset measures.
        measured = {
            "rate": [name for part in preset.answers for name in part.data],
            "cosine": [preset.directions and preset.directions.data]
            + [preset.refusal_direction and preset.refusal_direction.published],
            "ratio": [preset.directions and preset.directions.data],
            "auroc": [each.name for each in (preset.detection.sets if preset.detection else ())],
        }[target.measure]
        assert target.data in measured, target.id
        if target.measure == "rate":
            parts = [part for part in preset.answers if target.data in part.data]
            assert any(target.defence in part.defences for part in parts), target.id


def test_published_numbers_are_those_of_the_sources():
    values = {target.id: target.value for target in read_preset("llava-1.5-7b").targets}
    assert (values["T1, text"], values["T1, blank picture"]) == (0.253, 0.5)
    assert (values["T2, text"], values["T2, blank picture"]) == (0.302, 0.556)
    values = {target.id: target.value for target in read_preset("refusal-direction-gemma-2b").targets}
    assert values["T6, unguarded, jailbreakbench"] == 0.09 and values["T6, arditi_ablation, jailbreakbench"] == 1.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title =", "titel =", "title: Field required"),
        ("layers = 8", "layers = 0", "model.shape.layers: Input should be greater than or equal to 1"),
        ('dtype = "float32"', 'dtype = "float8"', "model.dtype: Input should be 'bfloat16', 'float16' or 'float32'"),
        ('harmful = "harmful_train"', 'harmful = "harmful_trian"', "data 'harmful_trian' is not described"),
        ("value = 0.0\nn = 100\njudge", "value = 2.0\nn = 100\njudge", "a rate needs a value from 0 to 1"),
        ('id = "ablated"', 'id = "unguarded"', "two targets have one id"),
        ("[model]", "[model", "not TOML"),
    ],
)
def test_a_mistake_in_a_preset_is_named(old, new, message, tmp_path):
    path = write_preset(tmp_path / "mine.toml", REFUSAL="5")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(PresetError) as raised:
        read_preset(str(path))
    assert message in str(raised.value) and "mine.toml" in str(raised.value)


def test_an_unknown_preset_suggests_a_known_one():
    with pytest.raises(PresetError, match="preset 'llava-1.5' does not exist; expected hiddendetect.*llava-1.5-7b"):
        read_preset("llava-1.5")


def test_a_preset_is_told_from_a_changed_one(tmp_path):
    first = read_preset(str(write_preset(tmp_path / "a.toml", REFUSAL="5")))
    second = read_preset(str(write_preset(tmp_path / "b.toml", REFUSAL="6")))
    assert isinstance(first, Preset) and first.sha256 != second.sha256 and Path(first.name).stem == "a"
