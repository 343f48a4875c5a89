"""Many guards on many prompts, in units that are kept: here, or spread over machines."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor

from interp.activations import fingerprint, weights_identity
from interp.guard import Guard
from interp.inputs import Prompt
from interp.rows import run_rows, why_not
from interp.vlm import VLM, ModelError
from studies.guarding import ROWS, Outcome
from studies.material import Material
from studies.pieces import Pieces
from studies.scores import first_token_scores

RANKED_AT_ONCE = 64
"""Guards of a unit that are asked for the first token alone."""
ANSWERED_AT_ONCE = 16
"""Guards of a unit that answer."""


@dataclass(frozen=True)
class Run:
    """One guard on some prompts of one modality."""

    name: str
    """The same for runs that do the same."""
    guard: Guard | None
    states: Float[Tensor, "prompt layer d_model"] | None
    """Of the references."""


@dataclass(frozen=True)
class Unit:
    """Runs that share their prefills."""

    shown: str
    """Hash of the prompts."""
    prompts: Sequence[Prompt]
    runs: Sequence[Run]
    max_new_tokens: int

    @cached_property
    def name(self) -> str:
        told = [self.shown, str(self.max_new_tokens), *(run.name for run in self.runs)]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]

    def do(self, vlm: VLM, tokens: Int[Tensor, " token"], pieces: Pieces, advance: Callable[[int], None]) -> None:
        """Runs, and keeps what came out: refusal scores, KL, tokens of the answers."""
        guards, states = [run.guard for run in self.runs], [run.states for run in self.runs]
        scores = first_token_scores(tokens)
        rows = run_rows(vlm, self.prompts, guards, states, scores, self.max_new_tokens, ROWS, advance)
        arrays = {name: values.numpy() for name, values in rows.scores.items()}
        pieces.write(self.name, arrays | {"tokens": rows.tokens.numpy()})


@dataclass(frozen=True)
class _Job:
    """What every worker is given."""

    units: Sequence[Unit]
    tokens: Int[Tensor, " token"]
    pieces: Pieces
    loading: dict
    weights: str

    @cached_property
    def _vlm(self) -> VLM:
        vlm = VLM.from_pretrained(**self.loading)
        if weights_identity(vlm) != self.weights:
            raise ModelError(
                f"a worker loaded other weights ({weights_identity(vlm)}) than the sweep's ({self.weights})"
            )
        return vlm

    def do(self, piece: int) -> None:
        self.units[piece].do(self._vlm, self.tokens, self.pieces, lambda n: None)


@dataclass(frozen=True)
class Sweeper:
    """Runs guards on prompts of a material; what an earlier run has finished is not done again."""

    material: Material
    ray: str | None = None
    cpus_per_worker: int = 1

    @cached_property
    def _pieces(self) -> Pieces:
        material = self.material
        about = {"model": weights_identity(material.vlm), "refusal_tokens": material.refusal_tokens.ids.tolist()}
        # Directions, thresholds and gates follow from the anchors.
        about["anchors"] = fingerprint(material.vlm, material.prompts("anchors", "text"))
        return Pieces(Path(material.config.out) / "sweep", about)

    def units(self, prompts: Sequence[Prompt], runs: Sequence[Run], max_new_tokens: int) -> list[Unit]:
        """As many runs together as answer well together."""
        shown = fingerprint(self.material.vlm, prompts)
        size = ANSWERED_AT_ONCE if max_new_tokens > 1 else RANKED_AT_ONCE
        parts = [runs[start : start + size] for start in range(0, len(runs), size)]
        return [Unit(shown, prompts, part, max_new_tokens) for part in parts]

    def work(self, units: Sequence[Unit], report: Callable[[int], None]) -> list[Outcome]:
        """Outcomes of every run, unit by unit.

        Args:
            units: of `units`.
            report: called with the number of prompts times guards done since the last call.

        Raises:
            ModelError, TraceError: with `ray`, see `interp.crew.work`.
        """
        self._tell_what_runs_alone(units)
        pieces, tokens = self._pieces, self.material.refusal_tokens.ids
        size = lambda i: len(units[i].prompts) * len(units[i].runs)  # noqa: E731
        missing = [i for i, unit in enumerate(units) if pieces.read(unit.name) is None]
        report(sum(size(i) for i in set(range(len(units))) - set(missing)))
        if self.ray and missing:
            from interp import crew

            vlm = self.material.vlm
            job = _Job(units, tokens, pieces, crew.loading_elsewhere(vlm), weights_identity(vlm))
            is_done = lambda i: pieces.read(units[i].name) is not None  # noqa: E731
            crew.work(job, missing, is_done, lambda i: report(size(i)), self.ray, self.cpus_per_worker)
        else:
            for i in missing:
                units[i].do(self.material.vlm, tokens, pieces, report)
        return [outcome for unit in units for outcome in self._outcomes(unit)]

    def _outcomes(self, unit: Unit) -> list[Outcome]:
        arrays = {name: torch.from_numpy(values) for name, values in self._pieces.read(unit.name).items()}
        tokenizer = self.material.vlm.tokenizer
        return [
            Outcome(
                [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)],
                arrays["refusal_score"][i],
                arrays["kl"][i],
            )
            for i, tokens in enumerate(arrays["tokens"])
        ]

    def _tell_what_runs_alone(self, units: Sequence[Unit]) -> None:
        """A loop of prefills is slower by orders of magnitude; nobody should wonder why."""
        vlm, reasons = self.material.vlm, Counter()
        for unit in units:
            for run in unit.runs:
                if reason := why_not(vlm, run.guard, unit.max_new_tokens):
                    reasons[reason] += 1
        for reason, n in reasons.items():
            Console(stderr=True).print(
                f"{n} runs go one at a time, each with a prefill of its own: {reason}", soft_wrap=True
            )
