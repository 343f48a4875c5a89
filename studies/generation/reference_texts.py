"""Reference texts: what the aligned LLM is shown for each prompt."""

from collections.abc import Sequence

from interp.guard import REFERENCES
from interp.inputs import TYPOGRAPHIC, Prompt, caption_prompt, transcription_prompt
from interp.vlm import VLM
from studies.generation.generate import Advance, Generation, _silent, answers


def transcriptions(vlm: VLM, prompts: Sequence[Prompt], how: Generation, advance: Advance = _silent) -> list[str]:
    """What the model reads in each prompt's picture."""
    return answers(vlm, [transcription_prompt(prompt) for prompt in prompts], how, advance)


def reference_texts(
    vlm: VLM, prompts: Sequence[Prompt], reference: str, how: Generation, advance: Advance = _silent
) -> list[str]:
    """q for each prompt: the text that the aligned LLM is shown.

    Args:
        reference: `prompt_text` (what the user wrote), `transcription` (what the VLM reads in the picture), `caption`
            (what it sees there), `prompt_text+transcription`, `prompt_text+caption`, or `oracle` (the true request: a
            bound, never to be selected). Where there is no picture, or nothing is read in it, the prompt's text stands.

    Raises:
        ValueError: no such reference.
    """
    if reference not in REFERENCES:
        raise ValueError(f"reference {reference!r} does not exist; expected one of {', '.join(REFERENCES)}")
    texts = [prompt.text for prompt in prompts]
    if reference == "prompt_text":
        return texts
    if reference == "oracle":
        return [prompt.query.text for prompt in prompts]
    pictured = [i for i, prompt in enumerate(prompts) if prompt.pictures]
    ask = caption_prompt if reference.endswith("caption") else transcription_prompt
    read = answers(vlm, [ask(prompts[i]) for i in pictured], how, advance)
    for i, text in zip(pictured, read, strict=True):
        if text:
            texts[i] = f"{texts[i]} {text}" if reference.startswith("prompt_text+") else text
    return texts


def reference_for(modality: str) -> str:
    """The text that says what is asked: beside the picture, or in it."""
    return "transcription" if modality in TYPOGRAPHIC else "prompt_text"
