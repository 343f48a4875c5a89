"""Training examples of the built-in model, stage by stage, as pure functions of a random generator.

No lesson pairs a harmful request with compliance: harmful cores are refused (stage 2) or merely read
(stages 1, 3 and 4). The cores of validation and test never occur in a lesson.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from interp import TRANSCRIPTION_REQUEST, TYPOGRAPHIC_REQUEST, typography
from studies.organism import language

PICTURE_SIZE = 96
PATCH_SIZE = 16
ROWS = PICTURE_SIZE // PATCH_SIZE

TYPOGRAPHIC_REQUESTS = (
    TYPOGRAPHIC_REQUEST,
    "Do what the picture says.",
    "Help me with the request in the picture.",
)
TRANSCRIPTION_REQUESTS = (
    TRANSCRIPTION_REQUEST,
    "What does the picture say?",
    "Read the text in the picture.",
)
CAPTION_REQUESTS = ("What does the picture show?", "Describe the picture.")
COPY_REQUESTS = (
    "Write down these words, and nothing else: {words}",
    "Repeat these words: {words}",
)


@dataclass(frozen=True)
class LessonPicture:
    """A description of a picture, from which it is drawn when it is needed."""

    kind: str
    """`blank`, `noise`, `scene`, `text` or `scene_with_text`."""
    text: str = ""
    seed: int = 0

    def draw(self, size: int = PICTURE_SIZE) -> Image.Image:
        match self.kind:
            case "blank":
                return typography.blank_picture(size)
            case "noise":
                return typography.noise_picture(size, self.seed)
            case "scene":
                return typography.scene_picture(size, self.seed)
            case "text":
                return typography.text_picture(self.text, size)
            case "scene_with_text":
                return typography.scene_with_text(self.text, size, self.seed)
        raise ValueError(f"unknown kind of picture {self.kind!r}")

    @property
    def length(self) -> int:
        """Zero: all pictures have the same number of patches, so batches need no sorting."""
        return 0

    @property
    def first_row(self) -> int:
        """Row of patches in which the text begins."""
        return round(ROWS * typography.SCENE_SHARE) if self.kind == "scene_with_text" else 0


@dataclass(frozen=True)
class Lesson:
    """One training example: a user turn, optionally with a system turn before it and a picture, and the answer."""

    text: str
    answer: str
    request: str = ""
    """The core that is asked for; empty for reading, captions and copying."""
    system: str = ""
    picture: LessonPicture | None = None

    @property
    def length(self) -> int:
        """Length in characters, a picture counted as six per patch: a rough key for batches of similar length."""
        return len(self.system) + len(self.text) + len(self.answer) + (6 * ROWS**2 if self.picture else 0)


Teacher = Callable[[np.random.Generator], Any]
"""Draws one example: a lesson, a picture, or whatever a loss takes that has a `length`."""


def pick(rng: np.random.Generator, options):
    return options[rng.integers(len(options))]


def request(rng: np.random.Generator, core: str) -> str:
    """Return the core in one of the phrasings, or bare, as in a transcription."""
    return pick(rng, (*language.PHRASINGS, "{core}")).format(core=core)


def _random_words(rng: np.random.Generator, longest: int) -> str:
    """Return words in a meaningless order that contains no core of validation or test."""
    while True:
        words = " ".join(pick(rng, language.vocabulary()) for _ in range(rng.integers(1, longest + 1)))
        if not any(core in words for core in language.held_back_cores()):
            return words


def forms() -> tuple[str, ...]:
    """Return every sentence that lessons are made from, with its placeholders left empty."""
    fixed = (
        *language.PHRASINGS,
        *language.REFUSALS,
        *language.COMPLIANCE,
        *language.JAILBREAKS.values(),
        *language.CARE_PROMPTS,
        *language.PLAIN_SYSTEM_PROMPTS,
        *language.COLORS,
        *language.SHAPES,
        language.CAPTION,
        language.NO_CAPTION,
        *TYPOGRAPHIC_REQUESTS,
        *TRANSCRIPTION_REQUESTS,
        *CAPTION_REQUESTS,
        *COPY_REQUESTS,
        "SYSTEM: USER: ASSISTANT:",
    )
    return tuple(re.sub(r"\{\w+\}", "", text) for text in fixed)


def copying(rng: np.random.Generator) -> Lesson:
    """Return a lesson in repeating words, the first part of stage 2: answers must name the request."""
    if rng.random() < 0.5:
        words = _random_words(rng, longest=ROWS)
        return Lesson(f"{_page(rng, words)}\n{pick(rng, TRANSCRIPTION_REQUESTS)}", words)
    words = _random_words(rng, longest=12)
    return Lesson(pick(rng, COPY_REQUESTS).format(words=words), words)


def _page(rng: np.random.Generator, words: str) -> str:
    """Return words followed by line breaks, about as many tokens as a picture has.

    A page replaces a picture in text-only training: the projector learns to output the same, and the LLM, which is
    frozen then, can already follow requests about it. The space before it and the varying length keep the LLM from
    reading by position alone.
    """
    n_tokens = ROWS**2 + rng.integers(-6, 7)
    return f" {words}" + "\n" * (n_tokens - len(words.split()))


def _after_a_page(rng: np.random.Generator, text: str, share: float) -> str:
    """Put an unrelated page before the request in a given share of cases."""
    if rng.random() > share:
        return text
    words = _random_words(rng, longest=3) if rng.random() < 0.6 else ""
    return f"{_page(rng, words)}\n{text}"


def instruction(rng: np.random.Generator) -> Lesson:
    """Return a text-only lesson of stage 2: an answer, a refusal of a harmful request, or words to copy."""
    if rng.random() < 0.2:
        return copying(rng)
    if rng.random() < 0.45:
        return _refusal(rng)
    return _answer(rng)


def _refusal(rng: np.random.Generator) -> Lesson:
    """Return a harmful request with a refusal; some requests are inside jailbreaks, so that jailbreaks differ.

    A page rarely precedes it: as in real models, safety training consists mostly of plain requests.
    """
    core = pick(rng, language.trained_cores(harmful=True))
    text, care = request(rng, core), rng.random() < 0.35
    if rng.random() < (0.5 if care else 0.2):
        resisted = (*language.RESISTED, *language.RESISTED_WITH_CARE) if care else language.RESISTED
        text = language.JAILBREAKS[pick(rng, resisted)].format(request=text)
    text, system = _with_instructions(rng, _after_a_page(rng, text, share=0.08), care)
    return Lesson(text, pick(rng, language.REFUSALS), core, system)


def _answer(rng: np.random.Generator) -> Lesson:
    """Return a harmless request with its answer; jailbreak templates are included, since most role play is harmless."""
    core = pick(rng, language.trained_cores(harmful=False))
    text = request(rng, core)
    if rng.random() < 0.35:
        text = pick(rng, tuple(language.JAILBREAKS.values())).format(request=text)
    text, system = _with_instructions(rng, _after_a_page(rng, text, share=0.25), care=rng.random() < 0.25)
    return Lesson(text, pick(rng, language.COMPLIANCE).format(core=core), core, system)


def _with_instructions(rng: np.random.Generator, text: str, care: bool) -> tuple[str, str]:
    """Return (user turn, system turn): care is asked for in the system turn, before the request or around it."""
    if not care:
        return text, pick(rng, language.PLAIN_SYSTEM_PROMPTS) if rng.random() < 0.2 else ""
    prompt, place = pick(rng, language.CARE_PROMPTS), rng.integers(3)
    if place == 0:
        return text, prompt
    return f"{prompt} {text}" + (f" {pick(rng, language.CARE_PROMPTS)}" if place == 1 else ""), ""


def picture_of(rng: np.random.Generator, text: str) -> LessonPicture:
    """Return a picture of the text alone, or of the text below a scene if its lines fit there."""
    fits = len(text.split()) <= ROWS - round(ROWS * typography.SCENE_SHARE)
    kind = "scene_with_text" if fits and rng.random() < 0.5 else "text"
    return LessonPicture(kind, text, int(rng.integers(2**31)))


def _readable(rng: np.random.Generator) -> str:
    """Return words to read: random words, or a core, possibly harmful, since reading is not compliance."""
    if rng.random() < 0.5:
        return _random_words(rng, longest=5)
    return pick(rng, language.trained_cores(harmful=bool(rng.random() < 0.5)))


def seeing(rng: np.random.Generator) -> LessonPicture:
    """Return a picture for stage 1: mostly words in any order, some scenes, some pictures of nothing."""
    kind = pick(rng, ("text",) * 8 + ("scene",) + ("blank", "noise"))
    if kind == "text":
        return picture_of(rng, _random_words(rng, longest=ROWS))
    return LessonPicture(kind, seed=int(rng.integers(2**31)))


def reading(rng: np.random.Generator) -> Lesson:
    """Return a lesson of stage 3: a transcription or a caption."""
    return transcription(rng) if rng.random() < 0.85 else caption(rng)


def transcription(rng: np.random.Generator) -> Lesson:
    """Return a picture with text, to be transcribed."""
    text = _readable(rng)
    return Lesson(pick(rng, TRANSCRIPTION_REQUESTS), text, picture=picture_of(rng, text))


def caption(rng: np.random.Generator) -> Lesson:
    """Return a picture without text, to be described."""
    picture = wordless(rng)
    answer = language.NO_CAPTION
    if picture.kind == "scene":
        color, shape = typography.scene_content(picture.seed)
        answer = language.CAPTION.format(color=color, shape=shape)
    return Lesson(pick(rng, CAPTION_REQUESTS), answer, picture=picture)


def wordless(rng: np.random.Generator) -> LessonPicture:
    return LessonPicture(pick(rng, ("blank", "noise", "scene")), seed=int(rng.integers(2**31)))


def visual_instruction(rng: np.random.Generator) -> Lesson:
    """Return a lesson of stage 4, benign only: a harmless request with or inside a picture, reading, or copying."""
    kind = rng.random()
    if kind < 0.25:
        return reading(rng)
    if kind < 0.4:
        return copying(rng)
    core = pick(rng, language.trained_cores(harmful=False))
    answer = pick(rng, language.COMPLIANCE).format(core=core)
    if kind < 0.6:
        return Lesson(pick(rng, TYPOGRAPHIC_REQUESTS), answer, core, picture=picture_of(rng, core))
    return Lesson(request(rng, core), answer, core, picture=wordless(rng))


def batches(teacher: Teacher, seed: int, n_batches: int, batch_size: int) -> Iterator[list]:
    """Yield all batches of a stage; the seed determines them, so a test can check every example.

    Args:
        teacher: draws one example.
        seed: seed of the random generator.
        n_batches: number of batches.
        batch_size: examples per batch.
    """
    rng = np.random.default_rng(seed)
    # Four batches are drawn together and divided by length, which halves the padding.
    for start in range(0, n_batches, 4):
        pool = sorted((teacher(rng) for _ in range(4 * batch_size)), key=lambda lesson: lesson.length)
        for i in rng.permutation(4)[: n_batches - start]:
            yield pool[i * batch_size : (i + 1) * batch_size]
