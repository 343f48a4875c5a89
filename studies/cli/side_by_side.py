"""Answers with and without a guard, side by side, as `vlm-guard guard apply` shows them."""

from dataclasses import dataclass
from pathlib import Path

from interp import LLM, MODALITIES, REFERENCES, VLM, Guard, Prompt, Query, run_guards, to_prompts
from studies.datasets import Columns, QueryFileError, read_queries
from studies.experiment.config import ConfigError
from studies.generation.generate import Generation, answer_texts
from studies.generation.reference_texts import reference_for, reference_texts
from studies.organism import language


@dataclass(frozen=True)
class ApplyOptions:
    """Queries, how they are shown to the model, and what the guard reads of them."""

    queries: tuple[Query, ...]
    modality: str
    reference: str

    @classmethod
    def of(
        cls,
        text: str | None,
        picture: Path | None,
        file: Path | None,
        limit: int,
        modality: str | None,
        reference: str | None,
        guards_own: str,
        columns: Columns | None = None,
    ) -> "ApplyOptions":
        """Check the values of the command line's options, before a model is loaded.

        Args:
            text: a single request, with or without a picture.
            picture: shown with the request.
            file: queries, of which the first `limit` of each class are used; by default the built-in validation
                queries.
            limit: at most this many queries per class.
            modality: by default `scene` if queries have pictures, else `blank`.
            reference: by default the guard's own; in typographic modalities, what is read in the picture.
            guards_own: the reference that the guard was saved with.
            columns: columns and labels of the file, if it has others than `text` and `harmful`.

        Raises:
            ConfigError: options that exclude each other, an empty text, an unknown modality or reference.
            QueryFileError: the file holds no queries.
        """
        if (text is not None and file) or (picture and text is None):
            raise ConfigError("expected --text, with or without --picture, or --queries, or none of them")
        if text is not None and not text.strip():
            raise ConfigError("--text is empty; expected a request")
        if picture and modality not in (None, "scene"):
            raise ConfigError(f"--picture with --modality {modality}; a picture of yours is shown in modality scene")
        queries = _queries_of(text, picture, file, limit, columns)
        modality = modality or ("scene" if any(query.picture for query in queries) else "blank")
        if modality not in MODALITIES:
            raise ConfigError(f"modality {modality!r} does not exist; expected one of {', '.join(MODALITIES)}")
        if reference is None:
            reference = reference_for(modality) if guards_own == "prompt_text" else guards_own
        honest = [name for name in REFERENCES if name != "oracle"]
        if reference not in honest:
            raise ConfigError(f"reference {reference!r} can't be used; expected one of {', '.join(honest)}")
        return cls(queries, modality, reference)


def _queries_of(
    text: str | None, picture: Path | None, file: Path | None, limit: int, columns: Columns | None
) -> tuple[Query, ...]:
    if text is not None:
        return (Query(text, harmful=False, picture=str(picture) if picture else None),)
    queries = read_queries(file, columns=columns) if file else language.queries("validation")
    if not queries:
        raise QueryFileError(f"{file} holds no queries; expected at least one row")
    return tuple(query for label in (True, False) for query in [q for q in queries if q.harmful == label][:limit])


@dataclass(frozen=True)
class SideBySide:
    """One prompt, answered without and with the guard."""

    prompt: Prompt
    reference: str
    """The text whose state the guard compares with."""
    is_open: bool
    """True if the guard acts on this prompt."""
    unguarded: str
    guarded: str

    def record(self) -> dict[str, str | bool]:
        """Return what is shown of it, by name."""
        query = self.prompt.query
        texts = {"request": query.text, "reference": self.reference}
        answers = {"unguarded": self.unguarded, "guarded": self.guarded}
        return texts | {"harmful": query.harmful, "gate_is_open": self.is_open} | answers


def apply(vlm: VLM | LLM, guard: Guard, options: ApplyOptions, generation: Generation) -> list[SideBySide]:
    """Answer greedily with and without the guard; a reference that is in the pictures is read from them first.

    Args:
        vlm: the model.
        guard: a guard for this model.
        options: queries, modality and reference.
        generation: length and batch size of the answers.
    """
    prompts = to_prompts(options.queries, options.modality, vlm.picture_size)
    texts = reference_texts(vlm, prompts, options.reference, generation)
    states = guard.read(vlm, texts)
    runs = run_guards(vlm, prompts, [None, guard], states, max_new_tokens=generation.max_new_tokens)
    answers = [answer_texts(vlm, tokens) for tokens in runs.tokens]
    return [
        SideBySide(prompt, text, is_open, unguarded.strip(), guarded.strip())
        for prompt, text, is_open, unguarded, guarded in zip(
            prompts, texts, guard.opens(states).tolist(), *answers, strict=True
        )
    ]
