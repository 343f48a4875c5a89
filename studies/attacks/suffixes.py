"""Suffixes: a few ordinary words after a request, found by random search."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from interp import LLM, VLM, Prompt
from studies.attacks.search import AttackSetupError

Suffix = tuple[str, ...]
N_WORDS = 5
"""Words of a suffix."""
FEWEST_WORDS = 50
"""With fewer ordinary words than this, a tokenizer has none worth a search."""
WORD = re.compile("[Ġ▁]([a-z]{3,})")
"""A token that begins with a space, in byte-level BPE or SentencePiece, and then has small letters alone."""


def ordinary_words(model: VLM | LLM) -> tuple[str, ...]:
    """Return the words in small letters that are one token of the model's tokenizer, sorted; some are parts of words.

    Raises:
        AttackSetupError: there are none, or too few.
    """
    tokenizer = model.tokenizer
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    words = sorted({match[1] for token in tokens if token and (match := WORD.fullmatch(token))})
    if len(words) < FEWEST_WORDS:
        raise AttackSetupError(
            f"the tokenizer of {model.name!r} has {len(words)} tokens that are a word after a space; a suffix is "
            f"searched among at least {FEWEST_WORDS}: choose other attacks"
        )
    return tuple(words)


def with_suffix(prompt: Prompt, suffix: Suffix) -> Prompt:
    """Return the prompt with the words after its text; no words leave it as it is."""
    return replace(prompt, text=" ".join((prompt.text, *suffix)))


def random_suffix(words: Sequence[str], rng: np.random.Generator, n_words: int = N_WORDS) -> Suffix:
    """Draw a suffix, each word independently."""
    return tuple(words[i] for i in rng.integers(len(words), size=n_words))


def one_word_changed(words: Sequence[str]) -> Callable[[Suffix, np.random.Generator], Suffix]:
    """Return the proposal of a random search: one word, at a random place, becomes another random word."""

    def propose(suffix: Suffix, rng: np.random.Generator) -> Suffix:
        place, word = rng.integers(len(suffix)), words[rng.integers(len(words))]
        return (*suffix[:place], word, *suffix[place + 1 :])

    return propose
