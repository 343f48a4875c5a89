"""Tiny random models of the supported families, with hand-made inputs.

There is no processor and no tokenizer: ids have no meaning, but a picture occupies the positions it has in its family.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

N_LAYERS, N_VISION_LAYERS = 4, 2
D_MODEL, D_VISION, D_VOCAB = 32, 16, 300
PATCH, SIDE, MERGED = 4, 16, 2
"""Sides of a patch and of a square picture in pixels; number of patches per side merged into one image token."""

PAD, BOS, IMAGE, VIDEO, START, END, ROW_END, FIRST_PLAIN = range(8)
TEXT_LENGTHS = (5, 9)


@dataclass(frozen=True)
class Inputs:
    """Model inputs for two prompts of different length, as a left-padded batch and alone."""

    batch: dict[str, Tensor]
    """Two rows, with one picture each."""
    singles: list[dict[str, Tensor]]
    """Each row alone, unpadded, with its own picture only."""
    text_batch: dict[str, Tensor] | None
    """Inputs without pictures; None if the family can't run without one."""
    text_singles: list[dict[str, Tensor]] | None


@dataclass(frozen=True)
class Family:
    """A kind of vision-language model, with builders of a tiny one and of its inputs."""

    name: str
    """Common spelling of the name, e.g. Qwen2.5-VL."""
    model_type: str
    build: Callable[[], PreTrainedModel]
    """Function that returns the model: float32, in eval mode, with the same weights each time."""
    inputs: Callable[[PreTrainedModel], Inputs]
    n_layers: int = N_LAYERS
    n_vision_layers: int = N_VISION_LAYERS


@dataclass(frozen=True)
class Picture:
    """A picture as a processor outputs it."""

    ids: list[int]
    """Token ids that represent it."""
    tensors: dict[str, Tensor]
    """Further inputs of the model; the first axis is pictures, tiles or patches."""


def _build(model_type: str, **config) -> PreTrainedModel:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **config), dtype=torch.float32)
        # Noise is added to the initial values: norms stay near one, and parameters that start at zero (query tokens,
        # positions, biases) have an effect.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.eval()


def _collate(rows: Sequence[Tensor], side: str = "right") -> Tensor:
    """Concatenate tensors along the first axis, zero-padded on one side of every other axis where they differ."""
    shape = [max(lengths) for lengths in zip(*(row.shape for row in rows), strict=True)]

    def widths(row: Tensor) -> list[int]:
        missing = [longest - length for longest, length in zip(shape[:0:-1], row.shape[:0:-1], strict=True)]
        return [width for n in missing for width in ((n, 0) if side == "left" else (0, n))]

    return torch.cat([pad(row, widths(row)) for row in rows])


def _batch(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    sides = dict.fromkeys(("input_ids", "attention_mask", "mm_token_type_ids"), "left")
    return {name: _collate([row[name] for row in rows], sides.get(name, "right")) for name in rows[0]}


def _plain_ids(n: int, random: torch.Generator) -> list[int]:
    """Return random ids of ordinary text, none of which represents a picture."""
    return torch.randint(FIRST_PLAIN, D_VOCAB, (n,), generator=random).tolist()


def _text_tensors(ids: list[int], typed: Iterable[int] | None) -> dict[str, Tensor]:
    input_ids = torch.tensor([ids])
    tensors = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if typed is not None:
        tensors["mm_token_type_ids"] = torch.isin(input_ids, torch.tensor(list(typed))).long()
    return tensors


def _family(
    name: str,
    model_type: str,
    pictures: Callable[[PretrainedConfig, torch.Generator], Sequence[Picture]],
    *,
    typed: Iterable[int] | None = None,
    needs_picture: bool = False,
    **config,
) -> Family:
    """Return a family from its config and its two pictures; `typed` are the ids of token type 1, if it uses types."""

    def inputs(model: PreTrainedModel) -> Inputs:
        random = torch.Generator().manual_seed(0)
        texts = [_plain_ids(n, random) for n in TEXT_LENGTHS]
        singles = [
            _text_tensors([BOS, *text[:2], *picture.ids, *text[2:]], typed) | picture.tensors
            for text, picture in zip(texts, pictures(model.config, random), strict=True)
        ]
        batch = _batch(singles)
        if "image_token_pooling" in batch:
            # Molmo2 numbers the patches of the whole batch consecutively.
            n_tokens = len(singles[0]["image_token_pooling"])
            batch["image_token_pooling"][n_tokens:] += singles[0]["pixel_values"].shape[:2].numel()
        if needs_picture:
            return Inputs(batch, singles, None, None)
        text_singles = [_text_tensors([BOS, *text], typed) for text in texts]
        return Inputs(batch, singles, _batch(text_singles), text_singles)

    return Family(name, model_type, lambda: _build(model_type, **config), inputs)


def _grid_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Return pictures of Qwen and GLM: flat patches of two frames each, with a grid that arranges them."""
    grids = torch.tensor([[1, 4, 4], [1, 4, 6]])
    return [
        Picture(
            [START, *[IMAGE] * (grid.prod().item() // MERGED**2), END],
            {
                "pixel_values": torch.randn(grid.prod(), 3 * 2 * PATCH**2, generator=random),
                "image_grid_thw": grid[None],
            },
        )
        for grid in grids
    ]


def _anyres_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Return pictures of LLaVA-OneVision: the whole picture and its tiles, whose rows of patches end with a newline."""
    per_side = SIDE // PATCH
    return [
        Picture(
            [IMAGE] * (per_side**2 + per_side * (per_side * n_tiles + 1)),
            {
                "pixel_values": torch.randn(1, 1 + n_tiles, 3, SIDE, SIDE, generator=random),
                "image_sizes": torch.tensor([[SIDE, SIDE * n_tiles]]),
                "batch_num_images": torch.tensor([1]),
            },
        )
        for n_tiles in (1, 2)
    ]


def _tiled_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Return pictures of InternVL: tiles of fixed size, one after another through the batch."""
    n_tokens = (SIDE // PATCH // MERGED) ** 2
    return [
        Picture(
            [START, *[IMAGE] * (n_tokens * n_tiles), END],
            {"pixel_values": torch.randn(n_tiles, 3, SIDE, SIDE, generator=random)},
        )
        for n_tiles in (1, 3)
    ]


def _masked_tile_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Return pictures of SmolVLM: tiles like InternVL's, with an axis of their own and a mask of valid pixels."""
    return [
        Picture(
            picture.ids,
            {
                "pixel_values": picture.tensors["pixel_values"][None],
                "pixel_attention_mask": torch.ones(1, len(picture.tensors["pixel_values"]), SIDE, SIDE).long(),
            },
        )
        for picture in _tiled_pictures(config, random)
    ]


def _natural_size_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Return pictures of Mistral3: in their own size, with a token at the end of each row of patches."""
    sizes = ((SIDE, SIDE), (SIDE, SIDE + PATCH * MERGED))
    pictures = []
    for height, width in sizes:
        row = [IMAGE] * (width // PATCH // MERGED)
        ids = [*[*row, ROW_END] * (height // PATCH // MERGED - 1), *row, END]
        pixels = torch.randn(1, 3, height, width, generator=random)
        pictures.append(Picture(ids, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}))
    return pictures


# Molmo2 has its picture tokens after the vocabulary: they can be read but not generated.
MOLMO_IMAGE, MOLMO_COLUMN, MOLMO_START, MOLMO_LOW_RES_START, MOLMO_END = range(D_VOCAB, D_VOCAB + 5)


def _pooled_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Return pictures of Molmo2: a small view and crops, and for each image token the patches pooled into it."""
    per_side = SIDE // PATCH
    n_pooled = per_side // MERGED

    def pooling(patches: Tensor) -> Tensor:
        return patches.unfold(0, MERGED, MERGED).unfold(1, MERGED, MERGED).reshape(-1, MERGED**2)

    def view(start: int, width: int) -> list[int]:
        return [start, *[*[MOLMO_IMAGE] * width, MOLMO_COLUMN] * n_pooled, MOLMO_END]

    pictures = []
    for n_crops in (1, 2):
        patches = torch.arange((1 + n_crops) * per_side**2).view(1 + n_crops, per_side, per_side)
        tensors = {
            "pixel_values": torch.randn(1 + n_crops, per_side**2, 3 * PATCH**2, generator=random),
            "image_token_pooling": torch.cat([pooling(patches[0]), pooling(torch.cat([*patches[1:]], dim=1))]),
            "image_grids": torch.tensor([[n_pooled, n_pooled, n_pooled, n_pooled * n_crops]]),
            "image_num_crops": torch.tensor([1 + n_crops]),
        }
        ids = [*view(MOLMO_LOW_RES_START, n_pooled), *view(MOLMO_START, n_pooled * n_crops)]
        pictures.append(Picture(ids, tensors))
    return pictures


def _queried_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Return pictures of InstructBLIP: a fixed number of Q-Former queries, conditioned on the instruction.

    Its own processor pads between picture and text, where RoPE counts the padding too; here padding comes first.
    """
    pictures = []
    for n in TEXT_LENGTHS:
        instruction = torch.tensor([_plain_ids(n, random)])
        tensors = {
            "pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=random),
            "qformer_input_ids": instruction,
            "qformer_attention_mask": torch.ones_like(instruction),
        }
        pictures.append(Picture([IMAGE] * config.num_query_tokens, tensors))
    return pictures


# Without an end token every generation has the requested length.
_TEXT = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 2 * D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": None,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_VISION = {"hidden_size": D_VISION, "intermediate_size": 2 * D_VISION}
_TOWER = _VISION | {"num_hidden_layers": N_VISION_LAYERS, "num_attention_heads": 2}
_SQUARE_TOWER = _TOWER | {"image_size": SIDE, "patch_size": PATCH}
_GRID_TOWER = _VISION | {"depth": N_VISION_LAYERS, "num_heads": 2, "patch_size": PATCH, "out_hidden_size": D_MODEL}
_QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}

FAMILIES = (
    _family(
        "Qwen2-VL",
        "qwen2_vl",
        _grid_pictures,
        typed=(IMAGE,),
        text_config=_TEXT | {"rope_parameters": _MROPE},
        # In this family hidden_size is the width after the merger, and embed_dim that of the tower.
        vision_config={
            "depth": N_VISION_LAYERS,
            "embed_dim": D_VISION,
            "hidden_size": D_MODEL,
            "num_heads": 2,
            "patch_size": PATCH,
        },
        **_QWEN_IDS,
    ),
    _family(
        "Qwen2.5-VL",
        "qwen2_5_vl",
        _grid_pictures,
        typed=(IMAGE,),
        text_config=_TEXT | {"rope_parameters": _MROPE},
        vision_config=_GRID_TOWER | {"window_size": PATCH * MERGED, "fullatt_block_indexes": [1]},
        **_QWEN_IDS,
    ),
    _family(
        "Qwen3-VL",
        "qwen3_vl",
        _grid_pictures,
        typed=(IMAGE,),
        text_config=_TEXT | {"head_dim": 8, "rope_parameters": _MROPE},
        # Two DeepStack features, added after the first two decoder blocks.
        vision_config=_GRID_TOWER | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        **_QWEN_IDS,
    ),
    _family(
        "LLaVA-OneVision",
        "llava_onevision",
        _anyres_pictures,
        text_config=_TEXT | {"model_type": "qwen2"},
        vision_config=_SQUARE_TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[SIDE, SIDE], [SIDE, 2 * SIDE]],
    ),
    _family(
        "InternVL",
        "internvl",
        _tiled_pictures,
        text_config=_TEXT | {"model_type": "qwen2"},
        vision_config=_SQUARE_TOWER,
        image_token_id=IMAGE,
        image_seq_length=(SIDE // PATCH // MERGED) ** 2,
    ),
    _family(
        "Mistral3",
        "mistral3",
        _natural_size_pictures,
        text_config=_TEXT | {"model_type": "mistral", "head_dim": 8},
        vision_config=_SQUARE_TOWER | {"model_type": "pixtral", "image_size": 2 * SIDE},
        image_token_index=IMAGE,
    ),
    _family(
        "GLM-4V",
        "glm4v",
        _grid_pictures,
        typed=(IMAGE,),
        text_config=_TEXT | {"rope_parameters": _MROPE},
        vision_config=_GRID_TOWER | {"image_size": SIDE},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
    ),
    _family(
        "SmolVLM",
        "smolvlm",
        _masked_tile_pictures,
        text_config=_TEXT | {"model_type": "llama"},
        vision_config=_SQUARE_TOWER,
        image_token_id=IMAGE,
    ),
    _family(
        "Molmo2",
        "molmo2",
        _pooled_pictures,
        # The markers of a picture are included: they all attend to one another, in both directions.
        typed=(MOLMO_IMAGE, MOLMO_COLUMN, MOLMO_START, MOLMO_LOW_RES_START, MOLMO_END),
        text_config=_TEXT | {"head_dim": 8, "additional_vocab_size": 8},
        vision_config=_TOWER
        | {"num_key_value_heads": 2, "head_dim": 8, "image_size": [SIDE, SIDE], "patch_size": PATCH},
        adapter_config=_VISION
        | {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "text_hidden_size": D_MODEL,
            "vision_feature_layer": [1, 0],
        },
        image_patch_id=MOLMO_IMAGE,
        image_start_token_id=MOLMO_START,
        low_res_image_start_token_id=MOLMO_LOW_RES_START,
        image_end_token_id=MOLMO_END,
    ),
    _family(
        "InstructBLIP",
        "instructblip",
        _queried_pictures,
        needs_picture=True,
        text_config=_TEXT | {"model_type": "llama"},
        vision_config=_SQUARE_TOWER,
        qformer_config=_TOWER | {"vocab_size": D_VOCAB, "max_position_embeddings": 32},
        image_token_index=IMAGE,
        num_query_tokens=4,
    ),
)
