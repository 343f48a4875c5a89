"""A model of a preset's shape with random weights: a rehearsal of memory and time before a download."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from interp import LLM, VLM
from studies.organism import networks
from studies.organism.llava_parts import llava_config, llava_processor
from studies.presets.preset import Preset, PresetError

RANDOM = "random"
"""Name of such a model."""
HEAD_WIDTH = 128
PICTURE, PATCH = 336, 14
CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
BLOCK = 2**20
"""Random numbers that all weights are filled with, each from another beginning: drawing billions takes minutes."""
STEP = 12_347
"""Distance of two beginnings, without a common divisor with `BLOCK`."""


def random_model(preset: Preset, device: str | None = None, n_layers: int | None = None) -> VLM | LLM:
    """Build a model of a preset's shape: LLaVA with CLIP-L/336 if it sees pictures, else Llama.

    Its weights are made in the preset's precision at once, so that building takes no more memory than the model.

    Args:
        preset: describes the shape.
        device: by default a GPU if there is one.
        n_layers: decoder blocks; by default all that the shape has.

    Raises:
        PresetError: the preset's pictures are not those of CLIP-L/336.
    """
    shape, dtype = preset.model.shape, getattr(torch, preset.model.dtype)
    if shape.picture_tokens not in (0, (PICTURE // PATCH) ** 2):
        raise PresetError(f"{preset.name!r}: a picture of {shape.picture_tokens} tokens can't be rehearsed")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = networks.build_tokenizer()
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=n_layers or shape.layers,
        num_attention_heads=shape.width // HEAD_WIDTH,
        num_key_value_heads=shape.kv_width // HEAD_WIDTH,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    few = f", {n_layers} of {shape.layers} blocks" if n_layers else ""
    name = f"random weights, {preset.name}{few}"
    if not shape.picture_tokens:
        return LLM(_filled(LlamaForCausalLM, text, dtype, device), tokenizer, name)
    vision = CLIPVisionConfig(image_size=PICTURE, patch_size=PATCH, dtype=dtype, **CLIP_LARGE)
    config = llava_config(vision, text, tokenizer.convert_tokens_to_ids(networks.IMAGE_TOKEN))
    processor = llava_processor(tokenizer, PICTURE, PATCH, networks.IMAGE_TOKEN, networks.CHAT_TEMPLATE)
    return VLM(_filled(LlavaForConditionalGeneration, config, dtype, device), processor, name)


def _filled(kind: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Build a model without its own initialisation, which takes minutes, and fill its weights."""
    with torch.device(device), no_init_weights():
        model = kind._from_config(config, dtype=dtype)
    numbers = torch.randn(BLOCK, generator=torch.Generator(device).manual_seed(0), device=device)
    with torch.no_grad():
        n_filled = 0
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            flat, scale = parameter.view(-1), parameter[0].numel() ** -0.5
            for start in range(0, len(flat), BLOCK):
                part = flat[start : start + BLOCK]
                # Another beginning for each part, so that no two weights are alike.
                part.copy_(numbers.roll(STEP * n_filled)[: len(part)] * scale)
                n_filled += 1
    return model.eval()
