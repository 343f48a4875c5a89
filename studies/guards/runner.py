"""Run many guards on many prompts, here or on a cluster, and save each run when it is finished."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import LLM, VLM, Guard, ModelError, Prompt, Sampling, run_guards, why_not_together
from interp.identity import fingerprint, weights_identity
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.console import plain_console
from studies.experiment.experiment import Experiment
from studies.generation.cached_model import PROMPTS_PER_PASS, Outcome
from studies.generation.first_token import first_token_scores
from studies.generation.generate import answer_texts
from studies.generation.openings import RefusalOpenings

RANKED_TOGETHER = 64
"""Guards of a unit that produce the first token only."""
ANSWERED_TOGETHER = 16
"""Guards of a unit that produce whole answers."""


@dataclass(frozen=True)
class GuardRun:
    """One guard with the reference states of its prompts."""

    guard: Guard | None
    """None for the unguarded model."""
    states: Float[Tensor, "prompt layer d_model"] | None
    """Reference states; runs with the same references share one tensor."""
    sampling: Sampling | None = None
    """How the answers are drawn; None for greedy ones."""


@dataclass(frozen=True)
class RunBatch:
    """Runs on the same prompts."""

    prompts: Sequence[Prompt]
    runs: Sequence[GuardRun]
    max_new_tokens: int


@dataclass(frozen=True)
class _Unit:
    """Runs of a batch that are started together and share their prefills where they can."""

    batch: RunBatch
    names: Sequence[str]
    """Checkpoint names, one per run."""

    def run(
        self, vlm: VLM | LLM, openings: RefusalOpenings, checkpoints: Checkpoints, advance: Callable[[int], None]
    ) -> None:
        """Run, and save refusal scores, KL and the tokens of the answers."""
        batch = self.batch
        guards, states = [run.guard for run in batch.runs], [run.states for run in batch.runs]
        scores, samplings = first_token_scores(openings), [run.sampling for run in batch.runs]
        runs = run_guards(
            vlm,
            batch.prompts,
            guards,
            states,
            scores,
            batch.max_new_tokens,
            PROMPTS_PER_PASS,
            advance,
            sampling=samplings,
        )
        arrays = {name: values.numpy() for name, values in runs.scores.items()} | {"tokens": runs.tokens.numpy()}
        for i, name in enumerate(self.names):
            checkpoints.write(name, {kind: values[i] for kind, values in arrays.items()})

    @property
    def size(self) -> int:
        """Number of prompts times guards."""
        return len(self.batch.prompts) * len(self.names)


@dataclass(frozen=True)
class _SweepJob:
    """The units of a sweep, as they are sent to every worker of a cluster."""

    units: Sequence[_Unit]
    openings: RefusalOpenings
    checkpoints: Checkpoints
    kind: type[VLM | LLM]
    loading: dict
    """Arguments of its `from_pretrained`."""
    weights: str
    """Identity of the weights that every worker must have loaded."""

    @cached_property
    def _vlm(self) -> VLM | LLM:
        vlm, expected = self.kind.from_pretrained(**self.loading), self.weights
        if weights_identity(vlm) != expected:
            raise ModelError(f"a worker loaded other weights ({weights_identity(vlm)}) than the sweep's ({expected})")
        return vlm

    def run_piece(self, piece: int) -> None:
        self.units[piece].run(self._vlm, self.openings, self.checkpoints, lambda n_runs: None)


@dataclass(frozen=True)
class GuardRunner:
    """Runs guards on the prompts of an experiment; runs that an earlier sweep has finished are read from disk."""

    experiment: Experiment
    ray: str | None = None
    """Address of a cluster; None to run here."""
    cpus_per_worker: int = 1
    """CPUs per worker on a cluster without GPUs."""

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        vlm = self.experiment.vlm
        depends_on = {
            "model": weights_identity(vlm),
            "refusal_openings": self.experiment.refusal_openings.ids,
            # The model's own generation settings change its answers too.
            "generation": vlm.model.generation_config.to_diff_dict(),
        }
        return Checkpoints(Path(self.experiment.config.out) / "sweep", depends_on)

    def answered(
        self,
        prompts: Sequence[Prompt],
        guards: Sequence[Guard | None],
        states: Sequence[Float[Tensor, "prompt layer d_model"] | None],
        report: Callable[[int], None] = lambda n_runs: None,
    ) -> list[Outcome]:
        """Return the outcome of whole answers to prompts under each guard.

        Args:
            prompts: answered under every guard.
            guards: None for the unguarded model.
            states: reference states for each guard.
            report: see `run`.
        """
        runs = [GuardRun(guard, own) for guard, own in zip(guards, states, strict=True)]
        return self.run([RunBatch(prompts, runs, self.experiment.config.generation.max_new_tokens)], report)

    def run(self, batches: Sequence[RunBatch], report: Callable[[int], None]) -> list[Outcome]:
        """Return the outcome of every run, batch by batch.

        Args:
            batches: guards and prompts to run.
            report: called with the number of prompts times guards finished since the last call.

        Raises:
            ModelError, TraceError: with `ray`, see `interp.tracing.cluster.run_job`.
        """
        names = [self._run_names(batch) for batch in batches]
        units = [unit for batch, own in zip(batches, names, strict=True) for unit in self._missing(batch, own)]
        total = sum(len(batch.prompts) * len(batch.runs) for batch in batches)
        report(total - sum(unit.size for unit in units))
        self._print_separate_runs(units)
        if self.ray and units:
            self._run_on_cluster(units, report)
        else:
            for unit in units:
                unit.run(self.experiment.vlm, self.experiment.refusal_openings, self._checkpoints, report)
        return [self._outcome(name) for own in names for name in own]

    def _run_on_cluster(self, units: Sequence[_Unit], report: Callable[[int], None]) -> None:
        from interp.tracing import cluster

        vlm, checkpoints = self.experiment.vlm, self._checkpoints
        openings, loading = self.experiment.refusal_openings, cluster.loading_for_workers(vlm)
        job = _SweepJob(units, openings, checkpoints, type(vlm), loading, weights_identity(vlm))

        def is_done(piece: int) -> bool:
            return all(checkpoints.has(name) for name in units[piece].names)

        def advance(piece: int) -> None:
            report(units[piece].size)

        cluster.run_job(job, range(len(units)), is_done, advance, self.ray, self.cpus_per_worker)

    def _run_names(self, batch: RunBatch) -> list[str]:
        prompts, hashes = fingerprint(self.experiment.vlm, batch.prompts), {}
        return [run_name(prompts, batch.max_new_tokens, run, hashes) for run in batch.runs]

    def _missing(self, batch: RunBatch, names: Sequence[str]) -> list[_Unit]:
        """Group the runs that are not on disk into units of a suitable size."""
        size = ANSWERED_TOGETHER if batch.max_new_tokens > 1 else RANKED_TOGETHER
        missing = [i for i, name in enumerate(names) if self._checkpoints.read(name) is None]
        groups = [missing[start : start + size] for start in range(0, len(missing), size)]
        return [
            _Unit(replace(batch, runs=[batch.runs[i] for i in group]), [names[i] for i in group]) for group in groups
        ]

    def _outcome(self, name: str) -> Outcome:
        arrays = self._checkpoints.read(name)
        refusal_score, kl = (torch.from_numpy(arrays[kind]) for kind in ("refusal_score", "kl"))
        texts, tokens = answer_texts(self.experiment.vlm, arrays["tokens"]), torch.from_numpy(arrays["tokens"])
        return Outcome([text.strip() for text in texts], refusal_score, kl, tokens=tokens)

    def _print_separate_runs(self, units: Sequence[_Unit]) -> None:
        """Say which runs can't share a prefill and why, since they take orders of magnitude longer."""
        vlm, reasons = self.experiment.vlm, Counter()
        for unit in units:
            for run in unit.batch.runs:
                if reason := why_not_together(vlm, run.guard, unit.batch.max_new_tokens):
                    reasons[reason] += 1
        for reason, n in reasons.items():
            message = f"{n} runs go one at a time, each with a prefill of its own: {reason}"
            plain_console(stderr=True).print(message, soft_wrap=True)


def run_name(prompts: str, max_new_tokens: int, run: GuardRun, hashes: dict[int, str]) -> str:
    """Hash everything that the outcome of a run depends on, apart from the model.

    Args:
        prompts: fingerprint of the prompts.
        max_new_tokens: length of the longest answer.
        run: its guard's settings and tensors count, its reference states, and how answers are drawn.
        hashes: hashes of tensors by id, filled as they are computed: many runs share their tensors.
    """
    parts = [prompts, str(max_new_tokens), *([str(run.sampling)] if run.sampling else [])]
    if run.guard is not None:
        # Fields that are not compared, such as the guard's validation numbers, do not change what it does.
        settings = {field.name: getattr(run.guard, field.name) for field in fields(run.guard) if field.compare}
        direction, probe = settings.pop("direction"), settings.pop("probe")
        tensors = [direction.basis, direction.harmful, direction.harmless, direction.centre, run.states]
        # Most directions have none, and their runs keep the names that they have on disk.
        tensors += [] if direction.readout is None else [direction.readout]
        tensors += [getattr(probe, field.name) for field in fields(probe)] if probe else []
        parts += [str(sorted(settings.items(), key=str)), *(_hash_of(tensor, hashes) for tensor in tensors)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _hash_of(value: object, hashes: dict[int, str]) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    if id(value) not in hashes:
        hashes[id(value)] = hashlib.sha256(np.ascontiguousarray(value.cpu().float().numpy())).hexdigest()
    return hashes[id(value)]
