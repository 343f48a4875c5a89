"""Families whose processor asks for torchvision: loaded from a folder and checked against the contract without it."""

import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from interp import processors, verify
from interp.errors import ModelError
from interp.inputs import collate, text_prompt
from interp.processors import load_processor
from interp.verify import check_vlm
from interp.vlm import VLM
from tests.families import folders

pytestmark = [
    pytest.mark.skipif(is_torchvision_available(), reason="with torchvision the family's own processor loads"),
    # A warning of the libraries, not ours: GLM-4V's processor and NumPy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
]
each_family = pytest.mark.parametrize("family", folders.FAMILIES, ids=lambda family: family.name)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Return a function that gives a family's folder, built once and never changed."""

    @cache
    def of(name: str):
        folder = tmp_path_factory.mktemp("family")
        next(f for f in folders.FAMILIES + folders.NEED_TORCHVISION if f.name == name).build(folder)
        return folder

    return of


@pytest.fixture(scope="module")
def vlm_of(folder_of):
    """Return a function that gives a family's model, loaded once."""
    return cache(lambda name: VLM.from_pretrained(folder_of(name), device="cpu"))


@each_family
def test_a_family_from_a_folder_to_the_contract(family, folder_of, vlm_of):
    vlm = vlm_of(family.name)
    processor_class = json.loads((folder_of(family.name) / "processor_config.json").read_text())["processor_class"]
    assert type(vlm.processor).__name__ == processor_class and vlm.model.config.model_type == family.model_type
    assert vlm.n_layers == family.n_layers and len(vlm.vision_blocks) == family.n_vision_layers
    findings = check_vlm(vlm)
    assert len(findings) == len(verify.CHECKS)
    assert all(finding.is_accepted for finding in findings), [f for f in findings if not f.is_accepted]
    # With a processor and a tokenizer everything can be checked, except that TransformerLens may lack a bridge.
    unchecked = [finding.claim for finding in findings if finding.verdict == "not applicable"]
    assert all(claim.startswith("TransformerLens") for claim in unchecked)
    assert not any("explicitly" in finding.measured for finding in findings)


@each_family
def test_several_pictures_and_a_system_turn(family, vlm_of):
    vlm = vlm_of(family.name)
    pictures = tuple(Image.new("RGB", (28, 28), colour) for colour in ("red", "green", "blue"))
    prompts = [replace(text_prompt("How?"), system="Be kind.", pictures=pictures[:n]) for n in (2, 3)]
    batches = [collate(vlm, [prompt]) for prompt in prompts]
    two, three = (int((batch["input_ids"] == vlm.image_token_id).sum()) for batch in batches)
    # Not one and two: LLaVA-OneVision cuts a picture into tiles only if the prompt has no other.
    assert 2 * three == 3 * two > 0
    text = vlm.tokenizer.decode(batches[1]["input_ids"][0])
    assert "Be kind." in text and "How?" in text
    assert verify.resid_post(vlm, batches[1]).isfinite().all()


@each_family
def test_settings_in_one_file_make_the_same_processor(family, folder_of, vlm_of, tmp_path):
    """The format that transformers 5 saves, including settings of a video processor that can't be loaded."""
    folder = shutil.copytree(folder_of(family.name), tmp_path / "one_file")
    images, settings = folder / "preprocessor_config.json", folder / "processor_config.json"
    parts = {"image_processor": json.loads(images.read_text()), "video_processor": {"video_processor_type": "Any"}}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | parts))
    images.unlink()
    vlm = vlm_of(family.name)
    prompt = replace(text_prompt("How?"), pictures=(Image.linear_gradient("L"),))
    ours, theirs = (
        collate(model, [prompt]) for model in (VLM(vlm.model, load_processor(str(folder)), "one file"), vlm)
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("family", folders.NEED_TORCHVISION, ids=lambda family: family.name)
def test_a_family_that_needs_torchvision_says_so_in_one_line(family, folder_of):
    with pytest.raises(ModelError, match=r"needs torchvision .* install vlm-guard\[vision\]") as raised:
        VLM.from_pretrained(folder_of(family.name), device="cpu")
    assert "\n" not in str(raised.value)


def test_a_long_error_about_torchvision_becomes_one_line(folder_of, monkeypatch):
    def refuse(*args, **kwargs):
        raise ImportError("\nSome processor requires the Torchvision library.\nCheck out the instructions\n")

    monkeypatch.setattr(processors, "_processor_class", refuse)
    with pytest.raises(ModelError, match=r"install vlm-guard\[vision\] \(ImportError: Some processor") as raised:
        VLM.from_pretrained(folder_of("Qwen2-VL"), device="cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("name", ["Mistral3", "Qwen2-VL"])
def test_a_missing_file_is_not_blamed_on_torchvision(name, missing, folder_of, tmp_path):
    folder = shutil.copytree(folder_of(name), tmp_path / "incomplete")
    (folder / missing).unlink()
    with pytest.raises(ModelError, match="the processor of .* can't be loaded") as raised:
        VLM.from_pretrained(folder, device="cpu")
    assert "\n" not in str(raised.value) and "torchvision" not in str(raised.value)
