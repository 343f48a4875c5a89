"""Newer families on hand-made tensors, as in `handmade.py`: their image processors exist only for torchvision.

Gemma 3n's could be built, but its vision tower is one of timm's. A convolution of the same output takes its place.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig

from tests.families.handmade import (
    _SQUARE_TOWER,
    _TEXT,
    _TOWER,
    D_VISION,
    D_VOCAB,
    END,
    IMAGE,
    MERGED,
    PATCH,
    SIDE,
    START,
    Picture,
    _build,
    _family,
    _tiled_pictures,
)

N_GEMMA3N = (SIDE // PATCH) ** 2
"""Positions of a picture of Gemma 3n."""
N_EXPERTS = 4


class Gemma3nConvolutionConfig(Gemma3nVisionConfig):
    """Config of the tower below, which transformers then builds by itself."""

    model_type = "gemma3n_convolution"


class Gemma3nConvolution(PreTrainedModel):
    """A vision tower with the output of Gemma 3n's MobileNet: a map of features, channels first."""

    config_class = Gemma3nConvolutionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Gemma3nConvolutionConfig):
        super().__init__(config)
        self.stem = nn.Conv2d(3, config.hidden_size, PATCH, PATCH)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Return the features; arguments of other towers are ignored."""
        return BaseModelOutputWithPooling(last_hidden_state=self.stem(pixel_values))


AutoModel.register(Gemma3nConvolutionConfig, Gemma3nConvolution, exist_ok=True)


def _square_pictures(config: PretrainedConfig, random: torch.Generator, n_tokens: int) -> list[Picture]:
    """Return two pictures of the same size, each of them between marks."""
    return [
        Picture([START, *[IMAGE] * n_tokens, END], {"pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=random)})
        for _ in range(2)
    ]


def _padded_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Return pictures of LFM2-VL: flat patches, padded to the largest number of them, with shape and mask."""
    pictures: list[Picture] = []
    for height, width in ((4, 4), (4, 6)):
        n_patches = height * width
        is_patch = torch.arange(4 * 6)[None] < n_patches
        patches = torch.randn(1, 4 * 6, 3 * PATCH**2, generator=random) * is_patch[..., None]
        tensors = {
            "pixel_values": patches,
            "pixel_attention_mask": is_patch.long(),
            "spatial_shapes": torch.tensor([[height, width]]),
        }
        pictures.append(Picture([START, *[IMAGE] * (n_patches // MERGED**2), END], tensors))
    return pictures


def _gemma3n_tower() -> Gemma3nConvolutionConfig:
    # Ids from the offset on would be marks of pictures; here there are none of them.
    return Gemma3nConvolutionConfig(hidden_size=D_VISION, vocab_size=8, vocab_offset=D_VOCAB)


def _gemma3n() -> PreTrainedModel:
    return _build(
        "gemma3n",
        text_config=_TEXT
        | {
            "head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": D_VOCAB,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
        },
        vision_config=_gemma3n_tower(),
        audio_config={
            "hidden_size": D_VISION,
            "vocab_size": 8,
            "vocab_offset": D_VOCAB + 8,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "sscp_conv_channel_size": [8, 4],
        },
        vision_soft_tokens_per_image=N_GEMMA3N,
        boi_token_id=START,
        eoi_token_id=END,
        image_token_id=IMAGE,
        audio_token_id=D_VOCAB - 1,
    )


FAMILIES = (
    _family(
        "Llama 4",
        "llama4",
        _tiled_pictures,
        text_config=_TEXT
        | {
            "head_dim": 8,
            "intermediate_size_mlp": 64,
            "num_local_experts": N_EXPERTS,
            # Experts in every other block, and one block without positions, whose attention is not cut into chunks.
            "moe_layers": [1, 3],
            "no_rope_layer_interval": 4,
        },
        vision_config=_SQUARE_TOWER
        | {
            # The adapter's width is that of merged patches.
            "intermediate_size": D_VISION * MERGED**2,
            "projector_input_dim": D_VISION,
            "projector_output_dim": D_VISION,
            "vision_output_dim": D_VISION,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        boi_token_index=START,
        eoi_token_index=END,
        image_token_index=IMAGE,
    ),
    _family(
        "LFM2-VL",
        "lfm2_vl",
        _padded_pictures,
        text_config=_TEXT
        | {
            "model_type": "lfm2",
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
        vision_config=_TOWER
        | {"model_type": "siglip2_vision_model", "patch_size": PATCH, "num_patches": 16, "vision_use_head": False},
        image_token_id=IMAGE,
        projector_hidden_size=32,
    ),
    _family(
        "Cohere2-Vision",
        "cohere2_vision",
        _tiled_pictures,
        text_config=_TEXT
        | {
            "model_type": "cohere2",
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "logit_scale": 0.25,
        },
        vision_config=_SQUARE_TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_id=IMAGE,
        alignment_intermediate_size=64,
    ),
    # No vision blocks: the tower has no attention.
    replace(
        _family("Gemma 3n", "gemma3n", partial(_square_pictures, n_tokens=N_GEMMA3N)),
        build=_gemma3n,
        n_vision_layers=0,
    ),
)
