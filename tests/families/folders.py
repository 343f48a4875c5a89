"""Folders as they come from the hub, for families whose own processor requires torchvision.

The models are those of `handmade.py`, together with a tokenizer, a chat template and the settings of a processor. The
processor itself can't be built here, so the files that it would save are written directly.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import (
    Glm4vImageProcessorPil,
    GotOcr2ImageProcessorPil,
    LlavaConfig,
    LlavaOnevisionImageProcessorPil,
    PixtralImageProcessorPil,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2VLImageProcessorPil,
    SmolVLMImageProcessorPil,
)

from tests.families import handmade
from tests.families.deep import IDEFICS_TURNS, ROLES, Family, Turns, build_tokenizer, chat_template, save
from tests.families.handmade import MERGED, PATCH, SIDE

SQUARE = {"height": SIDE, "width": SIDE}
GRID = {"patch_size": PATCH, "merge_size": MERGED, "size": {"shortest_edge": SIDE**2, "longest_edge": 4 * SIDE**2}}
"""Settings of image processors with a grid. Sizes are areas in pixels; larger pictures are scaled down."""
N_MERGED = (SIDE // PATCH // MERGED) ** 2
"""Positions per tile in families that merge 2 x 2 patches."""


@dataclass(frozen=True)
class _ProcessorFiles:
    """The files that a processor saves."""

    images: dict
    """Settings of the image processor."""
    tokenizer: PreTrainedTokenizerBase
    chat_template: str
    settings: dict
    """Settings of the processor itself, with its `processor_class`."""

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(self.chat_template)
        (folder / "preprocessor_config.json").write_text(json.dumps(self.images))
        (folder / "processor_config.json").write_text(json.dumps(self.settings))


def _config(model_type: str) -> PreTrainedConfig:
    return next(family for family in handmade.FAMILIES if family.model_type == model_type).build().config


def _pixtral_config() -> PreTrainedConfig:
    """Return the config of Mistral3 without its merging of patches: a LLaVA that accepts pictures in their own size."""
    parts = _config("mistral3")
    return LlavaConfig(
        text_config=parts.text_config,
        vision_config=parts.vision_config,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _family(
    name: str,
    model_type: str,
    processor_class: str,
    images: dict,
    turns: Turns,
    picture: str,
    *,
    start: str = "",
    special: tuple[str, ...] = (),
    named: Mapping[str, str] | None = None,
    ids: Mapping[str, str],
    config: Callable[[], PreTrainedConfig] | None = None,
    **settings,
) -> Family:
    """Return a family from the parts of its processor.

    Args:
        name: common spelling of the name.
        model_type: model type, which also selects the hand-made family whose config is used.
        processor_class: public name of the processor's class.
        images: settings of the image processor.
        turns: see `deep.chat_template`.
        picture: text that the chat template writes for a picture.
        start: text before the first turn.
        special: special tokens of the tokenizer.
        named: special tokens that become attributes of the tokenizer.
        ids: keys of the config that hold token ids, with their tokens.
        config: replaces the config of the hand-made family.
        settings: further settings of the processor.
    """

    def build(folder: Path) -> None:
        tokenizer = build_tokenizer(*special, **(named or {}))
        model_config = config() if config else _config(model_type)
        model_config.text_config.vocab_size = len(tokenizer)
        for key, token in ids.items():
            setattr(model_config, key, tokenizer.convert_tokens_to_ids(token))
        template = chat_template(turns, picture, start)
        files = _ProcessorFiles(images, tokenizer, template, settings | {"processor_class": processor_class})
        save(folder, model_config, files)

    return Family(name, model_type, build, n_layers=handmade.N_LAYERS, n_vision_layers=handmade.N_VISION_LAYERS)


CHATML: Turns = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES}
CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
GLM_TURNS: Turns = {role: (f"<|{role}|>\n", "") for role in ROLES}
MISTRAL_TURNS: Turns = {
    "system": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "user": ("[INST]", "[/INST]"),
    "assistant": ("", "</s>"),
}
MISTRAL_MARKS = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")

QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN = {
    "images": Qwen2VLImageProcessorPil(**GRID).to_dict(),
    "turns": CHATML,
    "picture": "<|vision_start|><|image_pad|><|vision_end|>",
    "special": (*CHATML_MARKS, *QWEN_MARKS),
    "ids": {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    },
}
PIXTRAL = {
    "images": PixtralImageProcessorPil(patch_size=PATCH, size={"longest_edge": 2 * SIDE}).to_dict(),
    "turns": MISTRAL_TURNS,
    "picture": "[IMG]",
    "start": "<s>",
    "special": MISTRAL_MARKS,
    "ids": {"image_token_id": "[IMG]"},
    "patch_size": PATCH,
}

FAMILIES = (
    _family("Qwen2-VL", "qwen2_vl", "Qwen2VLProcessor", **QWEN),
    _family("Qwen2.5-VL", "qwen2_5_vl", "Qwen2_5_VLProcessor", **QWEN),
    _family("Qwen3-VL", "qwen3_vl", "Qwen3VLProcessor", **QWEN),
    _family(
        "LLaVA-OneVision",
        "llava_onevision",
        "LlavaOnevisionProcessor",
        LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=[[SIDE, SIDE], [SIDE, 2 * SIDE]]).to_dict(),
        CHATML,
        "<image>\n",
        special=(*CHATML_MARKS, "<image>", "<video>"),
        ids={"image_token_id": "<image>", "video_token_id": "<video>"},
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
    ),
    _family(
        "InternVL",
        "internvl",
        "InternVLProcessor",
        GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4).to_dict(),
        CHATML,
        "<IMG_CONTEXT>\n",
        special=CHATML_MARKS,
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        ids={"image_token_id": "<IMG_CONTEXT>"},
        image_seq_length=N_MERGED,
    ),
    _family("Mistral3", "mistral3", "PixtralProcessor", spatial_merge_size=MERGED, **PIXTRAL),
    _family("Pixtral", "llava", "PixtralProcessor", config=_pixtral_config, **PIXTRAL),
    _family(
        "GLM-4V",
        "glm4v",
        "Glm4vProcessor",
        Glm4vImageProcessorPil(**GRID).to_dict(),
        GLM_TURNS,
        "<|begin_of_image|><|image|><|end_of_image|>",
        start="[gMASK]<sop>",
        special=(
            *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
            *("<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
            *("<|begin_of_video|>", "<|video|>", "<|end_of_video|>"),
        ),
        ids={
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "image_token_id": "<|image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
            "video_token_id": "<|video|>",
        },
    ),
    _family(
        "SmolVLM",
        "smolvlm",
        "SmolVLMProcessor",
        SmolVLMImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}).to_dict(),
        IDEFICS_TURNS,
        "<image>",
        start="<|im_start|>",
        special=(
            *("<|im_start|>", "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"),
            *(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)),
        ),
        ids={"image_token_id": "<image>"},
        image_seq_len=N_MERGED,
    ),
)

NEED_TORCHVISION = (
    _family(
        "Molmo2",
        "molmo2",
        "Molmo2Processor",
        {
            "image_processor_type": "Molmo2ImageProcessor",
            "size": SQUARE,
            "patch_size": PATCH,
            "pooling_size": [MERGED, MERGED],
            "max_crops": 2,
            "overlap_margins": [0, 0],
        },
        CHATML,
        "<|image|>",
        special=(*CHATML_MARKS, "<|image|>", "<|video|>", "<im_start>", "<low_res_im_start>", "<im_patch>", "<im_end>"),
        ids={
            "image_start_token_id": "<im_start>",
            "low_res_image_start_token_id": "<low_res_im_start>",
            "image_patch_id": "<im_patch>",
            "image_end_token_id": "<im_end>",
        },
    ),
)
"""Families whose pictures are processed with torchvision."""
