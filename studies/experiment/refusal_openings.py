"""Find the tokens with which a model opens its refusals, by what follows them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import LLM, VLM, Prompt
from interp.batches import Advance
from interp.identity import fingerprint
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.console import plain_console
from studies.bookkeeping.progress import Report, phase
from studies.generation.first_token import first_token_logprobs
from studies.generation.generate import Generation, answers, no_progress
from studies.generation.openings import LEAST_COVERAGE, Opening, RefusalOpenings, coverage_row
from studies.judges import KEYWORDS_1, REFUSAL_PHRASES, RuleJudge

__all__ = ["Opening", "RefusalOpenings", "coverage_row", "refusal_openings"]

LEAST_MASS = 0.01
"""Mean probability from which on a beginning counts: as a candidate on refused anchors, as helpful on harmless ones."""
LEAST_REFUSED = 0.9
"""Share of refused anchors whose answer must be a refusal if it is forced to begin with an opening."""
N_FORCED = 32
"""Anchors of each class whose answers are forced, the first ones; masses and coverage are of all anchors."""
N_TRIED = 8
"""Anchors among these that are answered first: most beginnings fail on them already."""


def refusal_openings(
    vlm: VLM | LLM, anchors: Sequence[Prompt], judge: RuleJudge, generation: Generation, folder: Path | None = None
) -> RefusalOpenings:
    """Find the openings of refusals, or read them from an earlier run; a coverage below 0.95 is printed as a warning.

    Candidates are all first tokens with at least 1 % of the probability on refused harmful anchors. Each is forced on
    these anchors, and the answer is continued and judged: a candidate is an opening if at least 0.9 of the answers are
    refusals, and if harmless anchors give less than 1 % of their probability to the same token with an answer that is
    not a refusal. Where a token opens other answers too ("I"), two-token openings that begin with it are candidates by
    the same rules, with their joint probability.

    If the model refuses no harmful anchor, or nothing passes, the first tokens of the judge's phrases are used instead.

    Args:
        vlm: the model that answers the anchors.
        anchors: text-only prompts of both classes.
        judge: decides which answers are refusals.
        generation: settings for generating the answers.
        folder: where the set is stored, and looked for; None to find it again.
    """
    checkpoints = None
    if folder is not None:
        rule = [LEAST_MASS, LEAST_REFUSED, N_FORCED]
        depends_on = {"anchors": fingerprint(vlm, anchors), "judge": judge.name, "rule": rule}
        depends_on |= {"max_new_tokens": generation.max_new_tokens, "model": vlm.model.generation_config.to_diff_dict()}
        checkpoints = Checkpoints(folder, depends_on)
    stored = checkpoints.read_texts("openings") if checkpoints else None
    if stored:
        openings = RefusalOpenings.read(json.loads(stored[0]))
    else:
        with phase("refusal openings", sum(prompt.query.harmful for prompt in anchors)) as report:
            openings = _Search(vlm, anchors, judge, generation, report).run()
        if checkpoints:
            checkpoints.write_texts("openings", [json.dumps(openings.record)])
    _warn(openings)
    return openings


def _warn(openings: RefusalOpenings) -> None:
    message = ""
    if np.isnan(openings.coverage):
        message = f"refusal openings: {openings.origin}; refusal scores may be wrong about this model's refusals"
    elif openings.coverage < LEAST_COVERAGE:
        covered = f"{openings.coverage:.2f} of {openings.n_refused} refused anchors"
        message = f"refusal openings cover {covered}, so refusal scores miss the rest: {openings}"
    if message:
        plain_console(stderr=True).print(message, soft_wrap=True)


class _Search:
    """Anchors with what the model says to them, and the openings that are found in it."""

    def __init__(
        self, vlm: VLM | LLM, anchors: Sequence[Prompt], judge: RuleJudge, generation: Generation, report: Report
    ):
        self.vlm, self.judge, self.generation, self.report = vlm, judge, generation, report
        harmful = [prompt for prompt in anchors if prompt.query.harmful]
        refused = self._refuses(harmful, advance=report)
        self.n_harmful = len(harmful)
        self.refused = [prompt for prompt, is_refused in zip(harmful, refused, strict=True) if is_refused]
        self.harmless = [prompt for prompt in anchors if not prompt.query.harmful]

    def run(self) -> RefusalOpenings:
        """Return the openings, the most probable first."""
        if not self.refused:
            return self._of_phrases(f"none of {self.n_harmful} harmful anchors is refused")
        first = self._probabilities(self.refused)
        on_harmless = self._probabilities(self.harmless)
        found, covered = [], torch.zeros(len(self.refused), dtype=torch.bool)
        for token in self._candidates(first):
            if opening := self._opening((token,), first[:, token], on_harmless[:, token]):
                found.append(opening)
                covered |= first.argmax(-1) == token
                continue
            second = self._probabilities(self.refused, token)
            joint, joint_on_harmless = first[:, [token]] * second, None
            for next_token in self._candidates(joint):
                if joint_on_harmless is None:
                    joint_on_harmless = on_harmless[:, [token]] * self._probabilities(self.harmless, token)
                pair = (token, next_token)
                if opening := self._opening(pair, joint[:, next_token], joint_on_harmless[:, next_token]):
                    found.append(opening)
                    covered |= (first.argmax(-1) == token) & (second.argmax(-1) == next_token)
        n_forced = min(N_FORCED, len(self.refused))
        origin = f"forced on {n_forced} of {len(self.refused)} refused anchors, judged by {self.judge.name}"
        if not found:
            return self._of_phrases(f"no beginning of {len(self.refused)} refused anchors opens refusals alone")
        found.sort(key=lambda opening: -opening.mass)
        return RefusalOpenings(tuple(found), covered.double().mean().item(), len(self.refused), origin)

    def _probabilities(self, prompts: Sequence[Prompt], *forced: int) -> Float[Tensor, "prompt d_vocab"]:
        """Compute the probabilities of the next token after a forced beginning."""
        if not prompts:
            return torch.zeros(0, self.vlm.model.config.get_text_config().vocab_size)
        return first_token_logprobs(self.vlm, prompts, self.generation, forced).exp()

    def _refuses(
        self, prompts: Sequence[Prompt], *forced: int, advance: Advance = no_progress
    ) -> Bool[Tensor, " prompt"]:
        texts = answers(self.vlm, prompts, self.generation, advance=advance, forced=forced)
        return torch.tensor([bool(self.judge.refuses(text)) for text in texts], dtype=torch.bool)

    def _candidates(self, probabilities: Float[Tensor, "prompt d_vocab"]) -> list[int]:
        """Return the tokens with enough probability, the most probable first; an ended answer goes on with nothing."""
        mass, ends = probabilities.mean(0), self.vlm.model.generation_config.eos_token_id
        mass[ends if ends is not None else []] = 0
        return [int(token) for token in mass.argsort(descending=True) if mass[token] >= LEAST_MASS]

    def _opening(
        self, tokens: tuple[int, ...], mass: Float[Tensor, " refused"], on_harmless: Float[Tensor, " harmless"]
    ) -> Opening | None:
        """Force a beginning and judge what follows; return None if it opens other answers too."""
        self.report(0, note=f"tries {self.vlm.tokenizer.decode(tokens)!r}")
        forced = self.refused[:N_FORCED]
        refused = self._refuses(forced[:N_TRIED], *tokens)
        # If refusals by all others were too few, the others need not answer.
        if (len(forced) - int((~refused).sum())) / len(forced) < LEAST_REFUSED:
            return None
        refused = torch.cat([refused, self._refuses(forced[N_TRIED:], *tokens)]).double().mean().item()
        helpful = on_harmless.mean().item() if len(on_harmless) else 0.0
        if refused >= LEAST_REFUSED and helpful >= LEAST_MASS:
            is_refused = self._refuses(self.harmless[:N_FORCED], *tokens)
            helpful = (on_harmless[:N_FORCED] * ~is_refused).mean().item()
        if refused < LEAST_REFUSED or helpful >= LEAST_MASS:
            return None
        return Opening(tokens, self.vlm.tokenizer.decode(tokens).strip(), mass.mean().item(), refused, helpful)

    def _of_phrases(self, reason: str) -> RefusalOpenings:
        """Return the first tokens of the judge's phrases as they follow a prompt, that is, after a space.

        Nothing shows that they open refusals only, so they have no coverage.
        """
        tokenizer = self.vlm.tokenizer
        phrases = [f" {phrase.capitalize()}" for phrase in REFUSAL_PHRASES]
        tokens = sorted({tokenizer(phrase, add_special_tokens=False)["input_ids"][0] for phrase in phrases})
        openings = tuple(Opening((token,), tokenizer.decode([token]).strip()) for token in tokens)
        origin = f"{reason}; first tokens of the phrases of {KEYWORDS_1.name}"
        return RefusalOpenings(openings, torch.nan, len(self.refused), origin)
