"""Every benchmark: what its files look like, what reads them, and where its pictures are.

To add one, append an `Entry` to `ENTRIES`; see `studies.datasets`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from interp import typography
from interp.pictures import LazyPicture
from studies.bookkeeping.suggestions import did_you_mean
from studies.datasets import ability_sets as ability
from studies.datasets import paired_sets as paired
from studies.datasets import picture_sets as pictured
from studies.datasets import text_sets as text
from studies.datasets.columns import Columns
from studies.datasets.files import VALUE, DataFile
from studies.datasets.opening import stem_of
from studies.datasets.record import ANSWER, REFUSE, Record, SkippedRow, Source
from studies.datasets.table import is_own, own_rows

STAND_IN_SIZE = 336
"""Pixels, as in the input of LLaVA-1.5."""


@dataclass(frozen=True)
class Form:
    """One format in which a benchmark is published: a table, in a file of any kind, or a list of texts."""

    keys: tuple[str, ...]
    """Columns, or keys of the first row, that are always there; there may be more. `(VALUE,)` is a list of texts."""
    fits: Callable[[DataFile], bool] = lambda file: True
    """A further condition on the contents."""
    name_pattern: str = ""
    """Regular expression for the file's name, if contents don't identify the benchmark; not used if the user does."""

    def is_possible(self, file: DataFile) -> bool:
        """Return whether the contents fit."""
        if self.keys == (VALUE,):
            return file.keys == {VALUE} and text.is_texts(file) and self.fits(file)
        return file.keys >= set(self.keys) and self.fits(file)

    def matches(self, file: DataFile) -> bool:
        """Return whether contents and name fit."""
        return self.is_possible(file) and bool(re.search(self.name_pattern, file.stem, re.IGNORECASE))


def scene_stand_in(record: Record) -> LazyPicture:
    return LazyPicture(typography.scene_picture, (STAND_IN_SIZE, record.query.seed))


def stand_in_by_modality(record: Record) -> LazyPicture:
    """Draw a stand-in of the record's modality, in MM-SafetyBench's layout for its records, else in FigStep's."""
    query = record.query
    if record.modality == "typographic_scene":
        return LazyPicture(typography.mm_safety_scene, (query.rendered, query.seed))
    if record.modality == "typographic" and record.source == pictured.MM_SAFETYBENCH:
        return LazyPicture(typography.mm_safety_picture, (query.rendered,))
    if record.modality == "typographic":
        return LazyPicture(typography.figstep_picture, (query.rendered,))
    if record.modality == "blank":
        return LazyPicture(typography.blank_picture, (STAND_IN_SIZE,))
    if record.modality == "noise":
        return LazyPicture(typography.noise_picture, (STAND_IN_SIZE, query.seed))
    return scene_stand_in(record)


def everything(files: Sequence[DataFile]) -> Sequence[DataFile]:
    return files


def first_named(pattern: str) -> Callable[[Sequence[DataFile]], Sequence[DataFile]]:
    """Return a choice for folders that hold a set and parts of it: the files whose names match, else all files."""
    return lambda files: [file for file in files if re.search(pattern, file.stem, re.IGNORECASE)] or files


def _mossbench_files(files: Sequence[DataFile]) -> Sequence[DataFile]:
    """Choose the files with metadata; the flat table has the same rows."""
    return [file for file in files if "metadata" in file.keys] or files


@dataclass(frozen=True)
class Entry:
    """A benchmark as it is found on disk."""

    source: Source
    forms: tuple[Form, ...]
    read: Callable[[DataFile], Iterable[Record | SkippedRow]]
    """Turns the rows of a file into records."""
    folders: tuple[str, ...] = (".",)
    """Folders that may hold its pictures, relative to the file; `{stem}` is the file's name without suffix."""
    has_several_files: bool = False
    """True if several files make up the benchmark; otherwise exactly one is read."""
    choose: Callable[[Sequence[DataFile]], Sequence[DataFile]] = everything
    """Chooses which of a folder's files are read."""
    needs_unique_ids: bool = False
    """True if pictures, partners or answers are found by id, so that a repeated id is an error."""
    stand_in: Callable[[Record], LazyPicture] = scene_stand_in
    """Draws a picture in place of a missing one."""
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.source.name

    def is_form_of(self, file: DataFile) -> bool:
        """Return whether a file belongs to the benchmark by its contents and, where these don't suffice, its name."""
        return any(form.matches(file) for form in self.forms)

    def picture_folders(self, path: Path) -> list[Path]:
        """Return the folders in which pictures of a file are looked for.

        Raises:
            ValueError: a folder is a link that leads outside the data folder.
        """
        roots = []
        for folder in self.folders:
            root = path.parent / folder.format(stem=stem_of(path))
            data = path.parent / Path(*(part for part in Path(folder).parts if part == ".."))
            if not root.resolve().is_relative_to(data.resolve()):
                raise ValueError(f"folder of pictures {str(root)!r} is a link that leads outside the data folder")
            roots.append(root)
        return roots


def read_own(file: DataFile, columns: Columns | None = None) -> Iterator[Record]:
    """Read a table of the user's own, see `read_queries`; a row with a picture is shown next to it."""
    source = Source(file.stem, "", "the user's own")
    for i, (_, query, embedded) in enumerate(own_rows(file, columns or Columns())):
        path = str(Path(query.picture).relative_to(file.path.parent)) if query.picture else ""
        path = embedded.name if embedded else path
        expected, modality = REFUSE if query.harmful else ANSWER, "scene" if path else "text"
        yield Record(query, str(i), expected, source, modality, picture_path=path)


OWN = Source("own", "", "the user's own")
STEMS = "|".join((*text.HARMFUL_STEMS, *text.HARMLESS_STEMS))

ENTRIES = (
    Entry(
        text.ADVBENCH,
        (
            Form(("goal", "target"), text.is_advbench),
            Form(text.HARMBENCH_COLUMNS, text.in_harmbench_form("advbench")),
            Form((VALUE,), name_pattern="advbench"),
        ),
        text.read_advbench,
        choose=first_named("harmful_behaviors$"),
    ),
    Entry(
        text.XSTEST,
        (Form(("prompt", "type", "focus"), text.is_xstest),),
        text.read_xstest,
        choose=first_named("^xstest_prompts$"),
        needs_unique_ids=True,
    ),
    Entry(
        pictured.FIGSTEP,
        (Form(("dataset", "category_id", "task_id", "category_name", "question", "instruction")),),
        pictured.read_figstep,
        (".", "../images/{stem}", "../images/SafeBench", "images/{stem}", "images/SafeBench"),
        choose=first_named("^safebench$"),
        needs_unique_ids=True,
        stand_in=stand_in_by_modality,
        aliases=("SafeBench", "FigStep-Tiny"),
    ),
    Entry(
        pictured.MM_SAFETYBENCH,
        (Form(("Changed Question", "Key Phrase", "Rephrased Question", "Rephrased Question(SD)")),),
        pictured.read_mm_safetybench,
        ("imgs", "../imgs"),
        has_several_files=True,
        needs_unique_ids=True,
        stand_in=stand_in_by_modality,
    ),
    Entry(
        paired.MOSSBENCH,
        (
            Form(("pid", "image", "question", "metadata", "short description")),
            Form(("pid", "question", "image_path", "meta_data_over", "meta_data_harm")),
        ),
        paired.read_mossbench,
        ("images", "../images", "data/images"),
        has_several_files=True,
        choose=_mossbench_files,
        needs_unique_ids=True,
    ),
    Entry(
        paired.LVLM_SAFER,
        (Form(("prompt", "safe_pair", "unsafe_pair")), Form(("img", "safe_pair", "unsafe_pair"))),
        paired.read_lvlm_safer,
        ("imgs",),
        has_several_files=True,
        needs_unique_ids=True,
    ),
    Entry(
        text.HARMBENCH,
        (
            Form(("Behavior", "FunctionalCategory", "SemanticCategory", "ContextString", "BehaviorID")),
            Form(text.HARMBENCH_COLUMNS, text.in_harmbench_form("")),
        ),
        text.read_harmbench,
        choose=first_named("text_all"),
        needs_unique_ids=True,
    ),
    Entry(
        pictured.HARMBENCH_MULTIMODAL,
        (Form(("Behavior", "BehaviorID", "SemanticCategory", "ImageFileName")),),
        pictured.read_harmbench_multimodal,
        ("../multimodal_behavior_images", "multimodal_behavior_images", "images"),
        needs_unique_ids=True,
    ),
    Entry(
        text.JAILBREAKBENCH,
        (Form((), text.is_jailbreakbench),),
        text.read_jailbreakbench,
        has_several_files=True,
        needs_unique_ids=True,
        aliases=("JBB", "JBB-Behaviors"),
    ),
    Entry(
        text.MALICIOUS_INSTRUCT,
        (
            Form((VALUE,), text.is_questions, name_pattern=text.MALICIOUS_NAME),
            Form(text.HARMBENCH_COLUMNS, text.in_harmbench_form(text.MALICIOUS_NAME)),
        ),
        text.read_malicious_instruct,
    ),
    Entry(text.STRONGREJECT, (Form(("category", "source", "forbidden_prompt")),), text.read_strongreject),
    Entry(
        text.TDC2023,
        (
            Form((VALUE,), name_pattern=text.TDC_NAME),
            Form(text.HARMBENCH_COLUMNS, text.in_harmbench_form(text.TDC_NAME)),
        ),
        text.read_tdc2023,
        has_several_files=True,
    ),
    Entry(
        text.DO_NOT_ANSWER,
        (Form(("id", "risk_area", "types_of_harm", "question")),),
        text.read_do_not_answer,
        choose=first_named("do_not_answer_en"),
        needs_unique_ids=True,
    ),
    Entry(
        text.REFUSAL_DIRECTION,
        (Form(("instruction", "category"), lambda file: not file.keys & {"input", "output"}, f"^({STEMS})$"),),
        text.read_refusal_direction,
        has_several_files=True,
        choose=first_named("^harm(ful|less)_"),
    ),
    Entry(
        paired.VLSAFE,
        (Form(("image_id", "query")), Form(("image_id", "safe_query", "orig_query"))),
        paired.read_vlsafe,
        ("train2017", "../train2017", "coco/train2017", "images"),
        choose=first_named("examine"),
        needs_unique_ids=True,
    ),
    Entry(
        paired.VLGUARD,
        (Form(("id", "image", "safe", "instr-resp")),),
        paired.read_vlguard,
        ("{stem}", ".", "../{stem}"),
        choose=first_named("^test$"),
    ),
    Entry(
        pictured.JAILBREAKV,
        (Form(("jailbreak_query", "redteam_query", "policy", "image_path")),),
        pictured.read_jailbreakv,
        choose=first_named("^JailBreakV_28K$"),
        stand_in=stand_in_by_modality,
        aliases=("JailBreakV",),
    ),
    Entry(
        text.REDTEAM_2K,
        (Form(("id", "question", "policy", "from"), lambda file: "jailbreak_query" not in file.keys),),
        text.read_redteam_2k,
        choose=first_named("^RedTeam_2K$"),
        aliases=("RedTeam2K",),
    ),
    Entry(
        pictured.MM_HARMFULBENCH,
        (Form(("image_url", "question")),),
        pictured.read_mm_harmfulbench,
        ("images",),
    ),
    Entry(
        pictured.SIUO,
        (
            Form(("question_id", "image", "question", "category", "reference_answer")),
            Form(("question_id", "image", "question", "category", "options", "correct_option")),
        ),
        pictured.read_siuo,
        ("images", "../images"),
        choose=first_named("gen"),
        needs_unique_ids=True,
    ),
    Entry(
        ability.MM_VET,
        (Form(("imagename", "question", "answer", "capability")),),
        ability.read_mm_vet,
        ("images", "../images"),
        needs_unique_ids=True,
    ),
    Entry(
        ability.SCIENCEQA,
        (Form(("question", "choices", "answer", "image", "split")),),
        ability.read_scienceqa,
        ("images", "../images"),
        needs_unique_ids=True,
    ),
    Entry(OWN, (Form((), is_own),), read_own),
)


def own_table(columns: Columns) -> Entry:
    """Return the user's own table with columns of other names."""
    return replace(ENTRIES[-1], forms=(Form(()),), read=partial(read_own, columns=columns))


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def entry_named(name: str) -> Entry:
    """Return a benchmark by its name or an alias, in any case, with or without dashes.

    Raises:
        ValueError: no benchmark has this name.
    """
    for entry in ENTRIES:
        if _letters(name) in map(_letters, (entry.name, *entry.aliases)):
            return entry
    names = [entry.name for entry in ENTRIES]
    suggestion = did_you_mean(name, [*names, *(alias for entry in ENTRIES for alias in entry.aliases)])
    raise ValueError(f"benchmark {name!r} does not exist; expected one of {', '.join(names)}{suggestion}")
