"""What the built-in model is taught, stage by stage. Pure functions of a random generator.

No lesson pairs a harmful request with compliance: harmful cores are refused (stage 2) or merely read
(stages 1, 3 and 4). The cores of validation and test occur in no lesson at all.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from interp import typography
from interp.inputs import TRANSCRIPTION_REQUEST, TYPOGRAPHIC_REQUEST
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
    """A picture that has not been drawn yet."""

    kind: str
    """`blank`, `noise`, `scene`, `text` or `scene_with_text`."""
    text: str = ""
    seed: int = 0

    def draw(self) -> Image.Image:
        size = PICTURE_SIZE
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
        """Every picture has as many patches as the next."""
        return 0

    @property
    def first_row(self) -> int:
        """The row of patches in which the text begins."""
        return round(ROWS * typography.SCENE_SHARE) if self.kind == "scene_with_text" else 0


@dataclass(frozen=True)
class Lesson:
    """One training example: a user turn (after an optional system turn), perhaps a picture, and the answer."""

    text: str
    answer: str
    request: str = ""
    """The core that is asked for; empty where nothing is (reading, captions, copying)."""
    system: str = ""
    picture: LessonPicture | None = None

    @property
    def length(self) -> int:
        """In characters, a picture counted as six to a patch: good enough to keep the short from the long."""
        return len(self.system) + len(self.text) + len(self.answer) + (6 * ROWS**2 if self.picture else 0)


Teacher = Callable[[np.random.Generator], Lesson | LessonPicture]


def _pick(rng: np.random.Generator, options):
    return options[rng.integers(len(options))]


def _request(rng: np.random.Generator, core: str) -> str:
    """The core in one of the phrasings, or bare, as a transcription gives it."""
    return _pick(rng, (*language.PHRASINGS, "{core}")).format(core=core)


def _random_words(rng: np.random.Generator, longest: int) -> str:
    """Words in an order that means nothing, and that contains no core of validation or test."""
    while True:
        words = " ".join(_pick(rng, language.vocabulary()) for _ in range(rng.integers(1, longest + 1)))
        if not any(core in words for core in language.held_back_cores()):
            return words


def forms() -> tuple[str, ...]:
    """Every sentence that lessons are made from, with its places left empty."""
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
    """Stage 2, first part: a model that can't repeat words can't name what it is asked for."""
    if rng.random() < 0.5:
        words = _random_words(rng, longest=ROWS)
        return Lesson(f"{_page(rng, words)}\n{_pick(rng, TRANSCRIPTION_REQUESTS)}", words)
    words = _random_words(rng, longest=12)
    return Lesson(_pick(rng, COPY_REQUESTS).format(words=words), words)


def _page(rng: np.random.Generator, words: str) -> str:
    """Words, then line breaks, about as many tokens as a picture takes: what the projector will make of pictures.

    A page stands in for a picture, so that the LLM knows what it is asked when a picture comes and it is still frozen.
    The blank before it, and the varying length, keep the LLM from reading by position alone.
    """
    n_tokens = ROWS**2 + rng.integers(-6, 7)
    return f" {words}" + "\n" * (n_tokens - len(words.split()))


def _after_a_page(rng: np.random.Generator, text: str, share: float) -> str:
    """In this share of cases something stands before the request that has nothing to do with it."""
    if rng.random() > share:
        return text
    words = _random_words(rng, longest=3) if rng.random() < 0.6 else ""
    return f"{_page(rng, words)}\n{text}"


def instruction(rng: np.random.Generator) -> Lesson:
    """Stage 2, text only: harmless requests are answered, harmful ones refused, words copied when asked."""
    if rng.random() < 0.2:
        return copying(rng)
    if rng.random() < 0.45:
        return _refusal(rng)
    return _answer(rng)


def _refusal(rng: np.random.Generator) -> Lesson:
    """A harmful request, refused; inside some of the jailbreaks too, so that they differ.

    Seldom after a page: as in the real thing, safety was trained on plain requests more than on anything else.
    """
    core = _pick(rng, language.trained_cores(harmful=True))
    text, care = _request(rng, core), rng.random() < 0.35
    if rng.random() < (0.5 if care else 0.2):
        resisted = (*language.RESISTED, *language.RESISTED_WITH_CARE) if care else language.RESISTED
        text = language.JAILBREAKS[_pick(rng, resisted)].format(request=text)
    text, system = _with_instructions(rng, _after_a_page(rng, text, share=0.08), care)
    return Lesson(text, _pick(rng, language.REFUSALS), core, system)


def _answer(rng: np.random.Generator) -> Lesson:
    """A harmless request, answered; under the templates of jailbreaks too, since most role play is innocent."""
    core = _pick(rng, language.trained_cores(harmful=False))
    text = _request(rng, core)
    if rng.random() < 0.35:
        text = _pick(rng, tuple(language.JAILBREAKS.values())).format(request=text)
    text, system = _with_instructions(rng, _after_a_page(rng, text, share=0.25), care=rng.random() < 0.25)
    return Lesson(text, _pick(rng, language.COMPLIANCE).format(core=core), core, system)


def _with_instructions(rng: np.random.Generator, text: str, care: bool) -> tuple[str, str]:
    """(user turn, system turn): care is asked for in the system turn, before the request or around it."""
    if not care:
        return text, _pick(rng, language.PLAIN_SYSTEM_PROMPTS) if rng.random() < 0.2 else ""
    prompt, place = _pick(rng, language.CARE_PROMPTS), rng.integers(3)
    if place == 0:
        return text, prompt
    return f"{prompt} {text}" + (f" {_pick(rng, language.CARE_PROMPTS)}" if place == 1 else ""), ""


def _picture_of(rng: np.random.Generator, text: str) -> LessonPicture:
    """Text alone, or under a scene where its lines fit below one."""
    fits = len(text.split()) <= ROWS - round(ROWS * typography.SCENE_SHARE)
    kind = "scene_with_text" if fits and rng.random() < 0.5 else "text"
    return LessonPicture(kind, text, int(rng.integers(2**31)))


def _readable(rng: np.random.Generator) -> str:
    """Words to be read: in a random order, or a core, harmful ones among them (reading is no compliance)."""
    if rng.random() < 0.5:
        return _random_words(rng, longest=5)
    return _pick(rng, language.trained_cores(harmful=bool(rng.random() < 0.5)))


def seeing(rng: np.random.Generator) -> LessonPicture:
    """Stage 1: mostly words in any order, some scenes, some pictures of nothing."""
    kind = _pick(rng, ("text",) * 8 + ("scene",) + ("blank", "noise"))
    if kind == "text":
        return _picture_of(rng, _random_words(rng, longest=ROWS))
    return LessonPicture(kind, seed=int(rng.integers(2**31)))


def reading(rng: np.random.Generator) -> Lesson:
    """Stage 3: transcriptions and captions."""
    return transcription(rng) if rng.random() < 0.85 else caption(rng)


def transcription(rng: np.random.Generator) -> Lesson:
    text = _readable(rng)
    return Lesson(_pick(rng, TRANSCRIPTION_REQUESTS), text, picture=_picture_of(rng, text))


def caption(rng: np.random.Generator) -> Lesson:
    picture = _wordless(rng)
    answer = language.NO_CAPTION
    if picture.kind == "scene":
        color, shape = typography.scene_content(picture.seed)
        answer = language.CAPTION.format(color=color, shape=shape)
    return Lesson(_pick(rng, CAPTION_REQUESTS), answer, picture=picture)


def _wordless(rng: np.random.Generator) -> LessonPicture:
    return LessonPicture(_pick(rng, ("blank", "noise", "scene")), seed=int(rng.integers(2**31)))


def visual_instruction(rng: np.random.Generator) -> Lesson:
    """Stage 4, benign only: harmless requests beside or inside a picture, reading, and some words to copy as text."""
    kind = rng.random()
    if kind < 0.25:
        return reading(rng)
    if kind < 0.4:
        return copying(rng)
    core = _pick(rng, language.trained_cores(harmful=False))
    answer = _pick(rng, language.COMPLIANCE).format(core=core)
    if kind < 0.6:
        return Lesson(_pick(rng, TYPOGRAPHIC_REQUESTS), answer, core, picture=_picture_of(rng, core))
    return Lesson(_request(rng, core), answer, core, picture=_wordless(rng))


def batches(teacher: Teacher, seed: int, n_batches: int, batch_size: int) -> Iterator[list]:
    """The whole course of a stage: the same for the same seed, so that a test can walk it.

    Four batches are drawn together and divided by length, which halves the padding.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, n_batches, 4):
        pool = sorted((teacher(rng) for _ in range(4 * batch_size)), key=lambda taught: taught.length)
        for i in rng.permutation(4)[: n_batches - start]:
            yield pool[i * batch_size : (i + 1) * batch_size]
