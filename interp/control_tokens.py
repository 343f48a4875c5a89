"""Control tokens inside what people write: `<image>`, `</s>`, `<|im_start|>` and the like.

A tokenizer takes them for its own, wherever they stand. A request that holds one would end its turn, open another, or
ask for a picture that is not there, and positions and references would be those of another prompt. So such text is
refused, in requests; in texts that a model wrote, it is left out.
"""

import re
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from interp.errors import ModelError
from interp.queries import Prompt
from interp.vlm import LLM, VLM

__all__ = [
    "check_no_control_tokens",
    "check_prompts",
    "control_tokens_in",
    "without_control_tokens",
    "without_tokens_of",
]

SHORTEST = 3
"""Letters of the shortest control token; some tokenizers pad with a sign that people write."""
_PATTERNS: WeakKeyDictionary[object, re.Pattern] = WeakKeyDictionary()


def control_tokens_in(model: VLM | LLM, text: str) -> list[str]:
    """Return the control tokens of a model that a text holds, each once, in their order."""
    return list(dict.fromkeys(_pattern(model).findall(text)))


def without_control_tokens(model: VLM | LLM, text: str) -> str:
    """Return a text, which a model wrote, without control tokens."""
    return _without(_pattern(model), text)


def check_no_control_tokens(
    model: VLM | LLM, texts: Iterable[str], what: str = "request", is_numbered: bool = True
) -> None:
    """Check that texts hold no control tokens.

    Args:
        model: the model that they are for.
        texts: what people wrote.
        what: what a text is called in the message.
        is_numbered: whether the message says which by its number, too.

    Raises:
        ModelError: one does; the message says which, by its number.
    """
    for number, text in enumerate(texts, start=1):
        if found := control_tokens_in(model, text):
            words, which = " and ".join(map(repr, found)), f"{what} {number}" if is_numbered else what
            raise ModelError(
                f"{which} ({_shortened(text)!r}) holds {words}, which {model.name!r} reads as a control token and not "
                "as text; write it another way, or leave it out"
            )


def check_prompts(model: VLM | LLM, prompts: Sequence[Prompt]) -> None:
    """Check that neither requests nor system turns nor earlier turns hold control tokens.

    Raises:
        ModelError: one does.
    """
    check_no_control_tokens(model, [prompt.text for prompt in prompts], "prompt")
    check_no_control_tokens(model, {prompt.system: None for prompt in prompts}, "system turn")
    earlier = (words for prompt in prompts for turn in prompt.earlier for words in turn)
    check_no_control_tokens(model, dict.fromkeys(earlier), "earlier turn")


def _pattern(model: VLM | LLM) -> re.Pattern:
    """Return what matches each control token of a model's tokenizer and processor."""
    # A tokenizer alone does not know the placeholders of a processor.
    owner = getattr(model, "processor", None) or model.tokenizer
    if owner not in _PATTERNS:
        tokens = control_tokens(model.tokenizer)
        # Processors replace their placeholders in the text, whether or not the tokenizer knows them.
        named = vars(owner).items() if owner is not model.tokenizer else ()
        tokens |= {value for name, value in named if name.endswith("_token") and isinstance(value, str)}
        _PATTERNS[owner] = _matching(tokens)
    return _PATTERNS[owner]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the tokens that mean something to a model: special ones, and others that its chat template writes."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens} | {
        token.content for token in added if token.special or token.content in template
    }


def without_tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text, for a model that is not one of ours, without the control tokens of its tokenizer."""
    if tokenizer not in _PATTERNS:
        _PATTERNS[tokenizer] = _matching(control_tokens(tokenizer))
    return _without(_PATTERNS[tokenizer], text)


def _matching(tokens: Iterable[str]) -> re.Pattern:
    # A plain word or a sign among them is a word or a sign.
    words = [token for token in tokens if len(token.strip()) >= SHORTEST and not token.strip().isalnum()]
    longest_first = sorted(words, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _without(pattern: re.Pattern, text: str) -> str:
    while pattern.search(text):
        # What is left may make up another one.
        text = pattern.sub("", text)
    return text


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
