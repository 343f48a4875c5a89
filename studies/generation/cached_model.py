"""A model whose answers, first-token scores, reference texts and states are computed once and cached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import LLM, VLM, Guard, Prompt, References, run_guards, text_prompt, trace
from interp.identity import prompt_record
from interp.pictures import LazyPicture
from interp.stage_times import stage
from studies.generation.first_token import first_token_refusal, first_token_scores, kl_divergence
from studies.generation.generate import Generation, answer_texts, answers
from studies.generation.openings import RefusalOpenings
from studies.generation.reference_texts import reference_texts

PROMPTS_PER_PASS = 16
"""Prompts that run together under many guards."""
CACHE_SIZE = 500
"""Answers, log-probabilities and states cached of each kind: for a 7B model each takes up to half a megabyte."""


@dataclass(frozen=True)
class Outcome:
    """The model's answers to a list of prompts, with their first-token scores."""

    answers: list[str]
    refusal_score: Float[Tensor, " prompt"]
    kl: Float[Tensor, " prompt"]
    """KL from the unguarded model, at the first answer token."""
    acted: list[bool] | None = None
    """For a defence that decides prompt by prompt: whether it acted."""
    tokens: Int[Tensor, "prompt new"] | None = None
    """The answers as tokens, if they are saved."""


class CachedModel:
    """Everything that a defence needs from a model; texts and states are computed once."""

    def __init__(
        self,
        vlm: VLM | LLM,
        generation: Generation | None = None,
        openings: RefusalOpenings | None = None,
        llm: LLM | None = None,
    ):
        """Wrap a model; nothing is computed yet.

        Args:
            vlm: left unchanged.
            generation: settings for generating answers.
            openings: tokens with which the model opens refusals; without them scores are NaN.
            llm: the original aligned checkpoint, for references of source `llm`.
        """
        self.vlm, self.generation, self.openings, self.llm = vlm, generation or Generation(), openings, llm
        self._reference_texts: dict[tuple[str, str], str] = {}
        self._text_states: dict[tuple[str, str], Tensor] = {}
        self._answers: dict[str, str] = {}
        self._first_token: dict[str, tuple[Tensor, Tensor]] = {}
        self._first_logprobs: dict[str, Tensor] = {}
        """By-product of answers, until scores are asked for."""
        self._pictures: dict[LazyPicture | int, str] = {}

    @property
    def generation_settings(self) -> dict:
        """Everything that an answer depends on apart from model and prompt; the batch size is not part of it."""
        settings = self.vlm.model.generation_config.to_diff_dict()
        model = {name: value for name, value in settings.items() if name != "transformers_version"}
        return {"max_new_tokens": self.generation.max_new_tokens, "do_sample": False, "model": model}

    def outcome(self, prompts: Sequence[Prompt], instead_of: Sequence[Prompt] | None = None) -> Outcome:
        """Answer and score prompts.

        Args:
            prompts: the prompts that the model is shown.
            instead_of: the original prompts where a defence shows others; the KL is measured from these.
        """
        keyed = self._keyed(prompts)
        texts = self._cached(self._answers, keyed, self._answered)
        if self.openings is None:
            return Outcome(texts, *torch.full((2, len(texts)), torch.nan))
        logprobs, scores = self._first_tokens(prompts)
        kl = torch.zeros(len(prompts))
        if instead_of is not None:
            plain, _ = self._first_tokens(instead_of)
            kl = kl_divergence(plain, logprobs)
        return Outcome(texts, scores, kl)

    def _answered(self, vlm: VLM | LLM, prompts: Sequence[Prompt], generation: Generation) -> list[str]:
        """Answer prompts, and keep the first token's log-probabilities, which the same passes give."""
        keys = [self.prompt_hash(prompt) for prompt in prompts]

        def keep(i: int, logprobs: Tensor) -> None:
            self._first_logprobs[keys[i]] = logprobs

        self._first_logprobs.clear()
        return answers(vlm, prompts, generation, keep_first=keep if self.openings else None)

    def _first_tokens(
        self, prompts: Sequence[Prompt]
    ) -> tuple[Float[Tensor, "prompt d_vocab"], Float[Tensor, " prompt"]]:
        """Return the log-probabilities of the first token, and the refusal scores."""

        def compute(vlm: VLM | LLM, prompts: Sequence[Prompt], generation: Generation) -> list[tuple[Tensor, Tensor]]:
            known = [self._first_logprobs.get(self.prompt_hash(prompt)) for prompt in prompts]
            logprobs = None if any(row is None for row in known) else torch.stack(known)
            return list(zip(*first_token_refusal(vlm, prompts, generation, self.openings, logprobs), strict=True))

        logprobs, scores = zip(*self._cached(self._first_token, self._keyed(prompts), compute), strict=True)
        return torch.stack(logprobs), torch.stack(scores)

    def _keyed(self, prompts: Sequence[Prompt]) -> list[tuple[str, Prompt]]:
        return [(self.prompt_hash(prompt), prompt) for prompt in prompts]

    def _cached(
        self, cache: dict[str, Any], keyed: Sequence[tuple[str, Prompt]], compute: Callable[..., Sequence]
    ) -> list:
        """Return a value per prompt, computing those that the cache lacks: defences often share prompts."""
        missing = {key: prompt for key, prompt in keyed if key not in cache}
        if missing and len(cache) + len(missing) > CACHE_SIZE:
            cache.clear()
            missing = dict(keyed)
        if missing:
            values = compute(self.vlm, list(missing.values()), self.generation)
            cache |= dict(zip(missing, values, strict=True))
        return [cache[key] for key, _ in keyed]

    def run_guards(
        self,
        prompts: Sequence[Prompt],
        guards: Sequence[Guard | None],
        references: References = None,
        advance: Callable[[int], None] = lambda n_runs: None,
    ) -> list[Outcome]:
        """Answer and score prompts under each guard, on one prefill where the guards can share it.

        Args:
            prompts: answered under every guard.
            guards: None for the unguarded model.
            references: states of each prompt's reference text; the same for every guard, or one entry per guard.
            advance: called with the number of prompts times guards finished since the last call.
        """
        scores = None if self.openings is None else first_token_scores(self.openings)
        max_new_tokens = self.generation.max_new_tokens
        runs = run_guards(self.vlm, prompts, guards, references, scores, max_new_tokens, PROMPTS_PER_PASS, advance)
        decoded = [answer_texts(self.vlm, tokens) for tokens in runs.tokens]
        unscored = torch.full((len(guards), len(prompts)), torch.nan)
        by_metric = [runs.scores.get(name, unscored) for name in ("refusal_score", "kl")]
        return [
            Outcome([text.strip() for text in texts], refusal_score, kl)
            for texts, refusal_score, kl in zip(decoded, *by_metric, strict=True)
        ]

    def reference_texts(self, prompts: Sequence[Prompt], reference: str) -> list[str]:
        """Return the text that the aligned LLM is shown for each prompt; every picture is read once."""
        keys = [(reference, self.prompt_hash(prompt)) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._reference_texts}
        if missing:
            texts = reference_texts(self.vlm, list(missing.values()), reference, self.generation)
            self._reference_texts |= dict(zip(missing, texts, strict=True))
        return [self._reference_texts[key] for key in keys]

    def text_states(self, texts: Sequence[str], source: str = "vlm_text") -> Float[Tensor, "text layer d_model"]:
        """Trace texts without a picture and return their last-token states.

        Args:
            texts: each is traced once.
            source: `vlm_text` for the VLM's own LLM, `llm` for the original one.
        """
        missing = list(dict.fromkeys(text for text in texts if (source, text) not in self._text_states))
        if missing and len(self._text_states) + len(missing) > CACHE_SIZE:
            self._text_states.clear()
            missing = list(dict.fromkeys(texts))
        if missing:
            model = self.vlm if source == "vlm_text" else self.llm
            with stage("reference"):
                traced = trace(model, [text_prompt(text) for text in missing], batch_size=self.generation.batch_size)
            states = torch.from_numpy(traced.resid_post.sel(token="last").values)
            self._text_states |= {(source, text): state for text, state in zip(missing, states, strict=True)}
        return torch.stack([self._text_states[source, text] for text in texts])

    def prompt_hash(self, prompt: Prompt) -> str:
        """Hash everything that the model is shown; a drawn picture is drawn for it only once."""
        # Images are hashed every time: they can change in place, and the id of a deleted one can be reused.
        is_drawn = all(isinstance(picture, LazyPicture) for picture in prompt.pictures)
        return str(prompt_record(prompt, self._pictures if is_drawn else {})["prompt_hash"])
