"""Teach the vision tower to read: first which characters are in each patch, then which tokens begin there.

Each token of the text belongs to the patch in which its first letter is drawn. The image tokens then are, to the LLM,
about what the tokens of the text would be, with spaces where nothing is written. So a frozen LLM can read them, and
hardly any of the expensive training has to run through it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, normalize, pad
from transformers import CLIPVisionModel, PreTrainedTokenizerBase

from interp import typography
from studies.llava_qwen.networks import VisionSizes, vision_config
from studies.llava_qwen.texts import Texts
from studies.organism.lessons import LessonPicture
from studies.organism.losses import pixels

NOTHING = -1
"""Label of a patch in which no token begins."""
SCALE = 20.0
"""Factor of the cosines in the cross-entropy over tokens."""
N_SLOTS = 3
"""Characters of a patch that are learned: the first ones, from left to right."""
FIRST_CHARACTER, N_CHARACTERS = 32, 96
"""Code of the first printable character, and number of classes: 0 for none, then one for each."""
CHARACTER_SHARE = 0.3
"""Weight of the characters while tokens are learned."""
TOKENS_STEP = 256
"""Tokens of a batch are padded to a multiple of this: kernels are compiled for each new shape, and kept."""


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
        self.tower = CLIPVisionModel(vision_config(sizes))
        # Backwards, PyTorch's fused attention takes ten times as long on a CPU, 40 % of a step.
        self.tower.set_attn_implementation("eager")
        self.projector = Projector(sizes.d_vision, embedding.shape[1])
        self.characters = nn.Linear(sizes.d_vision, N_SLOTS * N_CHARACTERS)
        self._sizes, self._labels, self._embedding = sizes, labels, embedding
        ids = _known_tokens(labels.tokenizer, texts)
        self._ids = torch.tensor(ids)
        self._index = torch.full((len(embedding),), -1)
        self._index[self._ids] = torch.arange(len(ids))
        known = embedding[self._ids].float()
        self._directions, self._spread = normalize(known, dim=1), known.std()
        (self._space,) = labels.tokenizer(" ", add_special_tokens=False)["input_ids"]

    def features(self, pictures: list[LessonPicture]) -> Float[Tensor, "batch patch d_vision"]:
        """Return the output of the tower."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.tower(pixels(pictures, self._sizes.picture)).last_hidden_state[:, 1:]

    def image_tokens(self, features: Float[Tensor, "batch patch d_vision"]) -> Float[Tensor, "batch patch d_model"]:
        """Return what the LLM gets to see, in float32."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.projector(features).float()

    def character_loss(self, pictures: list[LessonPicture]) -> Float[Tensor, ""]:
        """Return the cross-entropy of the characters in each patch."""
        return self._character_loss(self.features(pictures), pictures)

    def _character_loss(self, features: Tensor, pictures: list[LessonPicture]) -> Float[Tensor, ""]:
        labels = torch.from_numpy(np.stack([self._labels.characters_of(picture) for picture in pictures]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.characters(features).float()
        return cross_entropy(logits.view(-1, N_CHARACTERS), labels.flatten())

    def loss(self, pictures: list[LessonPicture]) -> Float[Tensor, ""]:
        """Return how far the image tokens are from the embeddings of the tokens written there, or of a space."""
        labels = torch.from_numpy(np.stack([self._labels.of(picture) for picture in pictures]))
        features = self.features(pictures)
        tokens, is_written = self.image_tokens(features), labels != NOTHING
        wanted = self._embedding[torch.where(is_written, labels, self._space)].float()
        distance = ((tokens - wanted) / self._spread).square().mean(-1)
        # Tokens that only unusual neighbours give rise to have no index, and are learned by their distance alone.
        written, index = tokens[is_written], self._index[labels[is_written]]
        n_padding = -len(written) % TOKENS_STEP
        with torch.autocast("cpu", torch.bfloat16):
            cosines = normalize(pad(written, (0, 0, 0, n_padding)), dim=-1) @ self._directions.T
        named = cross_entropy(SCALE * cosines.float(), pad(index, (0, n_padding), value=-1), ignore_index=-1)
        named = named + CHARACTER_SHARE * self._character_loss(features, pictures)
        return named + 0.5 * distance[is_written].mean() + 0.5 * distance[~is_written].mean()

    @torch.no_grad()
    def accuracy(self, pictures: list[LessonPicture]) -> tuple[float, float]:
        """Return the share of tokens that are named right, and of empty patches that are a space."""
        labels = torch.from_numpy(np.stack([self._labels.of(picture) for picture in pictures]))
        tokens = self.image_tokens(self.features(pictures))
        nearest = self._ids[(normalize(tokens, dim=-1) @ self._directions.T).argmax(-1)]
        is_written = labels != NOTHING
        is_right = nearest == torch.where(is_written, labels, self._space)
        return is_right[is_written].float().mean().item(), is_right[~is_written].float().mean().item()


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
