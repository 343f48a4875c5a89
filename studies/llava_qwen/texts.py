"""Texts that the vision tower learns to read: benign instructions, the LLM's own answers to them, words, and noise."""

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from studies.organism.lessons import pick

CHARACTERS = string.ascii_letters + string.digits + "-,.'"
N_FREQUENT = 40_000
"""Tokens are merged in the order of their frequency: the first ones are whole words and frequent parts of words."""
RARITY = 3
"""Power by which rare parts of words are drawn less often: the first eighth of them half of the time."""
FLAT_RARITY = 1.3
"""The same where rare words are what is learned."""
MARKUP = re.compile(r"[*#`_]+")


@dataclass(frozen=True)
class Texts:
    """The material that texts are made of; no text of validation or test is among it."""

    instructions: Sequence[str]
    answers: Sequence[str]
    """Answers on one line, without markup, in ASCII."""
    words: Sequence[str]
    """Words of instructions and answers, with their punctuation."""
    parts: Sequence[str]
    """Tokens that consist of letters, the most frequent first: words, and parts of words."""

    @classmethod
    def of(cls, instructions: Sequence[str], answers: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> "Texts":
        """Collect the material.

        Args:
            instructions: those of the training split.
            answers: the LLM's own answers to them.
            tokenizer: the LLM's.
        """
        ascii_only = (answer.encode("ascii", "ignore").decode() for answer in answers)
        plain = [" ".join(MARKUP.sub("", answer).split()) for answer in ascii_only]
        words = sorted({word for text in (*instructions, *plain) for word in text.split()})
        tokens = tokenizer.batch_decode([[i] for i in range(min(N_FREQUENT, len(tokenizer)))])
        parts = dict.fromkeys(token.strip() for token in tokens if re.fullmatch(r" ?[A-Za-z]{2,}", token))
        return cls(tuple(instructions), tuple(filter(None, plain)), tuple(words), tuple(parts))

    def draw(self, rng: np.random.Generator) -> str:
        """Return up to about 20 words: an instruction, a part of an answer, unrelated words, or characters."""
        kind = rng.random()
        if kind < 0.35 or not self.answers:
            return pick(rng, self.instructions)
        if kind < 0.6:
            words = pick(rng, self.answers).split()
            length = int(rng.integers(3, 19))
            start = int(rng.integers(max(1, len(words) - length + 1)))
            return " ".join(words[start : start + length])
        if kind < 0.85:
            text = " ".join(self._word(rng) for _ in range(rng.integers(3, 14)))
            return text[:1].upper() + text[1:] + pick(rng, ("", ".", "?"))
        return " ".join(_characters(rng) for _ in range(rng.integers(2, 10)))

    def _word(self, rng: np.random.Generator) -> str:
        """Return a word, a part of one, or two parts: so that words which occur nowhere else are spelled as well."""
        kind = rng.random()
        if kind < 0.5:
            return pick(rng, self.words)
        word = self._part(rng)
        if kind > 0.9:
            word += self._part(rng).lower()
        word = word.lower() if rng.random() < 0.7 else word
        word += pick(rng, ",.;:?!") if rng.random() < 0.08 else ""
        return f"'{word}'" if rng.random() < 0.05 else word

    def _part(self, rng: np.random.Generator) -> str:
        """Return a word or a part of one: a frequent one more often, about by Zipf's law."""
        return self.parts[int(len(self.parts) * rng.random() ** RARITY)]


@dataclass(frozen=True)
class RareWords(Texts):
    """The same material, with mostly lists of words in which rare ones are nearly as frequent as others."""

    def draw(self, rng: np.random.Generator) -> str:
        """Return a list of words, or a text as before."""
        if rng.random() < 0.35:
            return super().draw(rng)
        words = [self.parts[int(len(self.parts) * rng.random() ** FLAT_RARITY)] for _ in range(rng.integers(6, 17))]
        words = [word.lower() if rng.random() < 0.7 else word for word in words]
        return " ".join(words)


def _characters(rng: np.random.Generator) -> str:
    return "".join(pick(rng, CHARACTERS) for _ in range(rng.integers(1, 9)))
