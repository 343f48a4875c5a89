"""The LLM's own answers to benign instructions, as text: what the VLM learns to answer with a picture as well."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from studies.bookkeeping.progress import phase
from studies.judges import KEYWORDS_1

LONGEST = 64
"""Tokens of an answer; longer ones are cut."""
BATCH_SIZE = 192


@dataclass(frozen=True)
class OwnAnswer:
    """An instruction with the LLM's greedy answer."""

    split: str
    text: str
    answer: str
    ended: bool
    """False if the answer was cut."""

    @property
    def is_useful(self) -> bool:
        """Return whether it answers: no lesson contains a refusal, not even one of a harmless instruction."""
        return bool(self.answer.strip()) and not KEYWORDS_1.refuses(self.answer)


def write(
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Iterable[tuple[str, str]],
    path: Path,
) -> list[OwnAnswer]:
    """Let the LLM answer instructions greedily, and keep the answers in a file; those that it holds are not repeated.

    Args:
        llm: the aligned LLM.
        tokenizer: its tokenizer, with padding on the left.
        instructions: pairs of split and text.
        path: JSONL file.
    """
    wanted = list(instructions)
    done = {answer.text for answer in read(path)}
    todo = [entry for entry in wanted if entry[1] not in done]
    # Alike in length within a batch, in any order between batches, so that the ETA is right.
    todo.sort(key=lambda entry: len(entry[1]))
    batches = [todo[start : start + BATCH_SIZE] for start in range(0, len(todo), BATCH_SIZE)]
    np.random.default_rng(0).shuffle(batches)
    with phase("the LLM's own answers", len(todo)) as report, path.open("a", encoding="utf-8") as file:
        for batch in batches:
            for answer in _answers(llm, tokenizer, batch):
                file.write(json.dumps(asdict(answer)) + "\n")
            file.flush()
            report(len(batch))
    by_text = {answer.text: answer for answer in read(path)}
    return [by_text[text] for _, text in wanted]


def _answers(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[tuple[str, str]]
) -> Iterable[OwnAnswer]:
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for _, text in batch
    ]
    inputs = tokenizer(chats, return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids = llm.generate(**inputs, max_new_tokens=LONGEST, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    for (split, text), row in zip(batch, ids[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        answer = tokenizer.decode(row, skip_special_tokens=True)
        yield OwnAnswer(split, text, answer, ended=tokenizer.eos_token_id in row)


def read(path: Path) -> list[OwnAnswer]:
    """Return the answers in a file, none if it does not exist; a line that was cut by an interruption is skipped."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(OwnAnswer(**json.loads(line)))
        except ValueError:
            continue
    return found
