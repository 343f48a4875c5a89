"""Maps of where in a picture a model looks, by attention, gradients and patches of each image token.

Four measures, each by layer and place. Attention says what is read; it does not say what that changes (Jain & Wallace,
arXiv:1902.10186). Patching says what changes: it is the measure to believe, and the gradient is its first-order
estimate, at the price of one pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isqrt

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature

from interp.attention_maps import READ, attention_to, eager_copy, hooked
from interp.directions import SafetyDirection
from interp.errors import ModelError
from interp.evaluation_mode import evaluation_mode
from interp.forced import ForcedScore
from interp.inputs import Prompt, collate
from interp.labels import labels
from interp.patching import replaced
from interp.pictures import open_picture
from interp.vlm import VLM

__all__ = ["MEASURES", "CoordinateScore", "MapScore", "picture_map", "to_table"]

MEASURES = ("attention", "rollout", "gradient", "patching")
GREY = (127, 127, 127)


@dataclass(frozen=True)
class CoordinateScore:
    """The first coordinate of the last prompt token on a safety direction, after a layer."""

    direction: SafetyDirection
    layer: int


MapScore = Callable[[Float[Tensor, "batch d_vocab"]], Float[Tensor, " batch"]] | CoordinateScore
"""Score that a map explains: a function of the next token's log-probabilities, such as refusal, or a coordinate."""


def picture_map(
    vlm: VLM,
    prompts: Sequence[Prompt],
    score: MapScore,
    measures: Sequence[str] = MEASURES,
    donors: Sequence[Prompt] | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda n_prompts: None,
) -> xr.Dataset:
    """Map what the last prompt token takes from each place in the picture, layer by layer.

    Args:
        vlm: the model, which is not changed. Attention is read from a copy that shares its weights; a guard that is on
            changes the score's measures, but not attention.
        prompts: prompts with one picture each, which the model lays out alike.
        score: what `gradient` and `patching` explain.
        measures: some of `MEASURES`.
        donors: what the picture is compared with, one prompt each; by default the same prompt with a grey picture.
        layers: layers that are mapped; by default all.
        batch_size: image tokens patched in one pass. `patching` takes one row per layer and image token.
        advance: called after each prompt with 1.

    Returns:
        Each measure, `prompt layer row column`, and `score` and `donor` (`prompt`), in units of the score. `attention`
        is the share of the last token's attention, mean over heads. `rollout` is the same share through all layers up
        to this one, where half of each state stays in place (Abnar & Zuidema, arXiv:2005.00928, sec. 3). `gradient` is
        the gradient of the score times the difference of the token's `resid_post` from the donor's; times the state
        itself it would be 0 wherever the rest of the model reads through a norm, which ignores lengths. `patching` is
        the score that is lost if the donor's state replaces the token's.

    Raises:
        ValueError: a prompt without exactly one picture, an unknown measure or layer, donors that don't match, or
            pictures of different grids.
        ModelError: pictures are no tokens in this family or form no grid, or attention weights can't be read.
    """
    layers = list(range(vlm.n_layers)) if layers is None else list(layers)
    donors = [_emptied(prompt) for prompt in prompts] if donors is None else list(donors)
    _check(vlm, prompts, donors, score, measures, layers)
    with evaluation_mode(vlm.model):
        eager = eager_copy(vlm) if set(READ) & set(measures) else None
        maps, grids = [], []
        for prompt, donor in zip(prompts, donors, strict=True):
            pair = _Pair.of(vlm, prompt, donor)
            grids.append(pair.grid)
            values = attention_to(vlm, eager, pair.batch, pair.image) if eager else {}
            values |= _effects(pair, score, measures, layers, batch_size)
            maps.append(values)
            advance(1)
    if len(set(grids)) > 1:
        sizes = " and ".join(f"{rows} x {columns}" for rows, columns in sorted(set(grids)))
        raise ValueError(f"pictures of {sizes} tokens; expected one size: map them in separate calls")
    stacked = {name: np.stack([values[name] for values in maps]) for name in (*measures, "score", "donor")}
    of_layers = {name: stacked[name][:, layers] if name in READ else stacked[name] for name in measures}
    return xr.Dataset(
        {
            name: (("prompt", "layer", "row", "column"), values.reshape(len(prompts), len(layers), *grids[0]))
            for name, values in of_layers.items()
        }
        | {name: ("prompt", stacked[name]) for name in ("score", "donor")},
        coords={"layer": layers} | labels(prompts),
    )


def to_table(maps: xr.Dataset, prompt: int = 0) -> pd.DataFrame:
    """Return the maps of one prompt in long form.

    Args:
        maps: result of `picture_map`.
        prompt: number of the prompt.

    Returns:
        One row per measure, layer and place, with the columns `measure layer row column value`.
    """
    own = maps[[name for name in MEASURES if name in maps]].isel(prompt=prompt).reset_coords(drop=True)
    table = own.to_dataframe().reset_index()
    long = table.melt(["layer", "row", "column"], var_name="measure", value_name="value")
    return long[["measure", "layer", "row", "column", "value"]]


def _emptied(prompt: Prompt) -> Prompt:
    """Return the prompt with grey pictures of the same size."""
    grey = tuple(Image.new("RGB", open_picture(picture).size, GREY) for picture in prompt.pictures)
    return replace(prompt, pictures=grey)


def _check(
    vlm: VLM,
    prompts: Sequence[Prompt],
    donors: Sequence[Prompt],
    score: MapScore,
    measures: Sequence[str],
    layers: Sequence[int],
) -> None:
    """Check the input before anything runs.

    Raises:
        ValueError, ModelError: see `picture_map`.
    """
    if not vlm.family.pictures_in_sequence:
        raise ModelError(f"pictures are no tokens of {vlm.name!r}, whose layers attend to them from outside: no map")
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise ValueError(f"measures {list(measures)}; expected some of {', '.join(MEASURES)}")
    if not layers or not all(0 <= layer < vlm.n_layers for layer in layers):
        raise ValueError(f"layers {layers}; expected each from 0 to {vlm.n_layers - 1}")
    if len(donors) != len(prompts) or not prompts:
        raise ValueError(f"{len(donors)} donors for {len(prompts)} prompts; expected one each, and at least one")
    for prompt in (*prompts, *donors):
        if len(prompt.pictures) != 1:
            raise ValueError(f"a prompt with {len(prompt.pictures)} pictures; expected one, which the map is of")
    if isinstance(score, ForcedScore) and score.tokens:
        raise ValueError(
            f"a score that looks at a second token, after {len(score.tokens)} first ones; expected one of the first "
            "token alone, or a CoordinateScore"
        )
    if isinstance(score, CoordinateScore) and not 0 <= score.layer < vlm.n_layers:
        raise ValueError(f"a coordinate at layer {score.layer}; expected 0 to {vlm.n_layers - 1}")


@dataclass(frozen=True)
class _Pair:
    """A prompt and its donor, each as a batch of one, with the image tokens that both have at the same positions."""

    vlm: VLM
    prompt: Prompt
    batch: BatchFeature
    donor_batch: BatchFeature
    image: Int[Tensor, " token"]
    grid: tuple[int, int]

    @classmethod
    def of(cls, vlm: VLM, prompt: Prompt, donor: Prompt) -> "_Pair":
        """Process a prompt and its donor.

        Raises:
            ValueError: their pictures are not at the same positions.
            ModelError: the picture is no grid of tokens.
        """
        batch, donor_batch = collate(vlm, [prompt]), collate(vlm, [donor])
        is_image, is_donors = (vlm.image_positions(inputs["input_ids"])[0] for inputs in (batch, donor_batch))
        if is_image.shape != is_donors.shape or not torch.equal(is_image, is_donors):
            raise ValueError("a donor whose picture is not at the same tokens; expected the same text and picture size")
        image = is_image.nonzero().flatten()
        return cls(vlm, prompt, batch, donor_batch, image, _grid(vlm, batch, image.tolist()))


def _grid(vlm: VLM, batch: BatchFeature, image: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of the picture's tokens.

    Raises:
        ModelError: they form no grid, as where a family cuts pictures into tiles.
    """
    n = len(image)
    if "image_grid_thw" in batch:
        frames, height, width = batch["image_grid_thw"][0].tolist()
        # Qwen-VL merges squares of patches into one token: the side of such a square.
        merged = isqrt(frames * height * width // max(n, 1))
        if frames == 1 and merged and (height // merged) * (width // merged) == n:
            return height // merged, width // merged
    # Tiles come as further pictures, whose tokens might happen to make up a square.
    pixels = batch["pixel_values"]
    n_tiles = pixels.shape[:-3].numel() if pixels.dim() > 3 else 1
    # Families with a token at the end of each row put it between the tokens of the picture.
    starts = [0, *(i + 1 for i, (one, other) in enumerate(pairwise(image)) if other != one + 1), n]
    lengths = {end - start for start, end in pairwise(starts)}
    if n and n_tiles == 1 and not hasattr(vlm.model.config, "image_grid_pinpoints") and len(lengths) == 1:
        if len(starts) > 2:
            return len(starts) - 1, lengths.pop()
        if isqrt(n) ** 2 == n:
            return isqrt(n), isqrt(n)
    raise ModelError(f"{vlm.name!r} cuts a picture into {n} tokens that form no grid, such as tiles: no map over it")


def _effects(
    pair: _Pair, score: MapScore, measures: Sequence[str], layers: Sequence[int], batch_size: int
) -> dict[str, np.ndarray]:
    """Return the scores of a prompt and its donor, and what each image token does to the score."""
    with torch.no_grad():
        donor, donor_states = _scored(pair.vlm, pair.donor_batch, score)
    with torch.enable_grad():
        value, states = _scored(pair.vlm, pair.batch, score, with_gradients="gradient" in measures)
    effects = {"score": np.array(value[0].item()), "donor": np.array(donor[0].item())}
    # The two pictures are at the same positions, so a token's donor is the token in the same place.
    donor_states = [state[:, pair.image] for state in donor_states]
    if "gradient" in measures:
        slopes = torch.autograd.grad(value[0], [states[layer] for layer in layers], allow_unused=True)
        effects["gradient"] = np.stack(
            [
                _along(slope, states[layer].detach(), donor_states[layer], pair.image)
                for layer, slope in zip(layers, slopes, strict=True)
            ]
        )
    if "patching" in measures:
        lost = [value[0].item() - _patched(pair, score, layer, donor_states[layer], batch_size) for layer in layers]
        effects["patching"] = np.stack(lost)
    return effects


def _along(slope: Tensor | None, states: Tensor, donors: Tensor, image: Tensor) -> Float[np.ndarray, " token"]:
    """Return the slope of each image token times its difference from the donor; layers after the score have none."""
    if slope is None:
        return np.zeros(len(image))
    return ((states[:, image] - donors) * slope[:, image]).sum(-1)[0].double().cpu().numpy()


@torch.no_grad()
def _patched(
    pair: _Pair, score: MapScore, layer: int, states: Float[Tensor, "1 token d_model"], batch_size: int
) -> Float[np.ndarray, " token"]:
    """Return the score with each image token's state replaced by the donor's, one token at a time."""
    scores = []
    # Each row of a batch is the whole prompt, with another image token replaced.
    for rows in torch.arange(len(pair.image)).split(batch_size):
        batch = collate(pair.vlm, [pair.prompt] * len(rows))
        here = pair.image[rows][:, None].cpu()
        with replaced(pair.vlm.blocks[layer], here, torch.ones_like(here, dtype=torch.bool), states[0, rows][:, None]):
            scores.append(_scored(pair.vlm, batch, score)[0].double().cpu())
    return torch.cat(scores).numpy()


def _scored(
    vlm: VLM, batch: BatchFeature, score: MapScore, with_gradients: bool = False
) -> tuple[Float[Tensor, " batch"], list[Float[Tensor, "batch pos d_model"]]]:
    """Return the score, and the output of each block.

    Args:
        vlm: the model.
        batch: its inputs.
        score: see `picture_map`.
        with_gradients: the first block's output begins the graph, so that the vision tower has none.
    """
    states: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: tuple | Tensor) -> tuple | Tensor | None:
        state = output[0] if isinstance(output, tuple) else output
        if states or not with_gradients:
            states.append(state)
            return None
        states.append(state.detach().requires_grad_())
        return (states[0], *output[1:]) if isinstance(output, tuple) else states[0]

    with hooked((block, keep) for block in vlm.blocks):
        logits = vlm.model(**batch, use_cache=False).logits[:, -1]
    if isinstance(score, CoordinateScore):
        last = states[score.layer][:, -1].float()
        return last @ score.direction.basis[score.layer, 0].to(last), states
    return score(logits.float().log_softmax(-1)), states
