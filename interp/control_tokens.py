"""Control tokens inside what people write: `<image>`, `</s>`, `<|im_start|>` and the like.

A tokenizer takes them for its own, wherever they stand. A request that holds one would end its turn, open another, or
ask for a picture that is not there, and positions and references would be those of another prompt. So such text is
refused, in requests; in texts that a model wrote, it is left out.
"""

import re
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from interp.errors import ModelError
from interp.queries import Prompt
from interp.vlm import LLM, VLM

__all__ = [
    "check_no_control_tokens",
    "check_prompts",
    "control_tokens_in",
    "without_control_tokens",
]

_PATTERNS: WeakKeyDictionary[object, re.Pattern] = WeakKeyDictionary()


def control_tokens_in(model: VLM | LLM, text: str) -> list[str]:
    """Return the control tokens of a model that a text holds, each once, in their order."""
    return list(dict.fromkeys(_pattern(model).findall(text)))


def without_control_tokens(model: VLM | LLM, text: str) -> str:
    """Return a text, which a model wrote, without control tokens."""
    while control_tokens_in(model, text):
        # What is left may make up another one.
        text = _pattern(model).sub("", text)
    return text


def check_no_control_tokens(model: VLM | LLM, texts: Iterable[str], what: str = "request") -> None:
    """Check that texts hold no control tokens.

    Args:
        model: the model that they are for.
        texts: what people wrote.
        what: what a text is called in the message.

    Raises:
        ModelError: one does; the message says which, by its number.
    """
    for number, text in enumerate(texts, start=1):
        if found := control_tokens_in(model, text):
            words = " and ".join(map(repr, found))
            raise ModelError(
                f"{what} {number} ({_shortened(text)!r}) holds {words}, which {model.name!r} reads as a control token "
                "and not as text; write it another way, or leave it out"
            )


def check_prompts(model: VLM | LLM, prompts: Sequence[Prompt]) -> None:
    """Check that neither requests nor system turns hold control tokens.

    Raises:
        ModelError: one does.
    """
    check_no_control_tokens(model, [prompt.text for prompt in prompts], "prompt")
    check_no_control_tokens(model, {prompt.system: None for prompt in prompts}, "system turn")


def _pattern(model: VLM | LLM) -> re.Pattern:
    """Return what matches each control token of a model's tokenizer and processor."""
    tokenizer = model.tokenizer
    if tokenizer not in _PATTERNS:
        tokens = set(tokenizer.all_special_tokens)
        tokens |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        # Processors replace their placeholders in the text, whether or not the tokenizer knows them.
        processor = getattr(model, "processor", None)
        named = vars(processor).items() if processor is not None else ()
        tokens |= {value for name, value in named if name.endswith("_token") and isinstance(value, str)}
        # A plain word among them is a word.
        words = [token for token in tokens if token.strip() and not token.strip().isalnum()]
        longest_first = sorted(words, key=lambda token: (-len(token), token))
        _PATTERNS[tokenizer] = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    return _PATTERNS[tokenizer]


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
