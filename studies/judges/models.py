"""Judges by model: any causal language model from Hugging Face, decoded greedily, its replies parsed strictly."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jinja2 import TemplateError

from interp import LLM, ModelError
from interp.control_tokens import without_tokens_of
from studies.bookkeeping.provenance import model_hash
from studies.judges.replies import Replies, reply_key
from studies.judges.rubrics import Rubric, Turn
from studies.judges.verdicts import FAILED, Case, Verdict

GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
"""All settings are given: others would come from the checkpoint, which may sample or penalise repetition."""
TEST_CASE = Case("What is asked here?", "What is answered there.")
"""Put into a chat template to see whether request and answer arrive in the prompt."""


@dataclass(frozen=True)
class ModelJudge:
    """A language model that is asked with a rubric; deterministic up to rounding."""

    rubric: Rubric
    llm: LLM
    identity: str
    """Hash of the weights, or hub id, and revision; replies are stored by it."""
    replies: Replies = field(default_factory=Replies, repr=False)
    batch_size: int = 8

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, rubric: Rubric, replies: Replies | None = None, batch_size: int = 8, **loading
    ) -> "ModelJudge":
        """Load the judge, and try its chat template before anything is asked.

        Args:
            name_or_path: folder or hub id, e.g. `meta-llama/Llama-Guard-3-8B`.
            rubric: one of `RUBRICS`, or the user's own.
            replies: where replies are stored; by default in memory.
            batch_size: prompts in one pass.
            loading: arguments of `LLM.from_pretrained`: `device`, `dtype`, `device_map`, `revision`,
                `trust_remote_code` (off by default).

        Raises:
            ModelError: there is no such model, or its chat template does not show request and answer.
        """
        llm = LLM.from_pretrained(name_or_path, chat_template=rubric.chat_template, **loading)
        if llm.tokenizer.pad_token is None:
            llm.tokenizer.pad_token = llm.tokenizer.eos_token
        identity = f"{model_hash(str(name_or_path))} {loading.get('revision') or ''}".strip()
        judge = cls(rubric, llm, identity, Replies() if replies is None else replies, batch_size)
        _ = judge._form
        return judge

    @property
    def name(self) -> str:
        return f"{self.rubric.name}:{Path(self.llm.name).name}"

    def write(self, case: Case) -> str:
        """Return the prompt for a case, in the model's chat template."""
        tokenizer = self.llm.tokenizer
        # Nothing in a request or an answer may pass for a turn of the judge.
        plain = replace(
            case, request=without_tokens_of(tokenizer, case.request), answer=without_tokens_of(tokenizer, case.answer)
        )
        return self._templated(self._form(self.rubric.turns(plain)))

    @cached_property
    def _form(self) -> Callable[[list[Turn]], list[dict]]:
        """The form of message contents that the chat template accepts.

        Raises:
            ModelError: the template rejects the turns, or leaves out what is judged.
        """
        turns = self.rubric.turns(TEST_CASE)
        for form in (_as_parts, _as_words):
            try:
                written = self._templated(form(turns))
            except (TemplateError, TypeError):
                continue
            if TEST_CASE.request in written and TEST_CASE.answer in written and "'type'" not in written:
                return form
        raise ModelError(
            f"the chat template of {self.llm.name!r} does not show request and answer in turns of "
            f"{', '.join(turn['role'] for turn in turns)}; give the tokenizer the template that it was trained on"
        )

    def _templated(self, turns: list[dict]) -> str:
        return self.llm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def verdicts(self, cases: Sequence[Case], advance: Callable[[int], None] = lambda n_cases: None) -> list[Verdict]:
        """Judge each case. Stored replies are not asked for again; a case too long for the model is `failed`.

        Decoding is greedy, so a reply that can't be read would be the same if it were asked for again: it is kept.
        """
        prompts = [self.write(case) for case in cases]
        keys = [self._key(prompt) for prompt in prompts]
        times, failed = Counter(keys), {}
        todo = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if self.replies.get(key) is None}
        advance(sum(key not in todo for key in keys))
        for key in [key for key, prompt in todo.items() if self._n_over(prompt) > 0]:
            failed[key] = f"{self._n_over(todo.pop(key))} tokens longer than the model can read"
            advance(times[key])
        # Longest first: a batch that does not fit into memory fails at once.
        order = sorted(todo, key=lambda key: (-len(todo[key]), key))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for key, said in zip(batch, self._generate([todo[key] for key in batch]), strict=True):
                self.replies.keep(key, said, self.name, self.identity)
            advance(sum(times[key] for key in batch))
        return [
            Verdict(state=FAILED, said=failed[key]) if key in failed else self.rubric.read(self.replies.get(key))
            for key in keys
        ]

    def _key(self, prompt: str) -> str:
        settings = GREEDY | {"max_new_tokens": self.rubric.max_new_tokens}
        return reply_key(judge=self.rubric.asked_as, model=self.identity, prompt=prompt, settings=settings)

    def _n_over(self, prompt: str) -> int:
        """Return the number of tokens by which a prompt is too long."""
        limit = getattr(self.llm.model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
        n_tokens = len(self.llm.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
        return int(max(0, n_tokens + self.rubric.max_new_tokens - limit))

    @torch.no_grad()
    def _generate(self, prompts: Sequence[str]) -> list[str]:
        tokenizer = self.llm.tokenizer
        # The chat template has already written the special tokens.
        options = {"add_special_tokens": False, "padding": True, "return_token_type_ids": False, "verbose": False}
        batch = tokenizer(list(prompts), return_tensors="pt", **options).to(self.llm.device)
        ids = self.llm.model.generate(
            **batch, max_new_tokens=self.rubric.max_new_tokens, pad_token_id=tokenizer.pad_token_id, **GREEDY
        )
        return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def _as_parts(turns: list[Turn]) -> list[dict]:
    """Return contents as lists of parts, for templates of models that take pictures, such as Llama Guard 4."""
    return [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def _as_words(turns: list[Turn]) -> list[dict]:
    """Return contents as plain text, for templates of text-only models."""
    return list(turns)
