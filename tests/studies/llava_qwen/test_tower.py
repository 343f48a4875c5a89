"""The heads of an untrained vision tower look where they are meant to."""

import torch

from studies.llava_qwen.networks import VisionSizes
from studies.llava_qwen.tower import GATHERING, LOOKING, N_LOOKING, build_tower


def test_heads_look_at_their_offsets_whatever_is_in_the_picture():
    torch.manual_seed(0)
    sizes = VisionSizes()
    tower = build_tower(sizes).eval()
    with torch.no_grad():
        attentions = tower(torch.rand(2, 3, sizes.picture, sizes.picture) * 2 - 1, output_attentions=True).attentions
    n_seen = 0
    for layer, attention in enumerate(attentions[:-1]):
        for head, offset in enumerate(LOOKING if layer < N_LOOKING else GATHERING):
            if offset is None:
                continue
            down, right = offset
            for row, column in ((5, 4), (6, 5)):
                own = 1 + row * sizes.n_rows + column
                wanted = 1 + (row + down) * sizes.n_rows + column + right
                assert attention[0, head, own].argmax() == wanted and attention[0, head, own, wanted] > 0.5
                n_seen += 1
    assert n_seen == 2 * 7 * 5


def test_a_tower_of_another_shape_begins_at_random():
    tower = build_tower(VisionSizes(d_vision=32, n_vision_layers=1))
    assert tower.config.hidden_size == 32
