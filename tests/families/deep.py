"""Tiny random models of real vision-language families, each with its family's processor and prompt format.

Every builder saves a folder in Hugging Face format, as a user would download it from the hub.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    AyaVisionConfig,
    AyaVisionProcessor,
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics2Config,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaConfig,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SiglipImageProcessorPil,
    VipLlavaConfig,
)

N_LAYERS, N_VISION_LAYERS = 4, 2
D_MODEL, D_VISION = 48, 32
SIDE, PATCH = 28, 7
"""Sides of a vision tower's input and of a patch, in pixels: 4 x 4 patches. Some families cut larger pictures into
several such tiles."""
N_PATCHES = (SIDE // PATCH) ** 2
SQUARE = {"height": SIDE, "width": SIDE}
N_POOLED = N_PATCHES // 4
"""Positions per tile in families that merge 2 x 2 patches."""
MIXED_ATTENTION = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}

ROLES = ("system", "user", "assistant")
Turns = dict[str, tuple[str, str]]
"""Text before and after the content of each role's turn."""

CORPUS = (
    "How do I kill a wasp? What is the best way to build a rope swing?",
    "Read the request in the picture and answer it. You are a helpful assistant.",
    "I can't help with that. Sure, here is what you can do.",
)

CHAT_TEMPLATE = """
{%- for message in messages -%}
{%- if message.role not in turns %}{{ raise_exception('there is no ' + message.role + ' role') }}{% endif -%}
{{- turns[message.role][0] -}}
{%- for part in message.content %}{{ image if part.type == 'image' else part.text }}{% endfor -%}
{{- turns[message.role][1] -}}
{%- endfor -%}
{%- if add_generation_prompt and 'assistant' in turns %}{{ turns.assistant[0] }}{% endif -%}
"""


def chat_template(turns: Turns, image: str, start: str = "<s>") -> str:
    """Return a chat template; `image` represents a picture until the processor inserts the picture's tokens."""
    return f"{{{{- {start!r} -}}}}{{%- set turns, image = {turns!r}, {image!r} -%}}" + CHAT_TEMPLATE


def build_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; `named` special tokens, such as `image_token`, become attributes and get the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<pad>", "<s>", "</s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
        padding_side="left",
    )


def _text(processor: ProcessorMixin, n_key_value_heads: int = 2, **more) -> dict:
    """Return a text config. It depends on the processor, since some processors add tokens to the tokenizer."""
    tokenizer = processor.tokenizer
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": D_MODEL,
        "intermediate_size": 2 * D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": n_key_value_heads,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **more,
    }


def _vision(**more) -> dict:
    return {
        "hidden_size": D_VISION,
        "intermediate_size": 2 * D_VISION,
        "num_hidden_layers": N_VISION_LAYERS,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        **more,
    }


def save(folder: Path, config: PreTrainedConfig, processor: ProcessorMixin) -> None:
    """Build a random model and save it with its processor."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            # All parameters: gates, latents and projections that start as constants would block the picture.
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _whole_picture_llava(folder: Path, config: type[PreTrainedConfig], turns: Turns, **more) -> None:
    """Save a LLaVA whose vision tower sees the picture once, scaled and cropped to a square."""
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE),
        build_tokenizer(image_token="<image>"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template(turns, "<image>\n"),
    )
    parts = {"text_config": _text(processor, n_key_value_heads=4), "vision_config": _vision()}
    image = {"image_token_index": processor.image_token_id, "image_seq_length": N_PATCHES}
    save(folder, config(**parts, **image, **more), processor)


def _llava(folder: Path) -> None:
    turns = {"system": ("", " "), "user": ("USER: ", " "), "assistant": ("ASSISTANT:", "</s>")}
    _whole_picture_llava(folder, LlavaConfig, turns)


def _vipllava(folder: Path) -> None:
    turns = {"system": ("", ""), "user": ("###Human: ", ""), "assistant": ("###Assistant:", "</s>")}
    _whole_picture_llava(folder, VipLlavaConfig, turns, vision_feature_layer=[-2, -1, 0])


def _llava_next(folder: Path) -> None:
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    turns = {"system": ("<<SYS>>\n", "\n<</SYS>>\n\n"), "user": ("[INST] ", " [/INST]"), "assistant": ("", "</s>")}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=grid),
        build_tokenizer(image_token="<image>"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template(turns, "<image>\n"),
    )
    config = LlavaNextConfig(
        text_config=_text(processor, model_type="mistral"),
        vision_config=_vision(),
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=grid,
    )
    save(folder, config, processor)


def _gemma3(folder: Path) -> None:
    # Gemma has no system turn: the system message is part of the user's.
    speakers = {"system": "user", "user": "user", "assistant": "model"}
    turns = {role: (f"<start_of_turn>{speaker}\n", "<end_of_turn>\n") for role, speaker in speakers.items()}
    tokenizer = build_tokenizer(
        "<start_of_turn>",
        "<end_of_turn>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size=SQUARE),
        tokenizer,
        image_seq_length=N_POOLED,
        chat_template=chat_template(turns, "<start_of_image>"),
    )
    config = Gemma3Config(
        text_config=_text(processor, head_dim=16, query_pre_attn_scalar=16, **MIXED_ATTENTION),
        vision_config=_vision(vision_use_head=False),
        mm_tokens_per_image=N_POOLED,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    save(folder, config, processor)


def _paligemma(folder: Path) -> None:
    # No roles and no <s>: the processor itself adds <s> after the last picture and a line break at the end.
    processor = PaliGemmaProcessor(
        SiglipImageProcessorPil(size=SQUARE, image_seq_length=N_PATCHES),
        build_tokenizer(image_token="<image>"),
        chat_template=chat_template({"user": ("", "")}, "<image>", start=""),
    )
    config = PaliGemmaConfig(
        text_config=_text(processor, n_key_value_heads=1, head_dim=16),
        vision_config=_vision(vision_use_head=False),
        image_token_index=processor.image_token_id,
        vocab_size=len(processor.tokenizer),
        projection_dim=D_MODEL,
        hidden_size=D_MODEL,
    )
    save(folder, config, processor)


IDEFICS_TURNS = {role: (f"{role.capitalize()}:", "<end_of_utterance>\n") for role in ROLES}


def _idefics2(folder: Path) -> None:
    processor = Idefics2Processor(
        Idefics2ImageProcessorPil(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE}, do_image_splitting=True),
        build_tokenizer(),
        image_seq_len=N_POOLED,
        chat_template=chat_template(IDEFICS_TURNS, "<image>"),
    )
    perceiver = {
        "hidden_size": D_MODEL,
        "resampler_n_latents": N_POOLED,
        "resampler_depth": 1,
        "resampler_n_heads": 4,
        "resampler_head_dim": 8,
        "num_key_value_heads": 2,
    }
    config = Idefics2Config(
        text_config=_text(processor),
        vision_config=_vision(),
        perceiver_config=perceiver,
        image_token_id=processor.image_token_id,
    )
    save(folder, config, processor)


def _idefics3(folder: Path) -> None:
    places = [f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)]
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}),
        build_tokenizer("<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>", *places),
        image_seq_len=N_POOLED,
        chat_template=chat_template(IDEFICS_TURNS, "<image>"),
    )
    config = Idefics3Config(
        text_config=_text(processor),
        vision_config=_vision(),
        image_token_id=processor.image_token_id,
        scale_factor=2,
    )
    save(folder, config, processor)


def _mllama(folder: Path) -> None:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    turns = {role: (header.format(role), "<|eot_id|>") for role in ROLES}
    special = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
    processor = MllamaProcessor(
        MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4),
        build_tokenizer(*special, image_token="<|image|>"),
        chat_template=chat_template(turns, "<|image|>"),
    )
    vision = _vision(num_global_layers=1, intermediate_layers_indices=[0, 1], vision_output_dim=3 * D_VISION)
    config = MllamaConfig(
        # As in Llama 3.2, the picture's token is the only id that can be read but not generated.
        text_config=_text(processor, vocab_size=processor.image_token_id, cross_attention_layers=[1]),
        vision_config=vision,
        image_token_index=processor.image_token_id,
    )
    save(folder, config, processor)


def _aya_vision(folder: Path) -> None:
    speakers = {"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"}
    turns = {
        role: (f"<|START_OF_TURN_TOKEN|><|{speaker}_TOKEN|>", "<|END_OF_TURN_TOKEN|>")
        for role, speaker in speakers.items()
    }
    marks = ["START_OF_TURN_TOKEN", "END_OF_TURN_TOKEN", *(f"{speaker}_TOKEN" for speaker in speakers.values())]
    marks = [f"<|{mark}|>" for mark in (*marks, "START_OF_IMG", "IMG_PATCH", "END_OF_IMG")]
    tiles = ["TILE_GLOBAL", *(f"TILE_{tile}" for tile in range(1, 5))]
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4),
        build_tokenizer(*marks, *tiles),
        patch_size=PATCH,
        img_size=SIDE,
        downsample_factor=2,
        chat_template=chat_template(turns, "<image>"),
    )
    config = AyaVisionConfig(
        text_config=_text(processor, **MIXED_ATTENTION),
        vision_config=_vision(vision_use_head=False),
        downsample_factor=2,
        image_token_index=processor.image_token_id,
    )
    save(folder, config, processor)


@dataclass(frozen=True)
class Family:
    """A kind of vision-language model, with a builder of a tiny one."""

    name: str
    """Common spelling of the name."""
    model_type: str
    build: Callable[[Path], None]
    """Function that saves model and processor into a folder."""
    has_system_role: bool = True
    n_layers: int = N_LAYERS
    """Number of decoder blocks."""
    n_vision_layers: int = N_VISION_LAYERS


FAMILIES = (
    Family("LLaVA-1.5", "llava", _llava),
    Family("ViP-LLaVA", "vipllava", _vipllava),
    Family("LLaVA-NeXT", "llava_next", _llava_next),
    Family("Gemma 3", "gemma3", _gemma3),
    Family("PaliGemma", "paligemma", _paligemma, has_system_role=False),
    Family("Idefics2", "idefics2", _idefics2),
    Family("Idefics3", "idefics3", _idefics3),
    Family("Mllama", "mllama", _mllama),
    Family("Aya Vision", "aya_vision", _aya_vision),
)
