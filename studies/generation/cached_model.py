"""A model that is asked: answers, first-token scores, and what it reads in pictures, which is read once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.activations import prompt_record
from interp.guard import Guard
from interp.guard_batches import References, run_guards
from interp.inputs import Prompt, text_prompt
from interp.pictures import LazyPicture
from interp.trace import trace
from interp.vlm import LLM, VLM
from studies.generation.first_token import first_token_logprobs, first_token_scores, kl_divergence, refusal_scores
from studies.generation.generate import Generation, answers
from studies.generation.reference_texts import reference_texts

ROWS = 16
"""Prompts in one pass of many guards."""
MOST_KEPT = 500
"""Answers, log-probabilities and states of each kind: of a 7B model each takes up to half a megabyte."""


@dataclass(frozen=True)
class Outcome:
    """What the model does with a list of prompts."""

    answers: list[str]
    refusal_score: Float[Tensor, " prompt"]
    kl: Float[Tensor, " prompt"]
    """From the unguarded model, at the first answer token."""
    acted: list[bool] | None = None
    """Where a defence chooses: whether it stepped in."""


class CachedModel:
    """All that a defence needs of a model. Texts and states that were read once are kept."""

    def __init__(
        self,
        vlm: VLM,
        how: Generation | None = None,
        refusal_ids: Int[Tensor, " token"] | None = None,
        llm: LLM | None = None,
    ):
        """Nothing is asked yet.

        Args:
            vlm: left as it is.
            how: answers are made.
            refusal_ids: tokens with which the model opens refusals; without them only answers are made, and scores
                are NaN.
            llm: the original aligned checkpoint, for references of source `llm`.
        """
        self.vlm, self.how, self.refusal_ids, self.llm = vlm, how or Generation(), refusal_ids, llm
        self._texts: dict[tuple[str, str], str] = {}
        self._states: dict[tuple[str, str], Tensor] = {}
        self._said: dict[str, str] = {}
        self._first: dict[str, Tensor] = {}
        self._pictures: dict[LazyPicture | int, str] = {}

    @property
    def generation(self) -> dict:
        """All that answers depend on beside model and prompt; how many are made together is not part of it."""
        own = self.vlm.model.generation_config.to_diff_dict()
        kept = {name: value for name, value in own.items() if name != "transformers_version"}
        return {"max_new_tokens": self.how.max_new_tokens, "do_sample": False, "model": kept}

    def outcome(self, shown: Sequence[Prompt], instead_of: Sequence[Prompt] | None = None) -> Outcome:
        """What the model does with prompts, perhaps shown in place of others, from which the KL is measured."""
        keyed = self._keyed(shown)
        said = self._kept(self._said, keyed, answers)
        if self.refusal_ids is None:
            return Outcome(said, *torch.full((2, len(said)), torch.nan))
        logprobs = torch.stack(self._kept(self._first, keyed, first_token_logprobs))
        kl = torch.zeros(len(shown))
        if instead_of is not None:
            plain = torch.stack(self._kept(self._first, self._keyed(instead_of), first_token_logprobs))
            kl = kl_divergence(plain, logprobs)
        return Outcome(said, refusal_scores(logprobs, self.refusal_ids), kl)

    def _keyed(self, prompts: Sequence[Prompt]) -> list[tuple[str, Prompt]]:
        return [(self.prompt_hash(prompt), prompt) for prompt in prompts]

    def _kept(self, known: dict[str, Any], keyed: Sequence[tuple[str, Prompt]], make: Callable[..., Sequence]) -> list:
        """Made once: defences of the same prompts often ask the same."""
        missing = {key: prompt for key, prompt in keyed if key not in known}
        if missing and len(known) + len(missing) > MOST_KEPT:
            known.clear()
            missing = dict(keyed)
        if missing:
            known |= dict(zip(missing, make(self.vlm, list(missing.values()), self.how), strict=True))
        return [known[key] for key, _ in keyed]

    def ride(
        self,
        prompts: Sequence[Prompt],
        guards: Sequence[Guard | None],
        references: References = None,
        advance: Callable[[int], None] = lambda n_runs: None,
    ) -> list[Outcome]:
        """Answers and first-token scores under each guard, all for one prefill where they can ride together.

        Args:
            references: states of the reference texts, of each prompt; the same for every guard, or one for each.
            advance: called with the number of prompts times guards done since the last call.
        """
        scores = None if self.refusal_ids is None else first_token_scores(self.refusal_ids)
        rows = run_guards(self.vlm, prompts, guards, references, scores, self.how.max_new_tokens, ROWS, advance)
        unknown = torch.full((len(guards), len(prompts)), torch.nan)
        told = [self.vlm.tokenizer.batch_decode(said, skip_special_tokens=True) for said in rows.tokens]
        told = zip(told, *(rows.scores.get(name, unknown) for name in ("refusal_score", "kl")), strict=True)
        return [Outcome([text.strip() for text in said], score, kl) for said, score, kl in told]

    def read(self, prompts: Sequence[Prompt], reference: str) -> list[str]:
        """The text that the aligned LLM is shown of each prompt; pictures that were read once are not read again."""
        keys = [(reference, self.prompt_hash(prompt)) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._texts}
        if missing:
            found = reference_texts(self.vlm, list(missing.values()), reference, self.how)
            self._texts |= dict(zip(missing, found, strict=True))
        return [self._texts[key] for key in keys]

    def states(self, texts: Sequence[str], source: str = "vlm_text") -> Float[Tensor, "text layer d_model"]:
        """Last-token states of texts, without a picture: of the VLM's own LLM, or of the original one (`llm`)."""
        missing = list(dict.fromkeys(text for text in texts if (source, text) not in self._states))
        if missing and len(self._states) + len(missing) > MOST_KEPT:
            self._states.clear()
            missing = list(dict.fromkeys(texts))
        if missing:
            model = self.vlm if source == "vlm_text" else self.llm
            traced = trace(model, [text_prompt(text) for text in missing], batch_size=self.how.batch_size)
            states = torch.from_numpy(traced.resid_post.sel(token="last").values)
            self._states |= {(source, text): state for text, state in zip(missing, states, strict=True)}
        return torch.stack([self._states[source, text] for text in texts])

    def prompt_hash(self, prompt: Prompt) -> str:
        """Of all that the model is shown; a picture that is drawn is drawn for it once."""
        # Images are looked at each time: they can change in place, and the id of one that is gone can be another's.
        is_drawn = all(isinstance(picture, LazyPicture) for picture in prompt.pictures)
        return str(prompt_record(prompt, self._pictures if is_drawn else {})["prompt_hash"])
