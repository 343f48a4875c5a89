"""Teach the vision tower to read: first to spell, then which tokens of the LLM begin in each patch.

Each token of the text belongs to the patch in which its first letter is drawn. The image tokens then are, to the LLM,
about what the tokens of the text would be, with spaces where nothing is written. So a frozen LLM can read them, and
hardly any of the expensive training has to run through it.

Spelling has two parts: which characters are in a patch and in the next ones to its right, and which characters the
token has that begins there. Both hold for words that were never seen; only the step from a token's characters to its
embedding has to be learned word by word.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, normalize, pad
from transformers import PreTrainedTokenizerBase

from interp import typography
from studies.llava_qwen.networks import VisionSizes
from studies.llava_qwen.texts import Texts
from studies.llava_qwen.tower import build_tower
from studies.organism.lessons import LessonPicture
from studies.organism.losses import pixels

NOTHING = -1
"""Label of a patch in which no token begins."""
SCALE = 20.0
"""Factor of the cosines in the cross-entropy over tokens."""
N_SLOTS = 3
"""Characters of a patch that are learned: the first ones, from left to right."""
N_NEARBY = 5
"""Patches whose characters are learned at each patch: its own, and the next ones to the right."""
TOKEN_LENGTH = 13
"""Characters of a token that are learned, the space before it included."""
FIRST_CHARACTER, N_CHARACTERS = 32, 96
"""Code of the first printable character, and number of classes: 0 for none, then one for each."""
EMPTY_WEIGHT = 0.2
"""Weight of places without a character."""
SPELLING_SHARE = 0.3
"""Weight of spelling while tokens are learned."""
DISTANCE_SHARE = 0.3
"""Weight of the distances from the embeddings of tokens, and from that of a space."""
ONE_IN = 9
"""Share of the known tokens that an image token is compared with, in addition to those of its batch."""


@dataclass(frozen=True)
class PageLabels:
    """Which token begins in which patch of a picture."""

    sizes: VisionSizes
    tokenizer: PreTrainedTokenizerBase

    def of(self, picture: LessonPicture) -> Int[np.ndarray, " patch"]:
        """Return the id of the token that begins in each patch, row by row; `NOTHING` elsewhere."""
        labels = np.full(self.sizes.n_rows**2, NOTHING)
        if picture.kind.startswith("scene"):
            self._label_scene(labels, picture)
        if picture.text:
            self._label_text(labels, picture.text, self._top(picture))
        return labels

    def characters_of(self, picture: LessonPicture) -> Int[np.ndarray, "patch slot"]:
        """Return the first characters of each patch, as classes; 0 where there is none."""
        labels = np.zeros((self.sizes.n_rows**2, N_SLOTS), dtype=np.int64)
        if picture.text:
            n_used = np.zeros(len(labels), dtype=int)
            for char, x, y in typography.drawn_characters(picture.text, self.sizes.picture, self._top(picture))[0]:
                patch = self._patch(x, y)
                number = ord(char) - FIRST_CHARACTER + 1
                if char != " " and number < N_CHARACTERS and n_used[patch] < N_SLOTS:
                    labels[patch, n_used[patch]] = number
                    n_used[patch] += 1
        return labels

    def _top(self, picture: LessonPicture) -> int:
        return typography.text_top(self.sizes.picture) if picture.kind == "scene_with_text" else 0

    def _label_text(self, labels: Int[np.ndarray, " patch"], text: str, top: int) -> None:
        """Set the labels of a text; a token whose patch is taken goes to the next free one."""
        drawn, _ = typography.drawn_characters(text, self.sizes.picture, top)
        line = "".join(char for char, _, _ in drawn)
        encoded = self.tokenizer(line, return_offsets_mapping=True, add_special_tokens=False)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            first = next((i for i in range(start, end) if line[i] != " "), start)
            _, x, y = drawn[first]
            free = np.flatnonzero(labels[(patch := self._patch(x, y)) :] == NOTHING)
            if len(free):
                labels[patch + free[0]] = token

    def _label_scene(self, labels: Int[np.ndarray, " patch"], picture: LessonPicture) -> None:
        """Set the labels of a scene, its colour and shape, in the middle of it."""
        size = self.sizes.picture
        height = typography.text_top(size) if picture.text else size
        tokens = self.tokenizer(f" {' '.join(typography.scene_content(picture.seed))}", add_special_tokens=False)
        first = self._patch(size / 2 - self.sizes.patch, height / 2)
        labels[first : first + len(tokens["input_ids"])] = tokens["input_ids"]

    def _patch(self, x: float, y: float) -> int:
        row, column = (min(int(at // self.sizes.patch), self.sizes.n_rows - 1) for at in (y, x))
        return row * self.sizes.n_rows + column

    def is_legible(self, picture: LessonPicture) -> bool:
        """Return whether no two lines of the text share a row of patches, which would mix them up."""
        _, height = typography.drawn_characters(picture.text, self.sizes.picture, self._top(picture))
        return height >= self.sizes.patch


class Projector(nn.Module):
    """The projector of LLaVA, with its names: two linear layers with a GELU between them."""

    def __init__(self, d_vision: int, d_model: int):
        super().__init__()
        self.linear_1 = nn.Linear(d_vision, d_model)
        self.linear_2 = nn.Linear(d_model, d_model)

    def forward(self, features: Float[Tensor, "*batch d_vision"]) -> Float[Tensor, "*batch d_model"]:
        return self.linear_2(gelu(self.linear_1(features)))


class PageReader(nn.Module):
    """Vision tower and projector, with what supervises them."""

    def __init__(self, sizes: VisionSizes, embedding: Float[Tensor, "token d_model"], labels: PageLabels, texts: Texts):
        """Build an untrained reader.

        Args:
            sizes: those of the tower.
            embedding: the LLM's input embedding.
            labels: tokens by patch.
            texts: what is read; the cross-entropy is over its tokens.
        """
        super().__init__()
        self.tower = build_tower(sizes)
        self.projector = Projector(sizes.d_vision, embedding.shape[1])
        self.nearby = nn.Linear(sizes.d_vision, N_NEARBY * N_SLOTS * N_CHARACTERS)
        self.spelled = nn.Linear(sizes.d_vision, TOKEN_LENGTH * N_CHARACTERS)
        self._sizes, self._labels, self._embedding = sizes, labels, embedding
        ids = _known_tokens(labels.tokenizer, texts)
        self._ids = torch.tensor(ids)
        self._index = torch.full((len(embedding),), -1)
        self._index[self._ids] = torch.arange(len(ids))
        known = embedding[self._ids].float()
        self._directions, self._spread = normalize(known, dim=1), known.std()
        (self._space,) = labels.tokenizer(" ", add_special_tokens=False)["input_ids"]
        self._spellings = _spellings(labels.tokenizer, len(embedding))
        with torch.no_grad():
            # It begins near a space everywhere: embeddings are a tenth as large as what random layers put out.
            self.projector.linear_2.weight.mul_(0.1)
            self.projector.linear_2.bias.copy_(embedding[self._space].float())

    def features(self, pictures: list[LessonPicture]) -> Float[Tensor, "batch patch d_vision"]:
        """Return the output of the tower."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.tower(pixels(pictures, self._sizes.picture)).last_hidden_state[:, 1:]

    def image_tokens(self, features: Float[Tensor, "batch patch d_vision"]) -> Float[Tensor, "batch patch d_model"]:
        """Return what the LLM gets to see, in float32."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.projector(features).float()

    def spelling_loss(self, pictures: list[LessonPicture]) -> Float[Tensor, ""]:
        """Return the cross-entropy of the characters in and near each patch, and of those of each token."""
        return self._spelling_loss(self.features(pictures), pictures, self._tokens(pictures))

    def _tokens(self, pictures: list[LessonPicture]) -> Int[Tensor, "batch patch"]:
        return torch.from_numpy(np.stack([self._labels.of(picture) for picture in pictures]))

    def _spelling_loss(
        self, features: Float[Tensor, "batch patch d_vision"], pictures: list[LessonPicture], tokens: Tensor
    ) -> Float[Tensor, ""]:
        n, is_written = self._sizes.n_rows, tokens != NOTHING
        characters = np.stack([self._labels.characters_of(picture) for picture in pictures])
        own = torch.from_numpy(characters).view(-1, n, n, N_SLOTS)
        nearby = torch.stack([pad(own[:, :, i:], (0, 0, 0, i)) for i in range(N_NEARBY)], dim=3)
        # Rows of patches without any text say nothing.
        has_text = (own > 0).any(-1).any(-1)[..., None].expand(-1, -1, n).flatten(1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.nearby(features[has_text]), self.spelled(features[is_written])
        wanted = nearby.flatten(1, 2)[has_text], self._spellings[tokens[is_written]]
        weight = torch.ones(N_CHARACTERS)
        weight[0] = EMPTY_WEIGHT
        near, spelled = (
            cross_entropy(part.float().view(-1, N_CHARACTERS), labels.flatten(), part_weight)
            for part, labels, part_weight in zip(logits, wanted, (weight, None), strict=True)
        )
        return near + spelled

    def loss(self, pictures: list[LessonPicture]) -> Float[Tensor, ""]:
        """Return how far the image tokens are from the embeddings of the tokens written there, or of a space."""
        labels = self._tokens(pictures)
        features = self.features(pictures)
        tokens, is_written = self.image_tokens(features), labels != NOTHING
        wanted = self._embedding[torch.where(is_written, labels, self._space)].float()
        distance = ((tokens - wanted) / self._spread).square().mean(-1)
        loss = self._naming_loss(tokens[is_written], labels[is_written])
        loss = loss + DISTANCE_SHARE * (distance[is_written].mean() + distance[~is_written].mean())
        if features.requires_grad:
            loss = loss + SPELLING_SHARE * self._spelling_loss(features, pictures, labels)
        return loss

    def _naming_loss(self, written: Float[Tensor, "token d_model"], labels: Int[Tensor, " token"]) -> Float[Tensor, ""]:
        """Return the cross-entropy of tokens among those of the batch and a part of all others.

        Tokens that only unusual neighbours give rise to have no index, and are learned by their distance alone.
        """
        index = self._index[labels]
        others = torch.arange(len(labels) % ONE_IN, len(self._ids), ONE_IN)
        candidates = torch.unique(torch.cat([index[index >= 0], others]))
        places = torch.full((len(self._ids) + 1,), NOTHING)
        places[candidates] = torch.arange(len(candidates))
        with torch.autocast("cpu", torch.bfloat16):
            cosines = normalize(written, dim=-1) @ self._directions[candidates].T
        return cross_entropy(SCALE * cosines.float(), places[index], ignore_index=NOTHING)


def _spellings(tokenizer: PreTrainedTokenizerBase, n: int) -> Int[Tensor, "token character"]:
    """Return the characters of each token as classes; 0 for none, and for what is not printable ASCII."""
    found = torch.zeros(n, TOKEN_LENGTH, dtype=torch.long)
    for i, text in enumerate(tokenizer.batch_decode([[i] for i in range(min(n, len(tokenizer)))])):
        numbers = [ord(char) - FIRST_CHARACTER + 1 for char in text[:TOKEN_LENGTH]]
        found[i, : len(numbers)] = torch.tensor([n if 0 < n < N_CHARACTERS else 0 for n in numbers], dtype=torch.long)
    return found


def _known_tokens(tokenizer: PreTrainedTokenizerBase, texts: Texts) -> list[int]:
    """Return the ids of all tokens of the texts and of single characters, with and without a space before them."""
    characters = map(chr, range(32, 127))
    material: Iterable[str] = (*texts.instructions, *texts.answers, *texts.words, *texts.parts, *characters)
    spaced = [f" {text}" for text in (*texts.words, *texts.parts, *map(chr, range(33, 127)))]
    ids: set[int] = set()
    for encoded in tokenizer([*material, *spaced], add_special_tokens=False)["input_ids"]:
        ids.update(encoded)
    return sorted(ids)


def seeing(rng: np.random.Generator, texts: Texts, labels: PageLabels) -> LessonPicture:
    """Return a picture: mostly text, also below a scene; some scenes, some pictures of nothing."""
    kind, seed = rng.random(), int(rng.integers(2**31))
    if kind < 0.07:
        return LessonPicture("noise" if kind < 0.05 else "blank", seed=seed)
    if kind < 0.15:
        return LessonPicture("scene", seed=seed)
    while True:
        picture = LessonPicture("scene_with_text" if kind < 0.35 else "text", texts.draw(rng), seed)
        if labels.is_legible(picture):
            return picture
