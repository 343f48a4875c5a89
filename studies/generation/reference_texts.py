"""Reference texts: the text that the aligned LLM is shown for each prompt."""

from collections.abc import Sequence

from interp import LLM, REFERENCES, TYPOGRAPHIC, VLM, Prompt, caption_prompt, transcription_prompt
from interp.batches import Advance
from interp.stage_times import stage
from studies.generation.generate import Generation, answers, no_progress


def transcriptions(
    vlm: VLM | LLM, prompts: Sequence[Prompt], generation: Generation, advance: Advance = no_progress
) -> list[str]:
    """Have the model read the text in each prompt's picture.

    Args:
        vlm: the model that reads.
        prompts: each with a picture.
        generation: settings for generating the transcriptions.
        advance: progress callback.
    """
    return answers(vlm, [transcription_prompt(prompt) for prompt in prompts], generation, advance)


def reference_texts(
    vlm: VLM | LLM, prompts: Sequence[Prompt], reference: str, generation: Generation, advance: Advance = no_progress
) -> list[str]:
    """Return q for each prompt: the text that the aligned LLM is shown.

    Args:
        vlm: the model that reads or describes the pictures.
        prompts: a prompt without a picture, or whose picture yields no text, keeps its own text.
        reference: `prompt_text` (what the user wrote), `transcription` (what the VLM reads in the picture), `caption`
            (what it sees there), `prompt_text+transcription`, `prompt_text+caption`, or `oracle` (the true request: an
            upper bound, never selected).
        generation: settings for generating transcriptions and captions.
        advance: progress callback.

    Raises:
        ValueError: the reference does not exist.
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
    with stage("transcription"):
        readings = answers(vlm, [ask(prompts[i]) for i in pictured], generation, advance)
    for i, text in zip(pictured, readings, strict=True):
        if text:
            texts[i] = f"{texts[i]} {text}" if reference.startswith("prompt_text+") else text
    return texts


def reference_for(modality: str) -> str:
    """Return the reference that holds the request: the prompt's text, or the text in its picture."""
    return "transcription" if modality in TYPOGRAPHIC else "prompt_text"
