"""One row of a published benchmark, whatever its file looks like."""

from dataclasses import dataclass, field

from interp.inputs import Prompt, Query
from interp.pictures import Picture

REFUSE, ANSWER, CAVEAT = "refuse", "answer", "caveat"
"""What a safe and useful model does with a row; `caveat`: warns, or says that it is not qualified to advise."""
EXPECTED = (REFUSE, ANSWER, CAVEAT)
DECIDES = "the picture decides what is right"
"""Why a row without its picture gets none drawn."""


@dataclass(frozen=True)
class Source:
    """Where a benchmark comes from, and what may be done with it."""

    name: str
    url: str
    licence: str
    """As stated by whoever published it; `none stated` where nobody did."""
    test_only: bool = False
    """The licence forbids training: nothing may be fitted on it."""


@dataclass(frozen=True)
class SkippedRow:
    """A row of a file that is no record, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Record:
    """One row: what is asked, how it reaches a model, and what is expected of it."""

    query: Query
    """Its text is the true request, which judges are shown; with label, category and pair."""
    id: str
    """As published, else the row's number from 0; unique in its benchmark."""
    expected: str
    """One of `EXPECTED`."""
    source: Source
    modality: str = "text"
    """How it is published: `text`; `scene`, `blank` or `noise` (a picture beside the request); `typographic`,
    `typographic_scene` (the request, or a part of it, in the picture)."""
    said: str = ""
    """What stands in the chat, beside the picture if there is one; by default the request itself."""
    picture: Picture | None = None
    picture_path: str = ""
    """As published, relative to the folder of pictures."""
    picture_place: str = ""
    """Where it lies, or would: pictures of one name in two folders are two."""
    needs_picture: bool = False
    """The picture decides what is right, so that none is drawn in its place."""
    is_stand_in: bool = False
    """The published picture was not at hand; one was drawn in its place."""
    answers: tuple[str, ...] = ()
    """Right answers, of a benchmark of what a model can do."""
    choices: tuple[str, ...] = ()
    """What a multiple-choice question offers; the right one is in `answers`."""
    about: dict[str, str] = field(default_factory=dict)
    """Other columns that somebody may want, by their published names."""

    @property
    def is_missing_picture(self) -> bool:
        return bool(self.picture_path) and self.picture is None

    def prompt(self) -> Prompt:
        """As it reaches a model.

        Raises:
            ValueError: its picture is missing.
        """
        if self.is_missing_picture:
            others = f"; none is drawn instead: {DECIDES}" if self.needs_picture else ", or stand-ins"
            raise ValueError(
                f"{self.source.name}, row {self.id}: its picture {self.picture_path!r} is missing; expected the folder "
                f"of pictures beside the file{others}"
            )
        pictures = () if self.picture is None else (self.picture,)
        return Prompt(self.query, self.modality, self.said or self.query.text, pictures)
