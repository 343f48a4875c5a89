"""Tiny random models of the families that the toolkit claims to read, and hand-made inputs for them.

No processor and no tokenizer: the ids stand for nothing, but a picture takes the places that its family gives it.
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
"""In pixels: a patch, a square picture; and how many patches a side are merged into one image token."""

PAD, BOS, IMAGE, VIDEO, START, END, ROW_END, FIRST_PLAIN = range(8)
TEXT_LENGTHS = (5, 9)


@dataclass(frozen=True)
class Inputs:
    """Model inputs of two prompts of different length, left-padded, and the same prompts alone."""

    batch: dict[str, Tensor]
    """Two rows, with one picture each."""
    singles: list[dict[str, Tensor]]
    """Each row alone, unpadded, with its own picture only."""
    text_batch: dict[str, Tensor] | None
    """Without any picture; None where the family cannot run without one."""
    text_singles: list[dict[str, Tensor]] | None


@dataclass(frozen=True)
class Family:
    name: str
    """As people write it: "Qwen2.5-VL"."""
    model_type: str
    build: Callable[[], PreTrainedModel]
    """float32, eval mode, the same weights each time."""
    inputs: Callable[[PreTrainedModel], Inputs]
    n_layers: int = N_LAYERS
    n_vision_layers: int = N_VISION_LAYERS


@dataclass(frozen=True)
class Picture:
    """What a processor makes of a picture."""

    ids: list[int]
    """What stands for it among the token ids."""
    tensors: dict[str, Tensor]
    """What the model is given beside the token ids; the first axis counts pictures, tiles or patches."""


def _build(model_type: str, **config) -> PreTrainedModel:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **config), dtype=torch.float32)
        # Added, not drawn anew: norms stay near one, and what starts at zero (query tokens, positions, biases) counts.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.eval()


def _collate(rows: Sequence[Tensor], side: str = "right") -> Tensor:
    """One tensor from several along the first axis, with zeros on one side of each other axis where they differ."""
    shape = [max(lengths) for lengths in zip(*(row.shape for row in rows), strict=True)]

    def widths(row: Tensor) -> list[int]:
        missing = [longest - length for longest, length in zip(shape[:0:-1], row.shape[:0:-1], strict=True)]
        return [width for n in missing for width in ((n, 0) if side == "left" else (0, n))]

    return torch.cat([pad(row, widths(row)) for row in rows])


def _batch(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    sides = dict.fromkeys(("input_ids", "attention_mask", "mm_token_type_ids"), "left")
    return {name: _collate([row[name] for row in rows], sides.get(name, "right")) for name in rows[0]}


def _plain_ids(n: int, random: torch.Generator) -> list[int]:
    """Ids of ordinary text: none of them means a picture."""
    return torch.randint(FIRST_PLAIN, D_VOCAB, (n,), generator=random).tolist()


def _text_tensors(ids: list[int], marked: Iterable[int] | None) -> dict[str, Tensor]:
    input_ids = torch.tensor([ids])
    tensors = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if marked is not None:
        tensors["mm_token_type_ids"] = torch.isin(input_ids, torch.tensor(list(marked))).long()
    return tensors


def _family(
    name: str,
    model_type: str,
    pictures: Callable[[PretrainedConfig, torch.Generator], Sequence[Picture]],
    *,
    marked: Iterable[int] | None = None,
    needs_picture: bool = False,
    **config,
) -> Family:
    """A family from its config and its two pictures; `marked` are the ids of token type 1, if it wants types."""

    def inputs(model: PreTrainedModel) -> Inputs:
        random = torch.Generator().manual_seed(0)
        texts = [_plain_ids(n, random) for n in TEXT_LENGTHS]
        singles = [
            _text_tensors([BOS, *text[:2], *picture.ids, *text[2:]], marked) | picture.tensors
            for text, picture in zip(texts, pictures(model.config, random), strict=True)
        ]
        batch = _batch(singles)
        if "image_token_pooling" in batch:
            # Molmo2 counts patches through the whole batch.
            n_tokens = len(singles[0]["image_token_pooling"])
            batch["image_token_pooling"][n_tokens:] += singles[0]["pixel_values"].shape[:2].numel()
        if needs_picture:
            return Inputs(batch, singles, None, None)
        text_singles = [_text_tensors([BOS, *text], marked) for text in texts]
        return Inputs(batch, singles, _batch(text_singles), text_singles)

    return Family(name, model_type, lambda: _build(model_type, **config), inputs)


def _grid_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Qwen and GLM: flat patches of two frames each, and a grid that says how they lie."""
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
    """LLaVA-OneVision: the whole picture and its tiles, with a newline after each row of patches of the tiles."""
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
    """InternVL: tiles of fixed size, one after another through the batch."""
    n_tokens = (SIDE // PATCH // MERGED) ** 2
    return [
        Picture(
            [START, *[IMAGE] * (n_tokens * n_tiles), END],
            {"pixel_values": torch.randn(n_tiles, 3, SIDE, SIDE, generator=random)},
        )
        for n_tiles in (1, 3)
    ]


def _masked_tile_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """SmolVLM: tiles as InternVL's, but with an axis of their own, and a mask of the pixels that are there."""
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
    """Mistral3: pictures in their own size, with a token at the end of each row of patches."""
    sizes = ((SIDE, SIDE), (SIDE, SIDE + PATCH * MERGED))
    pictures = []
    for height, width in sizes:
        row = [IMAGE] * (width // PATCH // MERGED)
        ids = [*[*row, ROW_END] * (height // PATCH // MERGED - 1), *row, END]
        pixels = torch.randn(1, 3, height, width, generator=random)
        pictures.append(Picture(ids, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}))
    return pictures


# Molmo2 keeps the tokens of pictures behind the vocabulary: they can be read, never written.
MOLMO_IMAGE, MOLMO_COLUMN, MOLMO_START, MOLMO_LOW_RES_START, MOLMO_END = range(D_VOCAB, D_VOCAB + 5)


def _pooled_pictures(config: PretrainedConfig, random: torch.Generator) -> list[Picture]:
    """Molmo2: a small view and crops, and for each image token the patches that are pooled into it."""
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
    """InstructBLIP: a fixed number of queries a picture, which the Q-Former asks with the instruction in mind.

    Its own processor pads between picture and text, where RoPE counts the padding too; here it stands in front.
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


# Without an end token each generation has the length that was asked for.
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
        marked=(IMAGE,),
        text_config=_TEXT | {"rope_parameters": _MROPE},
        # Here hidden_size is the width after the merger, and embed_dim that of the tower.
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
        marked=(IMAGE,),
        text_config=_TEXT | {"rope_parameters": _MROPE},
        vision_config=_GRID_TOWER | {"window_size": PATCH * MERGED, "fullatt_block_indexes": [1]},
        **_QWEN_IDS,
    ),
    _family(
        "Qwen3-VL",
        "qwen3_vl",
        _grid_pictures,
        marked=(IMAGE,),
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
        marked=(IMAGE,),
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
        # The markers of a picture too: all of them see one another, in both directions.
        marked=(MOLMO_IMAGE, MOLMO_COLUMN, MOLMO_START, MOLMO_LOW_RES_START, MOLMO_END),
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
