"""A CLIP vision tower that begins with an eye for print: its heads look at neighbouring patches from the start.

A token of the text is drawn over several patches, so reading means moving what is seen from patch to patch. Heads that
start at random learn to attend to "two patches to the right" very slowly. Here the first dimensions of the state hold
the place of the patch as sines and cosines, and queries are rotated keys, so that each head looks at a fixed offset
(the idea of rotary embeddings, arXiv:2104.09864). Everything is trained further, and the architecture is CLIP's own.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPVisionModel

from studies.llava_qwen.networks import VisionSizes, vision_config

N_FREQUENCIES = 8
FASTEST, SLOWEST = 2.2, 0.26
"""Radians per patch: the first distinguishes neighbours, the last one both ends of a row."""
GAIN = 1.2
"""Sharpness: attention to the right patch is about seventy times that to its neighbours."""
Offset = tuple[int, int]
"""Rows down and patches to the right."""
LOOKING: Sequence[Offset | None] = (None, (0, 1), (0, 2), (0, 3), (0, 4), (0, -1), (1, 0), (-1, 0))
"""Offsets of the heads of the first two layers; None for a head that starts at random. Large print is taller than a
patch, so they look up and down too."""
GATHERING: Sequence[Offset | None] = (None, (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, -1))
"""Offsets of the heads of the layers above, but the last."""
N_LOOKING = 2


@torch.no_grad()
def build_tower(sizes: VisionSizes) -> CLIPVisionModel:
    """Return an untrained vision tower; sizes with other heads than eight of 32 begin entirely at random.

    Args:
        sizes: those of the tower.
    """
    tower = CLIPVisionModel(vision_config(sizes))
    # Backwards, PyTorch's fused attention takes ten times as long on a CPU, 40 % of a step.
    tower.set_attn_implementation("eager")
    d_head = 4 * N_FREQUENCIES
    if sizes.d_vision != d_head * len(LOOKING):
        return tower
    embeddings = tower.embeddings
    embeddings.patch_embedding.weight[:d_head] = 0
    embeddings.position_embedding.weight[:, :d_head] = 0
    embeddings.position_embedding.weight[1:, :d_head] = _places(sizes.n_rows)
    for i, layer in enumerate(tower.encoder.layers[:-1]):
        attention = layer.self_attn
        # What a layer adds leaves the places alone, at first.
        attention.out_proj.weight[:d_head] = 0
        for head, offset in enumerate(LOOKING if i < N_LOOKING else GATHERING):
            if offset is None:
                continue
            rows = slice(head * d_head, (head + 1) * d_head)
            for projection, seen in ((attention.q_proj, _rotation(offset)), (attention.k_proj, torch.eye(d_head))):
                projection.weight[rows], projection.bias[rows] = 0, 0
                projection.weight[rows, :d_head] = GAIN * seen
    return tower


def _frequencies() -> Float[Tensor, " frequency"]:
    return FASTEST * (SLOWEST / FASTEST) ** (torch.arange(N_FREQUENCIES) / (N_FREQUENCIES - 1))


def _places(n_rows: int) -> Float[Tensor, "patch d_place"]:
    """Return cosines and sines of the column, then of the row, of each patch."""
    row, column = torch.meshgrid(torch.arange(n_rows), torch.arange(n_rows), indexing="ij")
    angles = [at.reshape(-1, 1) * _frequencies() for at in (column, row)]
    return torch.cat([wave for angle in angles for wave in (angle.cos(), angle.sin())], dim=1)


def _rotation(offset: Offset) -> Float[Tensor, "d_place d_place"]:
    """Return the matrix that turns the place of a patch into the place at an offset from it."""
    down, right = offset
    blocks = []
    for distance in (right, down):
        cos, sin = (torch.diag(wave(distance * _frequencies())) for wave in (torch.cos, torch.sin))
        blocks.append(torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)]))
    return torch.block_diag(*blocks)
