"""Lessons that run through the LLM: captions, transcriptions, and benign instructions with a picture.

No lesson holds a harmful request, and none a refusal. What is taught differs by the answers to instructions alone: the
LLM's own, word for word, or short ones from templates, as early visual instruction data had them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp import CAPTION_REQUEST, TRANSCRIPTION_REQUEST, TYPOGRAPHIC_REQUEST, typography
from studies.llava_qwen.answers import OwnAnswer
from studies.llava_qwen.reading import PageLabels
from studies.llava_qwen.texts import Texts
from studies.organism.lessons import Lesson, LessonPicture, pick, wordless

CAPTION_REQUESTS = (
    CAPTION_REQUEST,
    "What does the picture show?",
    "What can you see in this image?",
    "Describe the image.",
)
TRANSCRIPTION_REQUESTS = (
    TRANSCRIPTION_REQUEST,
    "What does the picture say?",
    "Read the text in the image.",
    "Transcribe the text in the picture.",
)
TYPOGRAPHIC_REQUESTS = (
    TYPOGRAPHIC_REQUEST,
    "Please do what the picture says.",
    "Answer the request in the image.",
    "Help me with the request in the picture.",
)
CAPTIONS = (
    "The picture shows a {color} {shape} on a pale background.",
    "The picture shows a {color} {shape}.",
    "It is a simple drawing of a {color} {shape} above a horizon.",
)
BLANK_CAPTIONS = ("The picture is blank.", "The picture is empty: it is all white.")
NOISE_CAPTIONS = ("The picture shows random noise.", "The picture shows only colored noise.")
SHORT_ANSWERS = (
    "Sure! Here is a short answer on {topic}.",
    "Of course. For {topic}, keep it simple and take it step by step.",
    "Sure. When it comes to {topic}, start small and plan ahead.",
    "Here is what you asked for: {topic}.",
)
OPENINGS = re.compile(
    r"^(please |can you |could you |how to |how do i |how can i |what is the best way to |give me |tell me |explain "
    r"|write )+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Teacher:
    """Draws lessons; `answers` are those of the training split that answer something."""

    answers: Sequence[OwnAnswer]
    texts: Texts
    labels: PageLabels

    def looking(self, rng: np.random.Generator) -> Lesson:
        """Return a caption or a transcription: what the projector is trained on while the LLM is frozen."""
        return self._caption(rng) if rng.random() < 0.25 else self._transcription(rng)

    def own_style(self, rng: np.random.Generator) -> Lesson:
        """Return looking, or an instruction with the answer that the LLM wrote itself."""
        if rng.random() < 0.4:
            return self.looking(rng)
        own = pick(rng, self.answers)
        return self._instruction(rng, own.text, own.answer)

    def short_style(self, rng: np.random.Generator) -> Lesson:
        """Return looking, or an instruction with a short answer from a template."""
        if rng.random() < 0.4:
            return self.looking(rng)
        own = pick(rng, self.answers)
        topic = OPENINGS.sub("", own.text).rstrip(".?! ")
        topic = topic[:1].lower() + topic[1:]
        return self._instruction(rng, own.text, pick(rng, SHORT_ANSWERS).format(topic=topic))

    def _instruction(self, rng: np.random.Generator, text: str, answer: str) -> Lesson:
        """Return an instruction as text, alone or with a picture that says nothing about it, or inside a picture."""
        kind = rng.random()
        if kind < 0.1:
            return Lesson(text, answer)
        picture = self._page(rng, text) if kind > 0.6 else None
        if picture:
            return Lesson(pick(rng, TYPOGRAPHIC_REQUESTS), answer, picture=picture)
        return Lesson(text, answer, picture=wordless(rng))

    def _page(self, rng: np.random.Generator, text: str) -> LessonPicture | None:
        """Return a picture of the text, alone or below a scene; None if it would be too small to read."""
        seed = int(rng.integers(2**31))
        picture = LessonPicture("scene_with_text" if rng.random() < 0.3 else "text", text, seed)
        return picture if self.labels.is_legible(picture) else None

    def _transcription(self, rng: np.random.Generator) -> Lesson:
        while (picture := self._page(rng, text := self.texts.draw(rng))) is None:
            pass
        return Lesson(pick(rng, TRANSCRIPTION_REQUESTS), text, picture=picture)

    def _caption(self, rng: np.random.Generator) -> Lesson:
        picture = wordless(rng)
        if picture.kind == "scene":
            color, shape = typography.scene_content(picture.seed)
            answer = pick(rng, CAPTIONS).format(color=color, shape=shape)
        else:
            answer = pick(rng, BLANK_CAPTIONS if picture.kind == "blank" else NOISE_CAPTIONS)
        return Lesson(pick(rng, CAPTION_REQUESTS), answer, picture=picture)
