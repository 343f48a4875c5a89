"""Families whose processor requires torchvision only for videos load without it."""

import json

import pytest
from PIL import Image
from transformers import LlavaOnevisionImageProcessorPil, Qwen2VLImageProcessorPil
from transformers.utils import is_torchvision_available

from interp.errors import ModelError
from interp.processors import load_processor
from tests.families import deep, handmade

PROCESSORS = {
    "qwen2_vl": (
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}),
        ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        {"processor_class": "Qwen2VLProcessor"},
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "llava_onevision": (
        LlavaOnevisionImageProcessorPil(size={"height": 16, "width": 16}, image_grid_pinpoints=[[16, 16], [16, 32]]),
        ("<image>", "<video>"),
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
        },
        "<image>",
    ),
}


@pytest.fixture(params=PROCESSORS)
def folder(request, tmp_path):
    """A folder as it comes from the hub, and the text that represents a picture."""
    images, special, settings, picture = PROCESSORS[request.param]
    family = next(family for family in handmade.FAMILIES if family.model_type == request.param)
    family.build().config.save_pretrained(tmp_path)
    deep.build_tokenizer(*special).save_pretrained(tmp_path)
    images.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    return tmp_path, picture


@pytest.mark.skipif(is_torchvision_available(), reason="with torchvision the family's own processor loads")
def test_pictures_and_text_need_no_torchvision(folder):
    path, picture = folder
    processor = load_processor(str(path))
    inputs = processor(text=[f"{picture}How?"], images=[Image.new("RGB", (20, 30))], return_tensors="pt")
    assert inputs["pixel_values"].numel() and inputs["input_ids"].shape[1] > 3
    text = processor(text=["How?"], return_tensors="pt")
    assert "pixel_values" not in text and processor.tokenizer.decode(text["input_ids"][0]).endswith("How?")


def test_a_processor_that_needs_torchvision_says_what_to_install(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ImportError("SomeVideoProcessor requires the Torchvision library")

    monkeypatch.setattr("interp.processors.AutoProcessor.from_pretrained", refuse)
    monkeypatch.setattr("interp.processors._processor_class", refuse)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(ModelError, match=r"needs torchvision matching your torch: install vlm-guard\[vision\]"):
        load_processor(str(tmp_path))
