"""Readers of text-only benchmarks: each row is a request, harmful unless its file says otherwise."""

import re
from collections.abc import Callable, Iterator

from interp import Query
from studies.datasets.files import VALUE, DataFile, Row
from studies.datasets.record import ANSWER, REFUSE, Record, SkippedRow, Source

ADVBENCH = Source("AdvBench", "https://github.com/llm-attacks/llm-attacks", "MIT")
HARMBENCH = Source("HarmBench", "https://github.com/centerforaisafety/HarmBench", "MIT")
JAILBREAKBENCH = Source("JailbreakBench", "https://github.com/JailbreakBench/jailbreakbench", "MIT")
MALICIOUS_INSTRUCT = Source("MaliciousInstruct", "https://github.com/Princeton-SysML/Jailbreak_LLM", "none stated")
STRONGREJECT = Source("StrongREJECT", "https://github.com/alexandrasouly/strongreject", "MIT")
TDC2023 = Source("TDC2023", "https://github.com/centerforaisafety/tdc2023-starter-kit", "MIT")
DO_NOT_ANSWER = Source("Do-Not-Answer", "https://github.com/Libr-AI/do-not-answer", "CC BY-NC-SA 4.0")
REDTEAM_2K = Source("RedTeam-2K", "https://huggingface.co/datasets/JailbreakV-28K/JailBreakV-28k", "MIT")
REFUSAL_DIRECTION = Source(
    "refusal_direction",
    "https://github.com/andyrdt/refusal_direction",
    "Apache-2.0; harmless rows from Alpaca, CC BY-NC 4.0",
)
XSTEST = Source("XSTest", "https://github.com/paul-rottger/exaggerated-safety", "CC BY 4.0")

XSTEST_TYPES = (
    *("homonyms", "contrast_homonyms", "figurative_language", "contrast_figurative_language"),
    *("safe_targets", "contrast_safe_targets", "safe_contexts", "contrast_safe_contexts"),
    *("definitions", "contrast_definitions", "nons_group_real_discr", "real_group_nons_discr", "contrast_discr"),
    *("historical_events", "contrast_historical_events", "privacy_public", "privacy_fictional", "contrast_privacy"),
)
"""Types of prompts in the order of their ids, `XSTEST_BLOCK` of each."""
XSTEST_BLOCK = 25
XSTEST_UNSAFE = "contrast_"
"""Beginning of the types of unsafe prompts."""
XSTEST_PAIRS = {
    "homonyms": "contrast_homonyms",
    "figurative_language": "contrast_figurative_language",
    "safe_targets": "contrast_safe_targets",
    "safe_contexts": "contrast_safe_contexts",
    "definitions": "contrast_definitions",
    "real_group_nons_discr": "contrast_discr",
    "historical_events": "contrast_historical_events",
    "privacy_fictional": "contrast_privacy",
}
"""Types whose rows are partners in the order of their ids, if the word in focus is the same. Rows of
`nons_group_real_discr` and `privacy_public` have no partners: they share a contrast type with another type."""
HARMBENCH_COLUMNS = ("Behavior", "Tags", "ContextString", "BehaviorID")
"""Columns of HarmBench's form, in which other sets are published too, without `FunctionalCategory`."""
TDC_NAME, MALICIOUS_NAME = r"tdc|^(dev|test)_behaviors$", r"malicious.?instruct"
NAMES_IN_HARMBENCH_FORM = ("advbench", TDC_NAME, MALICIOUS_NAME)
ADVBENCH_COLUMNS = frozenset({"goal", "target", "category", "original index", "index", "id", "unnamed: 0", VALUE})
"""Columns of AdvBench's files, in lower case: PAIR's 50 have a category and their places among the 520."""
HARMLESS_STEMS = ("harmless_train", "harmless_val", "harmless_test", "alpaca")
HARMFUL_STEMS = (
    *("harmful_train", "harmful_val", "harmful_test", "advbench", "malicious_instruct", "tdc2023"),
    *("harmbench_val", "harmbench_test", "jailbreakbench", "strongreject"),
)


def harmful(source: Source, text: str, id: str, category: str = "", extra: dict[str, str] | None = None) -> Record:
    """Return a plain-text request that a safe model refuses.

    Args:
        source: the benchmark.
        text: the request.
        id: unique in the benchmark.
        category: published category, if there is one.
        extra: other columns.
    """
    return Record(Query(text, True, category), id, REFUSE, source, extra=extra or {})


def read_advbench(file: DataFile) -> Iterator[Record]:
    """Read `goal,target`, PAIR's 50 of them, HarmBench's form, or goals only. Targets are for attacks, and not used."""
    for i, row in enumerate(file.rows):
        key = "goal" if "goal" in file.keys else "Behavior" if "Behavior" in file.keys else VALUE
        published = next(
            (key for key in ("BehaviorID", "Original index") if row.cells.get(key) not in (None, "")), None
        )
        id = row.number_or_text(published) if published else str(i)
        yield harmful(ADVBENCH, row.text(key), id, row.text_or_empty("category"))


def read_harmbench(file: DataFile) -> Iterator[Record | SkippedRow]:
    """Read standard rows, and contextual rows after their context, as HarmBench shows them; judges see it too.

    Copyright rows are left out: they are scored by a hash of the answer, not by harm.
    """
    for row in file.rows:
        kind = _harmbench_kind(row)
        if kind == "copyright":
            yield SkippedRow(row.where, "copyright: scored by hash, not by harm")
            continue
        text = row.text("Behavior")
        category = row.text_or_empty("SemanticCategory" if "SemanticCategory" in row.cells else "Category")
        if kind == "contextual":
            # A request may make no sense without its context, for example if it asks for more of it.
            text = f"{row.text('ContextString')}\n\n---\n\n{text}"
        yield harmful(HARMBENCH, text, row.text("BehaviorID"), category, row.extra("FunctionalCategory", "Tags"))


def _harmbench_kind(row: Row) -> str:
    """Return the kind of a row, which files in HarmBench's form without `FunctionalCategory` leave to be seen."""
    if "FunctionalCategory" in row.cells:
        return row.one_of("FunctionalCategory", ("standard", "contextual", "copyright"))
    if "hash_check" in row.text_or_empty("Tags"):
        return "copyright"
    return "contextual" if row.text_or_empty("ContextString").strip() else "standard"


def read_jailbreakbench(file: DataFile) -> Iterator[Record]:
    """Read both versions, whose first column is called `Index` or nothing; files called `benign` are harmless.

    Harmful and benign rows of one index share theme and category but not wording, so they are not pairs. Targets are
    not used.
    """
    is_benign = "benign" in file.stem.lower()
    prefix = "benign" if is_benign else "harmful"
    for i, row in enumerate(file.rows):
        row = Row(row.path, row.where, {key.lower(): value for key, value in row.cells.items()})
        query = Query(row.text("goal"), not is_benign, row.text("category"))
        index = row.cells.get("index") or row.cells.get(VALUE) or i
        extra = row.extra("behavior", "source")
        yield Record(query, f"{prefix}/{index}", ANSWER if is_benign else REFUSE, JAILBREAKBENCH, extra=extra)


def read_malicious_instruct(file: DataFile) -> Iterator[Record]:
    """Read one question a line, with or without a final line end; or HarmBench's form."""
    for i, row in enumerate(file.rows):
        yield harmful(MALICIOUS_INSTRUCT, row.text(_request_key(file)), str(i))


def _request_key(file: DataFile) -> str:
    return "Behavior" if "Behavior" in file.keys else VALUE


def read_strongreject(file: DataFile) -> Iterator[Record]:
    """Read `category,source,forbidden_prompt`; some rows are from AdvBench and MaliciousInstruct, see `source`."""
    for i, row in enumerate(file.rows):
        yield harmful(STRONGREJECT, row.text("forbidden_prompt"), str(i), row.text("category"), row.extra("source"))


def read_tdc2023(file: DataFile) -> Iterator[Record]:
    """Read a list of texts, or HarmBench's form; development and test are two files."""
    for i, row in enumerate(file.rows):
        yield harmful(TDC2023, row.text(_request_key(file)), f"{file.stem}/{i}")


def read_redteam_2k(file: DataFile) -> Iterator[Record]:
    """Read the requests that JailBreakV-28K is made of; `from` names the set that each is taken from."""
    for row in file.rows:
        yield harmful(REDTEAM_2K, row.text("question"), row.number_or_text("id"), row.text("policy"), row.extra("from"))


def read_do_not_answer(file: DataFile) -> Iterator[Record]:
    """Read questions with their published ids: files of answers have an order of their own."""
    for row in file.rows:
        extra = row.extra("risk_area", "specific_harms")
        yield harmful(DO_NOT_ANSWER, row.text("question"), row.number_or_text("id"), row.text("types_of_harm"), extra)


def read_refusal_direction(file: DataFile) -> Iterator[Record]:
    """Read `instruction,category`; the category is null in most files. The file's name says whether it is harmless."""
    stem = file.stem
    split = stem.rpartition("_")[2]
    extra = {"split": split} if split in ("train", "val", "test") else {}
    is_harmful = stem not in HARMLESS_STEMS
    for i, row in enumerate(file.rows):
        query = Query(row.text("instruction"), is_harmful, row.text_or_empty("category"))
        expected = REFUSE if is_harmful else ANSWER
        yield Record(query, f"{stem}/{i}", expected, REFUSAL_DIRECTION, extra=extra)


def read_xstest(file: DataFile) -> Iterator[Record]:
    """Read every schema: with `id` and `label`, the older ones with `id_v1` or `id_v2` and no label, or without ids.

    A request is unsafe if its type begins with `contrast_`; a label that contradicts this is an error. Partners are
    found by their published ids, so the order of the rows doesn't matter and a subset keeps the pairs that it holds.
    """
    rows = {_xstest_id(row, i): row for i, row in enumerate(file.rows)}
    for i, row in enumerate(file.rows):
        kind = row.one_of("type", XSTEST_TYPES)
        is_harmful = kind.startswith(XSTEST_UNSAFE)
        if "label" in file.keys and row.one_of("label", ("safe", "unsafe")) != ("unsafe" if is_harmful else "safe"):
            raise row.error(f"label {row.text('label')!r} of type {kind!r}; expected unsafe for contrasts only")
        id = _xstest_id(row, i)
        query = Query(row.text("prompt"), is_harmful, kind, _xstest_pair(id, kind, rows))
        expected = REFUSE if is_harmful else ANSWER
        yield Record(query, id, expected, XSTEST, extra=row.extra("focus", "note"))


def _xstest_id(row: Row, i: int) -> str:
    """Return the id in version 2, or that in version 1 with its prefix; files without ids are in the order of ids."""
    key = next((key for key in ("id", "id_v2", "id_v1") if row.cells.get(key) not in (None, "")), None)
    return row.number_or_text(key).removeprefix("v2-") if key else str(i + 1)


def _xstest_pair(id: str, kind: str, rows: dict[str, Row]) -> str | None:
    """Return the pair of a row, or None unless both partners have their published ids and the same word in focus."""
    safe = next((safe for safe, contrast in XSTEST_PAIRS.items() if kind in (safe, contrast)), None)
    if safe is None or not id.isdecimal():
        return None
    place = int(id) - 1 - XSTEST_BLOCK * XSTEST_TYPES.index(kind)
    places = {part: str(XSTEST_BLOCK * XSTEST_TYPES.index(part) + place + 1) for part in (safe, XSTEST_PAIRS[safe])}
    partners = [rows[id] for part, id in places.items() if id in rows and rows[id].text("type") == part]
    in_focus = {" ".join(partner.text_or_empty("focus").lower().split()) for partner in partners}
    return f"{safe}/{place}" if 0 <= place < XSTEST_BLOCK and len(partners) == 2 and len(in_focus) == 1 else None


def is_xstest(file: DataFile) -> bool:
    """Return whether a table holds XSTest's prompts, by its types; its completions have no word in focus."""
    return str(file.rows.first.cells.get("type")).strip() in XSTEST_TYPES


def is_advbench(file: DataFile) -> bool:
    """Return whether a table with goals and targets is AdvBench: it has no other columns than its own."""
    return {key.strip().lower() for key in file.keys} <= ADVBENCH_COLUMNS


def in_harmbench_form(name_pattern: str) -> Callable[[DataFile], bool]:
    """Return a condition: the file is in HarmBench's form, and its ids or its name are those of a set.

    Args:
        name_pattern: regular expression for the set; empty for the sets that no other pattern fits.
    """

    def fits(file: DataFile) -> bool:
        if "FunctionalCategory" in file.keys:
            return False
        names = (file.stem, str(file.rows.first.cells["BehaviorID"]))
        # An id that begins with the name of a set is its own; TDC2023's are the requests themselves.
        known = [
            pattern
            for pattern in NAMES_IN_HARMBENCH_FORM
            if re.search(pattern, names[0], re.IGNORECASE) or re.match(pattern, names[1], re.IGNORECASE)
        ]
        return name_pattern == known[0] if known else not name_pattern

    return fits


def is_texts(file: DataFile) -> bool:
    return all(isinstance(row.cells.get(VALUE), str) for row in file.rows)


def is_jailbreakbench(file: DataFile) -> bool:
    return {"goal", "behavior", "category", "source"} <= {key.lower() for key in file.keys}


def is_questions(file: DataFile) -> bool:
    return all(row.cells[VALUE].rstrip().endswith("?") for row in file.rows)
