"""Newer families through their own processor and chat template, saved as folders like those of `deep.py`.

Half of them build their processor; the processors of the others ask for torchvision, so their files are written
directly, as in `folders.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import (
    AriaConfig,
    AriaImageProcessorPil,
    AriaProcessor,
    AutoConfig,
    DeepseekVLConfig,
    DeepseekVLImageProcessorPil,
    DeepseekVLProcessor,
    Gemma4ImageProcessorPil,
    Glm4vImageProcessorPil,
    Granite4VisionConfig,
    Granite4VisionProcessor,
    LlavaNextImageProcessorPil,
    Ovis2Config,
    Ovis2ImageProcessorPil,
    Ovis2Processor,
    PreTrainedConfig,
)

from tests.families.deep import (
    D_MODEL,
    MIXED_ATTENTION,
    N_PATCHES,
    N_POOLED,
    N_VISION_LAYERS,
    PATCH,
    ROLES,
    SIDE,
    SQUARE,
    Family,
    _text,
    _vision,
    build_tokenizer,
    chat_template,
    save,
)
from tests.families.folders import CHATML, CHATML_MARKS, GLM_TURNS, GRID, QWEN
from tests.families.folders import _family as _folder
from tests.families.handmade import _GRID_TOWER, _MROPE, _TEXT, _VISION

# --- families whose processor can be built ---------------------------------------------------------------------


def _granite4_vision(folder: Path) -> None:
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    turns = {role: (f"<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n") for role in ROLES}
    processor = Granite4VisionProcessor(
        LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=grid),
        build_tokenizer("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", image_token="<image>"),
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        chat_template=chat_template(turns, "<image>\n", start=""),
    )
    # Features of the picture are added before three blocks, and what each part adds is scaled.
    multipliers = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.25,
        "logits_scaling": 2.0,
    }
    config = Granite4VisionConfig(
        text_config=_text(processor, **multipliers),
        # The Q-Former of the projector has a head for each 64 dimensions of the tower.
        vision_config=_vision(model_type="siglip_vision_model", hidden_size=64, vision_use_head=False),
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 64}
        | {"cross_attention_frequency": 1, "use_qformer_text_input": False},
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 1], [-1, 0]],
        spatial_target_layers=[3],
    )
    save(folder, config, processor)


def _aria(folder: Path) -> None:
    # The processor accepts no smaller size. Its patches are as large, so that they stay few.
    side, n_queries = 980, 4
    turns = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES}
    processor = AriaProcessor(
        AriaImageProcessorPil(),
        build_tokenizer(*CHATML_MARKS, "<fim_prefix>", "<fim_suffix>", image_token="<|img|>"),
        chat_template=chat_template(turns, "<fim_prefix><|img|><fim_suffix>", start=""),
        size_conversion={side: n_queries},
    )
    config = AriaConfig(
        text_config=_text(processor, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        vision_config=_vision(model_type="idefics3_vision", image_size=side, patch_size=side // 5),
        projector_patch_to_query_dict={25: n_queries},
        image_token_index=processor.image_token_id,
    )
    save(folder, config, processor)


def _deepseek_vl(folder: Path) -> None:
    turns = {"system": ("", "\n\n"), "user": ("User: ", "\n\n"), "assistant": ("Assistant:", "</s>")}
    processor = DeepseekVLProcessor(
        DeepseekVLImageProcessorPil(size=SQUARE, min_size=PATCH),
        build_tokenizer(image_token="<image_placeholder>"),
        chat_template=chat_template(turns, "<image_placeholder>"),
        num_image_tokens=N_PATCHES,
    )
    config = DeepseekVLConfig(
        text_config=_text(processor, model_type="llama"),
        vision_config=_vision(model_type="siglip_vision_model", vision_use_head=False),
        image_token_id=processor.image_token_id,
    )
    save(folder, config, processor)


def _ovis2(folder: Path) -> None:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = build_tokenizer(*CHATML_MARKS, "<image>", "<IMG_ATOM>", *marks)
    processor = Ovis2Processor(
        Ovis2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4),
        tokenizer,
        image_seq_length=N_POOLED,
        chat_template=chat_template(CHATML, "<image>\n", start=""),
    )
    config = Ovis2Config(
        text_config=_text(processor, model_type="qwen2"),
        # The tower puts out a distribution over a vocabulary of its own, whose last words are the marks.
        vision_config=_vision(hidden_stride=2, vocab_size=32 + len(marks), num_visual_indicator_tokens=len(marks)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(list(marks)),
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
    )
    save(folder, config, processor)


# --- families whose processor asks for torchvision -------------------------------------------------------------

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSTACK_TOWER = _GRID_TOWER | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
_PLAIN_TOWER = _GRID_TOWER | {"num_position_embeddings": 16}
_LINEAR = {
    "head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "rope_parameters": _MROPE | {"mrope_interleaved": True, "partial_rotary_factor": 0.25},
}
"""Settings of Qwen3.5, where most layers have linear attention, with a state in place of keys and values."""


def _config(model_type: str, text: dict, tower: dict, **more) -> Callable[[], PreTrainedConfig]:
    """Return a function that builds the config of a family; the folder's builder completes it in place."""
    return lambda: AutoConfig.for_model(model_type, text_config=_TEXT | text, vision_config=dict(tower), **more)


GEMMA4_SOFT_TOKENS, GEMMA4_PER_LAYER, GEMMA4_POOLED = 70, 8, 2
GEMMA4_TEXT = MIXED_ATTENTION | {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "head_dim": 16,
    "global_head_dim": 32,
    # As in the small models: a second embedding for each layer, and layers that reuse the keys of earlier ones.
    "hidden_size_per_layer_input": GEMMA4_PER_LAYER,
    "vocab_size_per_layer_input": 512,
    "num_kv_shared_layers": 2,
    "final_logit_softcapping": 30.0,
}
GEMMA4_TOWER = _VISION | {
    "num_hidden_layers": N_VISION_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "pooling_kernel_size": GEMMA4_POOLED,
    "position_embedding_size": 128,
}


def _with_layer_scalars(family: Family) -> Family:
    """Return the family with layer scalars other than 1, which no config sets: they are part of the weights."""

    def build(folder: Path) -> None:
        family.build(folder)
        file = folder / "model.safetensors"
        weights = load_file(file)
        scalars = sorted(name for name in weights if name.endswith("layer_scalar"))
        for i, name in enumerate(scalars):
            weights[name].fill_(0.6 + 0.25 * i)
        save_file(weights, file, metadata={"format": "pt"})

    return replace(family, build=build)


GLM_MARKS = (
    *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|video|>", "<|end_of_video|>"),
)
GEMMA4_TURNS = {
    role: (f"<|turn>{speaker}\n", "<turn|>\n") for role, speaker in zip(ROLES, ("system", "user", "model"), strict=True)
}

FAMILIES = (
    Family("Granite 4 Vision", "granite4_vision", _granite4_vision),
    Family("Aria", "aria", _aria),
    Family("DeepSeek-VL", "deepseek_vl", _deepseek_vl),
    Family("Ovis2", "ovis2", _ovis2),
    _folder(
        "Qwen3-VL-MoE",
        "qwen3_vl_moe",
        "Qwen3VLProcessor",
        **QWEN,
        # One layer of four without experts.
        config=_config(
            "qwen3_vl_moe",
            _EXPERTS | {"head_dim": 8, "rope_parameters": _MROPE, "mlp_only_layers": [1]},
            _DEEPSTACK_TOWER,
        ),
    ),
    _folder("Qwen3.5", "qwen3_5", "Qwen3VLProcessor", **QWEN, config=_config("qwen3_5", _LINEAR, _PLAIN_TOWER)),
    _folder(
        "Qwen3.5-MoE",
        "qwen3_5_moe",
        "Qwen3VLProcessor",
        **QWEN,
        config=_config("qwen3_5_moe", _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 16}, _PLAIN_TOWER),
    ),
    _with_layer_scalars(
        _folder(
            "Gemma 4",
            "gemma4",
            "Gemma4Processor",
            Gemma4ImageProcessorPil(
                patch_size=4, max_soft_tokens=GEMMA4_SOFT_TOKENS, pooling_kernel_size=GEMMA4_POOLED
            ).to_dict(),
            GEMMA4_TURNS,
            "<|image|>",
            start="<s>",
            special=("<|turn>", "<turn|>", "<|video|>"),
            named={
                "image_token": "<|image|>",
                "boi_token": "<|image>",
                "eoi_token": "<image|>",
                "audio_token": "<|audio|>",
                "boa_token": "<|audio>",
                "eoa_token": "<audio|>",
            },
            ids={
                "image_token_id": "<|image|>",
                "boi_token_id": "<|image>",
                "eoi_token_id": "<image|>",
                "audio_token_id": "<|audio|>",
                "boa_token_id": "<|audio>",
                "eoa_token_index": "<audio|>",
                "video_token_id": "<|video|>",
            },
            config=_config("gemma4", GEMMA4_TEXT, GEMMA4_TOWER),
            image_seq_length=GEMMA4_SOFT_TOKENS,
            feature_extractor={"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
        )
    ),
    _folder(
        "GLM-4V-MoE",
        "glm4v_moe",
        "Glm4vProcessor",
        Glm4vImageProcessorPil(**GRID).to_dict(),
        GLM_TURNS,
        "<|begin_of_image|><|image|><|end_of_image|>",
        start="[gMASK]<sop>",
        special=GLM_MARKS,
        ids={
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "image_token_id": "<|image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
            "video_token_id": "<|video|>",
        },
        config=_config(
            "glm4v_moe",
            {
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "rope_parameters": _MROPE | {"partial_rotary_factor": 0.5},
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "first_k_dense_replace": 1,
                "routed_scaling_factor": 2.0,
            },
            _GRID_TOWER | {"image_size": 16},
        ),
    ),
)
