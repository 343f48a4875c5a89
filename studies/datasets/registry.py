"""Every benchmark that is known: how its files are told, who reads them, where its pictures lie."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from interp import typography
from interp.pictures import LazyPicture
from studies.datasets import ability_sets as ability
from studies.datasets import paired_sets as paired
from studies.datasets import picture_sets as pictured
from studies.datasets import text_sets as text
from studies.datasets.files import CSV, LINES, LIST, OBJECT, TEXT, VALUE, DataFile
from studies.datasets.record import ANSWER, REFUSE, Record, SkippedRow, Source
from studies.datasets.table import read_queries

STAND_IN_SIZE = 336
"""Pixels: what LLaVA-1.5 sees of a picture."""


@dataclass(frozen=True)
class Form:
    """One form in which a benchmark is published."""

    kind: str
    """Of the file; see `studies.datasets.files`."""
    keys: tuple[str, ...]
    """Columns, or keys of the first row, that stand there; others may."""
    fits: Callable[[DataFile], bool] = lambda file: True
    """What else the contents must show."""
    named: str = ""
    """Where contents alone do not tell it from others: what the file's name must match, unless the user names it."""

    def is_possible(self, file: DataFile) -> bool:
        return file.kind == self.kind and file.keys >= set(self.keys) and self.fits(file)

    def is_told(self, file: DataFile) -> bool:
        return self.is_possible(file) and bool(re.search(self.named, file.path.stem, re.IGNORECASE))


def scene_stand_in(record: Record) -> LazyPicture:
    return LazyPicture(typography.scene_picture, (STAND_IN_SIZE, record.query.seed))


def stand_in_by_modality(record: Record) -> LazyPicture:
    """In FigStep's layout where the whole request is written, in MM-SafetyBench's where a phrase is."""
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
    """Where a folder holds a set and parts of it: the files so named, else all, of which there may be only one."""
    return lambda files: [file for file in files if re.search(pattern, file.path.stem, re.IGNORECASE)] or files


def _mossbench_files(files: Sequence[DataFile]) -> Sequence[DataFile]:
    """The JSON files; the CSV says the same again."""
    return [file for file in files if file.kind == OBJECT] or files


@dataclass(frozen=True)
class Entry:
    """A benchmark, as it may be found on disk."""

    source: Source
    forms: tuple[Form, ...]
    read: Callable[[DataFile], Iterable[Record | SkippedRow]]
    folders: tuple[str, ...] = (".",)
    """Where its pictures may lie, seen from the file; `{stem}` is the file's name."""
    is_joined: bool = False
    """Whether several files make one benchmark; else one of them is read."""
    choose: Callable[[Sequence[DataFile]], Sequence[DataFile]] = everything
    """Which of a folder's files are read."""
    joins_by_id: bool = False
    """Pictures, partners or answers are found by id: an id that stands there twice is an error."""
    stand_in: Callable[[Record], LazyPicture] = scene_stand_in
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.source.name

    def roots(self, path: Path) -> list[Path]:
        """Folders of the pictures of a file.

        Raises:
            ValueError: one of them is a link that leads out of the data.
        """
        found = []
        for folder in self.folders:
            root = path.parent / folder.format(stem=path.stem)
            data = path.parent / Path(*(part for part in Path(folder).parts if part == ".."))
            if not root.resolve().is_relative_to(data.resolve()):
                raise ValueError(f"folder of pictures {str(root)!r} is a link that leads outside the data folder")
            found.append(root)
        return found


def read_own(file: DataFile) -> Iterator[Record]:
    """The user's own table, see `read_queries`; a row with a picture is shown beside it."""
    source = Source(file.path.stem, "", "the user's own")
    for i, query in enumerate(read_queries(file.path, look=False)):
        path = str(Path(query.picture).relative_to(file.path.parent)) if query.picture else ""
        expected, modality = REFUSE if query.harmful else ANSWER, "scene" if path else "text"
        yield Record(query, str(i), expected, source, modality, picture_path=path)


OWN = Source("own", "", "the user's own")
STEMS = "|".join((*text.HARMFUL_STEMS, *text.HARMLESS_STEMS))

ENTRIES = (
    Entry(
        text.ADVBENCH,
        (
            Form(CSV, ("goal", "target"), text.is_advbench),
            Form(CSV, ("Behavior", "Category", "Tags", "ContextString", "BehaviorID"), text.is_advbench),
            Form(TEXT, (VALUE,), named="advbench"),
        ),
        text.read_advbench,
        choose=first_named("harmful_behaviors"),
    ),
    Entry(
        text.XSTEST,
        (
            Form(CSV, ("id", "prompt", "type", "label", "focus")),
            Form(CSV, ("id_v1", "id_v2", "prompt", "type", "focus")),
        ),
        text.read_xstest,
        choose=first_named("^xstest_prompts$"),
        joins_by_id=True,
    ),
    Entry(
        pictured.FIGSTEP,
        (Form(CSV, ("dataset", "category_id", "task_id", "category_name", "question", "instruction")),),
        pictured.read_figstep,
        (".", "../images/{stem}", "../images/SafeBench", "images/{stem}", "images/SafeBench"),
        choose=first_named("^safebench$"),
        joins_by_id=True,
        stand_in=stand_in_by_modality,
        aliases=("SafeBench", "FigStep-Tiny"),
    ),
    Entry(
        pictured.MM_SAFETYBENCH,
        (Form(OBJECT, ("Changed Question", "Key Phrase", "Rephrased Question", "Rephrased Question(SD)")),),
        pictured.read_mm_safetybench,
        ("imgs", "../imgs"),
        is_joined=True,
        joins_by_id=True,
        stand_in=stand_in_by_modality,
    ),
    Entry(
        paired.MOSSBENCH,
        (
            Form(OBJECT, ("pid", "image", "question", "metadata", "short description")),
            Form(CSV, ("pid", "question", "image_path", "meta_data_over", "meta_data_harm")),
        ),
        paired.read_mossbench,
        ("images", "../images", "data/images"),
        is_joined=True,
        choose=_mossbench_files,
        joins_by_id=True,
    ),
    Entry(
        paired.LVLM_SAFER,
        (Form(LIST, ("prompt", "safe_pair", "unsafe_pair")), Form(LIST, ("img", "safe_pair", "unsafe_pair"))),
        paired.read_lvlm_safer,
        ("imgs",),
        is_joined=True,
        joins_by_id=True,
    ),
    Entry(
        text.HARMBENCH,
        (
            Form(
                CSV,
                ("Behavior", "FunctionalCategory", "SemanticCategory", "ContextString", "BehaviorID"),
            ),
        ),
        text.read_harmbench,
        choose=first_named("text_all"),
        joins_by_id=True,
    ),
    Entry(
        pictured.HARMBENCH_MULTIMODAL,
        (Form(CSV, ("Behavior", "BehaviorID", "SemanticCategory", "ImageFileName")),),
        pictured.read_harmbench_multimodal,
        ("../multimodal_behavior_images", "multimodal_behavior_images", "images"),
        joins_by_id=True,
    ),
    Entry(
        text.JAILBREAKBENCH,
        (Form(CSV, (), text.is_jailbreakbench),),
        text.read_jailbreakbench,
        is_joined=True,
        joins_by_id=True,
        aliases=("JBB", "JBB-Behaviors"),
    ),
    Entry(
        text.MALICIOUS_INSTRUCT,
        (Form(TEXT, (VALUE,), text.is_questions, named=r"malicious.?instruct"),),
        text.read_malicious_instruct,
    ),
    Entry(text.STRONGREJECT, (Form(CSV, ("category", "source", "forbidden_prompt")),), text.read_strongreject),
    Entry(
        text.TDC2023,
        (Form(LIST, (VALUE,), text.is_texts, named=r"tdc|^(dev|test)_behaviors$"),),
        text.read_tdc2023,
        is_joined=True,
    ),
    Entry(
        text.DO_NOT_ANSWER,
        (Form(CSV, ("id", "risk_area", "types_of_harm", "question")),),
        text.read_do_not_answer,
        choose=first_named("do_not_answer_en"),
        joins_by_id=True,
    ),
    Entry(
        text.REFUSAL_DIRECTION,
        (Form(LIST, ("instruction", "category"), lambda file: not file.keys & {"input", "output"}, f"^({STEMS})$"),),
        text.read_refusal_direction,
        is_joined=True,
        choose=first_named("^harm(ful|less)_"),
    ),
    Entry(
        paired.VLSAFE,
        (Form(LINES, ("image_id", "query")), Form(LINES, ("image_id", "safe_query", "orig_query"))),
        paired.read_vlsafe,
        ("train2017", "../train2017", "coco/train2017", "images"),
        choose=first_named("examine"),
        joins_by_id=True,
    ),
    Entry(
        paired.VLGUARD,
        (Form(LIST, ("id", "image", "safe", "instr-resp")),),
        paired.read_vlguard,
        ("{stem}", ".", "../{stem}"),
        choose=first_named("^test$"),
    ),
    Entry(
        pictured.JAILBREAKV,
        (Form(CSV, ("jailbreak_query", "redteam_query", "policy", "image_path")),),
        pictured.read_jailbreakv,
        choose=first_named("^JailBreakV_28K$"),
        stand_in=stand_in_by_modality,
        aliases=("JailBreakV",),
    ),
    Entry(
        pictured.MM_HARMFULBENCH,
        (Form(LINES, ("image_url", "question")),),
        pictured.read_mm_harmfulbench,
        ("images",),
    ),
    Entry(
        pictured.SIUO,
        (Form(LIST, ("question_id", "image", "question", "safety_warning")),),
        pictured.read_siuo,
        ("images", "../images"),
        choose=first_named("gen"),
        joins_by_id=True,
    ),
    Entry(
        ability.MM_VET,
        (Form(OBJECT, ("imagename", "question", "answer", "capability")),),
        ability.read_mm_vet,
        ("images", "../images"),
        joins_by_id=True,
    ),
    Entry(
        ability.SCIENCEQA,
        (Form(OBJECT, ("question", "choices", "answer", "image", "split")),),
        ability.read_scienceqa,
        ("images", "../images"),
        joins_by_id=True,
    ),
    Entry(OWN, (Form(CSV, ("text", "harmful")), Form(LINES, ("text", "harmful"))), read_own),
)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def entry_named(name: str) -> Entry:
    """In any case, with or without dashes.

    Raises:
        ValueError: there is none of that name.
    """
    for entry in ENTRIES:
        if _plain(name) in map(_plain, (entry.name, *entry.aliases)):
            return entry
    raise ValueError(f"benchmark {name!r} is not known; expected one of {', '.join(entry.name for entry in ENTRIES)}")
