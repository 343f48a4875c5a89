"""The refusal direction as Arditi et al. take it (arXiv:2406.11717), compared with the one that they have published.

After the description in the paper and the settings of andyrdt/refusal_direction@9d852fa: 128 requests of each class,
drawn with a seed; those that the model answers the other way round are left out; the difference of means, in double
precision, of the inputs of each block at a position of the chat template's end.
"""

import random
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import LLM, VLM, Query, SafetyDirection, to_prompts, trace
from probes import cosine
from studies.generation.first_token import first_token_logprobs
from studies.generation.generate import Generation
from studies.presets.preset import PresetError, RefusalDirectionSpec

SITE = "resid_pre"


def drawn_anchors(harmful: Sequence[Query], harmless: Sequence[Query], n: int, seed: int) -> list[Query]:
    """Draw requests of each class as the published code does: harmful first, from one generator.

    Args:
        harmful: all harmful requests, in the order of their file.
        harmless: all harmless requests, likewise.
        n: number of requests of each class.
        seed: of the generator.

    Raises:
        PresetError: a class has fewer.
    """
    for name, queries in (("harmful", harmful), ("harmless", harmless)):
        if len(queries) < n:
            raise PresetError(f"{len(queries)} {name} requests to draw {n} anchors from; expected at least that many")
    generator = random.Random(seed)
    return [*generator.sample(list(harmful), n), *generator.sample(list(harmless), n)]


def keep_by_refusal(
    model: VLM | LLM, anchors: Sequence[Query], tokens: Sequence[int], generation: Generation
) -> list[Query]:
    """Return the harmful anchors that the model refuses and the harmless ones that it answers, by its first token.

    Args:
        model: the model.
        anchors: requests as text.
        tokens: tokens with which refusals open.
        generation: its batch size counts.

    Raises:
        PresetError: none is left of a class.
    """
    prompts = to_prompts(anchors, "text", model.picture_size)
    refusal = first_token_logprobs(model, prompts, generation)[:, list(tokens)].double().logsumexp(-1)
    refuses = (refusal > log(0.5)).tolist()
    kept = [query for query, refused in zip(anchors, refuses, strict=True) if refused == query.harmful]
    if len({query.harmful for query in kept}) < 2:
        raise PresetError("the model refuses all anchors or none, by their first tokens, so no direction can be fitted")
    return kept


def mean_differences(
    model: VLM | LLM, anchors: Sequence[Query], position: int, advance: Callable[[int], None] = lambda n_prompts: None
) -> Float[np.ndarray, "layer d_model"]:
    """Return harmful minus harmless at a position, for the input of each block.

    Args:
        model: the model.
        anchors: requests of both classes, as text.
        position: that of the token, negative from the end of the prompt.
        advance: called with the number of prompts finished after each batch.
    """
    prompts = to_prompts(anchors, "text", model.picture_size)
    states = trace(model, prompts, sites=(SITE,), tokens=(position,), advance=advance)[SITE].values[:, :, 0]
    harmful = np.array([query.harmful for query in anchors])
    return states[harmful].mean(0, dtype=np.float64) - states[~harmful].mean(0, dtype=np.float64)


def read_published(
    path: Path, settings: RefusalDirectionSpec, n_layers: int, d_model: int
) -> Float[np.ndarray, "layer d_model"]:
    """Read `mean_diffs.pt` at the preset's position; only tensors are loaded from it.

    Args:
        path: the file.
        settings: its `position` counts.
        n_layers: number of layers of the model.
        d_model: width of the model.

    Raises:
        PresetError: it is no tensor of (position, layer, d_model) for this model.
    """
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise PresetError(f"{path} can't be read as a tensor ({str(error).splitlines()[0]})") from None
    shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
    if not isinstance(tensor, Tensor) or tensor.ndim != 3 or tensor.shape[1:] != (n_layers, d_model):
        raise PresetError(f"{path} holds {shape}; expected a tensor of (position, {n_layers}, {d_model})")
    if len(tensor) < -settings.position:
        raise PresetError(f"{path} holds {len(tensor)} positions; expected at least {-settings.position}")
    return tensor[settings.position].double().numpy()


def cosine_at(
    layer: int, ours: Float[np.ndarray, "layer d_model"], theirs: Float[np.ndarray, "layer d_model"]
) -> float:
    """Return the cosine of two directions at a layer."""
    return float(cosine(ours[layer], theirs[layer]))


def as_direction(difference: Float[np.ndarray, " d_model"], n_layers: int) -> SafetyDirection:
    """Return a mean difference as the direction of every layer, for guards that take it from one place."""
    unit = torch.from_numpy(difference / np.linalg.norm(difference)).float()
    return SafetyDirection(unit.repeat(n_layers, 1, 1), "mean_diff")
