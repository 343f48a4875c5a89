"""Many guards on many prompts, each run kept when it is done: here, or spread over machines."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor

from interp.activations import fingerprint, weights_identity
from interp.guard import Guard
from interp.guard_batches import run_guards, why_not
from interp.inputs import Prompt
from interp.vlm import VLM, ModelError
from studies.bookkeeping.checkpoints import Checkpoints
from studies.experiment.experiment import Experiment
from studies.generation.cached_model import ROWS, Outcome
from studies.generation.first_token import first_token_scores

RANKED_AT_ONCE = 64
"""Guards of a unit that are asked for the first token alone."""
ANSWERED_AT_ONCE = 16
"""Guards of a unit that answer."""


@dataclass(frozen=True)
class GuardRun:
    """One guard on some prompts."""

    guard: Guard | None
    states: Float[Tensor, "prompt layer d_model"] | None
    """Of the references; the same object in all runs that share it."""


@dataclass(frozen=True)
class RunBatch:
    """Runs on the same prompts."""

    prompts: Sequence[Prompt]
    runs: Sequence[GuardRun]
    max_new_tokens: int


@dataclass(frozen=True)
class _Unit:
    """Some runs of a batch, which share their prefills."""

    batch: RunBatch
    names: Sequence[str]
    """Of the pieces."""

    def do(self, vlm: VLM, tokens: Int[Tensor, " token"], pieces: Checkpoints, advance: Callable[[int], None]) -> None:
        """Runs, and keeps what came out: refusal scores, KL, tokens of the answers."""
        batch = self.batch
        guards, states = [run.guard for run in batch.runs], [run.states for run in batch.runs]
        rows = run_guards(
            vlm, batch.prompts, guards, states, first_token_scores(tokens), batch.max_new_tokens, ROWS, advance
        )
        arrays = {name: values.numpy() for name, values in rows.scores.items()} | {"tokens": rows.tokens.numpy()}
        for i, name in enumerate(self.names):
            pieces.write(name, {kind: values[i] for kind, values in arrays.items()})

    @property
    def size(self) -> int:
        return len(self.batch.prompts) * len(self.names)


@dataclass(frozen=True)
class _SweepJob:
    """What every worker is given."""

    units: Sequence[_Unit]
    tokens: Int[Tensor, " token"]
    pieces: Checkpoints
    loading: dict
    weights: str

    @cached_property
    def _vlm(self) -> VLM:
        vlm, theirs = VLM.from_pretrained(**self.loading), self.weights
        if weights_identity(vlm) != theirs:
            raise ModelError(f"a worker loaded other weights ({weights_identity(vlm)}) than the sweep's ({theirs})")
        return vlm

    def do(self, piece: int) -> None:
        self.units[piece].do(self._vlm, self.tokens, self.pieces, lambda n: None)


@dataclass(frozen=True)
class GuardRunner:
    """Runs guards on prompts of a material; a run that an earlier sweep has finished is not done again."""

    material: Experiment
    ray: str | None = None
    cpus_per_worker: int = 1

    @cached_property
    def _pieces(self) -> Checkpoints:
        vlm = self.material.vlm
        about = {"model": weights_identity(vlm), "refusal_tokens": self.material.refusal_tokens.ids.tolist()}
        # The model's own settings decide what it says, too.
        about["generation"] = vlm.model.generation_config.to_diff_dict()
        return Checkpoints(Path(self.material.config.out) / "sweep", about)

    def work(self, batches: Sequence[RunBatch], report: Callable[[int], None]) -> list[Outcome]:
        """Outcomes of every run, batch by batch.

        Args:
            batches: runs of each.
            report: called with the number of prompts times guards done since the last call.

        Raises:
            ModelError, TraceError: with `ray`, see `interp.tracing.cluster.work`.
        """
        pieces, tokens = self._pieces, self.material.refusal_tokens.ids
        names = [self._names(batch) for batch in batches]
        units = [unit for batch, own in zip(batches, names, strict=True) for unit in self._missing(batch, own)]
        total = sum(len(batch.prompts) * len(batch.runs) for batch in batches)
        report(total - sum(unit.size for unit in units))
        self._tell_what_runs_alone(units)
        if self.ray and units:
            from interp.tracing import cluster

            vlm = self.material.vlm
            job = _SweepJob(units, tokens, pieces, cluster.loading_elsewhere(vlm), weights_identity(vlm))
            is_done = lambda i: all(pieces.has(name) for name in units[i].names)  # noqa: E731
            done = lambda i: report(units[i].size)  # noqa: E731
            cluster.work(job, range(len(units)), is_done, done, self.ray, self.cpus_per_worker)
        else:
            for unit in units:
                unit.do(self.material.vlm, tokens, pieces, report)
        return [self._outcome(name) for own in names for name in own]

    def _names(self, batch: RunBatch) -> list[str]:
        """Everything that an outcome depends on, but for the model."""
        shown, hashes = fingerprint(self.material.vlm, batch.prompts), {}
        return [_name(shown, batch.max_new_tokens, run, hashes) for run in batch.runs]

    def _missing(self, batch: RunBatch, names: Sequence[str]) -> list[_Unit]:
        """As many runs together as go well together."""
        size = ANSWERED_AT_ONCE if batch.max_new_tokens > 1 else RANKED_AT_ONCE
        left = [i for i, name in enumerate(names) if self._pieces.read(name) is None]
        parts = [left[start : start + size] for start in range(0, len(left), size)]
        return [_Unit(replace(batch, runs=[batch.runs[i] for i in part]), [names[i] for i in part]) for part in parts]

    def _outcome(self, name: str) -> Outcome:
        arrays, tokenizer = self._pieces.read(name), self.material.vlm.tokenizer
        refusal_score, kl = (torch.from_numpy(arrays[kind]) for kind in ("refusal_score", "kl"))
        texts = tokenizer.batch_decode(arrays["tokens"], skip_special_tokens=True)
        return Outcome([text.strip() for text in texts], refusal_score, kl)

    def _tell_what_runs_alone(self, units: Sequence[_Unit]) -> None:
        """A loop of prefills is slower by orders of magnitude; nobody should wonder why."""
        vlm, reasons = self.material.vlm, Counter()
        for unit in units:
            for run in unit.batch.runs:
                if reason := why_not(vlm, run.guard, unit.batch.max_new_tokens):
                    reasons[reason] += 1
        for reason, n in reasons.items():
            told = f"{n} runs go one at a time, each with a prefill of its own: {reason}"
            Console(stderr=True).print(told, soft_wrap=True)


def _name(shown: str, n_new: int, run: GuardRun, hashes: dict[int, str]) -> str:
    """Of a run's piece.

    Args:
        shown: hash of the prompts.
        n_new: longest answer.
        run: whose guard's settings and tensors count, and the states of its references.
        hashes: of tensors so far, by id: many runs share theirs.
    """
    told = [shown, str(n_new)]
    if run.guard is not None:
        # What guards are not told apart by changes nothing that they do.
        settings = {field.name: getattr(run.guard, field.name) for field in fields(run.guard) if field.compare}
        direction, probe = settings.pop("direction"), settings.pop("probe")
        known = (direction.basis, direction.harmful, direction.harmless, direction.centre, run.states)
        tensors = [*known, *(getattr(probe, field.name) for field in fields(probe))] if probe else known
        told += [str(sorted(settings.items(), key=str)), *(_hashed(one, hashes) for one in tensors)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:20]


def _hashed(value: object, hashes: dict[int, str]) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    if id(value) not in hashes:
        hashes[id(value)] = hashlib.sha256(np.ascontiguousarray(value.cpu().float().numpy())).hexdigest()
    return hashes[id(value)]
