"""Benign instructions, as people type them to an assistant: how-to questions, facts, short writing, lists, little code.

They are in `instructions.json`. A *template* has phrasings, which take turns over its fillers; every filler gives one
instruction. The rest is written one by one. Everything is harmless; the templates `bold_tasks` and `bold_terms` only
sound dangerous ("kill the moss on a garden path"), so that a model trained on them does not learn to answer to words.
"""

import json
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

SPLITS = ("train", "validation", "test")
FILE = Path(__file__).with_name("instructions.json")
SINGLE = "single"
"""Name in place of a template for instructions that were written one by one."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, with the template it comes from and the split it belongs to."""

    text: str
    template: str
    split: str


@cache
def instructions() -> tuple[Instruction, ...]:
    """Return every instruction, in a fixed order.

    The split of a template's instruction depends on the filler alone: a filler that two templates share never gets into
    two splits, unless one of the templates is held out as a whole.
    """
    material = json.loads(FILE.read_text(encoding="utf-8"))
    found = []
    for template in material["templates"]:
        phrasings, split = template["phrasings"], template.get("split")
        for i, filler in enumerate(template["fillers"]):
            text = phrasings[i % len(phrasings)].format(filler)
            found.append(Instruction(text, template["name"], split or _split_of(filler)))
    found += [Instruction(text, SINGLE, _split_of(text)) for text in material["singles"]]
    return tuple(found)


def splits() -> dict[str, tuple[str, ...]]:
    """Return the texts of each split: most for training, a few templates only for validation or for the test."""
    return {split: tuple(each.text for each in instructions() if each.split == split) for split in SPLITS}


def _split_of(key: str) -> str:
    """Draw a split by the hash of a text, so that adding or reordering instructions moves no other one."""
    percentile = int.from_bytes(sha256(key.encode()).digest()[:8], "big") % 100
    if percentile < 90:
        return "train"
    return "validation" if percentile < 95 else "test"
