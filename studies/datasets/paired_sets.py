"""Readers of benchmarks in which a harmful and a harmless request share a picture or a wording."""

from collections.abc import Iterator

from interp import Query
from studies.datasets.files import OBJECT, DataFile, Row
from studies.datasets.record import ANSWER, REFUSE, Record, Source

MOSSBENCH = Source(
    "MOSSBench",
    "https://github.com/xirui-li/MOSSBench",
    "CC BY-SA 4.0, as a test set; use for training is prohibited",
    test_only=True,
)
LVLM_SAFER = Source("LVLM-SafeR", "https://github.com/isXinLiu/LVLM-SafeR", "CC BY-NC 4.0")
VLSAFE = Source("VLSafe", "https://huggingface.co/datasets/YangyiYY/LVLM_NLF", "none stated")
VLGUARD = Source(
    "VLGuard", "https://github.com/ys-zong/VLGuard", "none stated; card of the pictures: MIT, research only"
)

MOSSBENCH_TYPES = {
    "type 1": "Exaggerated Risk",
    "type 2": "Negated Harm",
    "type 3": "Counterintuitive Interpretation",
}
MEMBERS = (("safe", False), ("unsafe", True))


def read_mossbench(file: DataFile) -> Iterator[Record]:
    """Read harmless requests that look harmful, as JSON or CSV; or the contrast set, their truly harmful partners.

    The contrast set is recognised by its metadata, which have only `over`. Partners share an id, and the name of the
    picture; some also share the question, so that only the picture decides.
    """
    is_flat, is_contrast = "meta_data_over" in file.keys, is_mossbench_contrast(file)
    for row in file.rows:
        pid = row.number_or_text("pid")
        if file.kind == OBJECT and pid != row.key:
            raise row.error(f"pid {pid!r}; expected the key of the row")
        over, harm, image = _mossbench_flat(row) if is_flat else _mossbench_nested(row)
        path = image.removeprefix("images/")
        query = Query(row.text("question"), is_contrast, over, pair=pid)
        extra = row.extra("short description") | ({"harm": harm} if harm else {})
        id, expected = (f"contrast/{pid}", REFUSE) if is_contrast else (pid, ANSWER)
        yield Record(query, id, expected, MOSSBENCH, "scene", picture_path=path, extra=extra)


def is_mossbench_contrast(file: DataFile) -> bool:
    if "metadata" not in file.keys:
        return False
    # In a binary table every row has the keys of all rows, some of them empty.
    return all(row.nested("metadata").cells.get("harm") in (None, []) for row in file.rows)


def _mossbench_flat(row: Row) -> tuple[str, str, str]:
    return (
        row.one_of("meta_data_over", tuple(MOSSBENCH_TYPES.values())),
        row.text("meta_data_harm"),
        row.text("image_path"),
    )


def _mossbench_nested(row: Row) -> tuple[str, str, str]:
    metadata = row.nested("metadata")
    harm = metadata.cells.get("harm") or []
    # A list of one number in the files, a number in their description.
    harms = harm if isinstance(harm, list) else [harm]
    over = MOSSBENCH_TYPES[metadata.one_of("over", tuple(MOSSBENCH_TYPES))]
    return over, ",".join(map(str, harms)), row.text("image")


def read_lvlm_safer(file: DataFile) -> Iterator[Record]:
    """Read pairs: one prompt with two pictures (files 1 and 2), or one picture with two prompts (files 3 and 4)."""
    for i, row in enumerate(file.rows):
        pair = f"{file.stem}/{i}"
        for name, is_harmful in MEMBERS:
            member = row.nested(f"{name}_pair")
            picture = row.nested("img") if "img" in row.cells else None
            text = member.text("question") if picture else row.text("prompt")
            path = picture.text("id") if picture else member.text("img_id")
            query = Query(text, is_harmful, (picture or row).text("type"), pair)
            extra = row.extra("word") | member.extra("description", "region")
            expected = REFUSE if is_harmful else ANSWER
            yield Record(query, f"{pair}/{name}", expected, LVLM_SAFER, "scene", picture_path=path, extra=extra)


def read_vlsafe(file: DataFile) -> Iterator[Record]:
    """Read harmful questions about COCO train2017 pictures; or minimally edited pairs of questions about one picture.

    All pairs are kept: 183 of the 3,000 harmless questions contain harm words, but only as parts of other words
    (`skills`, `harmony`, `damaged`).
    """
    for i, row in enumerate(file.rows):
        path = row.text("image_id")
        if "safe_query" not in file.keys:
            query = Query(row.text("query"), True)
            yield Record(query, str(i), REFUSE, VLSAFE, "scene", picture_path=path, extra=row.extra("caption"))
            continue
        for (name, is_harmful), key in zip(MEMBERS, ("safe_query", "orig_query"), strict=True):
            query, expected = Query(row.text(key), is_harmful, pair=path), REFUSE if is_harmful else ANSWER
            yield Record(query, f"{path}/{name}", expected, VLSAFE, "scene", picture_path=path)


def read_vlguard(file: DataFile) -> Iterator[Record]:
    """Read three sets: `unsafes` (unsafe picture), `safe_unsafes` (unsafe instruction), and `safe_safes`.

    Instructions are identified by their keys, never by their order.
    """
    for row in file.rows:
        is_safe, id = row.get("safe"), row.number_or_text("id")
        if not isinstance(is_safe, bool):
            raise row.error(f"safe: got {is_safe!r}, expected true or false")
        if is_safe:
            yield _vlguard(row, f"{id}/safe_unsafe", "safe_unsafes", "unsafe_instruction")
            yield _vlguard(row, f"{id}/safe_safe", "safe_safes", "safe_instruction")
        else:
            yield _vlguard(row, f"{id}/unsafe", "unsafes", "instruction")


def _vlguard(row: Row, id: str, subset: str, key: str) -> Record:
    pairs = row.get("instr-resp")
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise row.error(f"instr-resp: got {pairs!r}, expected a list of objects")
    matching = [pair for pair in pairs if key in pair]
    if len(matching) != 1:
        raise row.error(f"instr-resp: {len(matching)} with {key!r}; expected one where safe is {row.get('safe')}")
    is_harmful = subset != "safe_safes"
    text = Row(row.path, f"{row.where}, instr-resp", matching[0]).text(key)
    query = Query(text, is_harmful, row.text_or_empty("harmful_category"))
    extra = {"subset": subset} | row.extra("harmful_subcategory")
    expected = REFUSE if is_harmful else ANSWER
    return Record(
        query,
        id,
        expected,
        VLGUARD,
        "scene",
        picture_path=row.text("image"),
        needs_picture=subset == "unsafes",
        extra=extra,
    )
