"""Training in courses: each course is a list of lessons, and what was learned is saved, so that a run can resume."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from studies.bookkeeping.progress import phase
from studies.organism import lessons

SNAPSHOT_EVERY = 300.0
"""Seconds between snapshots of an unfinished course."""


@dataclass(frozen=True)
class Stage:
    """Settings of the optimiser in one stage."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Course:
    """One stage with its lessons; the seed determines them, so a test can check them all."""

    name: str
    stage: Stage
    teacher: lessons.Teacher
    seed: int

    def batches(self) -> Iterator[list]:
        return lessons.batches(self.teacher, self.seed, self.stage.steps, self.stage.batch_size)


class Classroom:
    """Teaches one course after another and saves the student after each, so that an interrupted run can resume.

    An unfinished course resumes at its last snapshot. Any change to the recipe or to the code starts from the
    beginning.
    """

    def __init__(self, recipe: object, folder: Path, sources: Iterable[Path]):
        """Open a folder for what is learned.

        Args:
            recipe: a dataclass or plain values that every course depends on.
            folder: where students are saved.
            sources: files of code that the courses depend on.
        """
        self._folder = folder
        settings = asdict(recipe) if is_dataclass(recipe) and not isinstance(recipe, type) else recipe
        self._hash = hashlib.sha256(json.dumps([settings, version("torch")], default=str).encode())
        for source in sorted(sources):
            self._hash.update(source.read_bytes())
        folder.mkdir(parents=True, exist_ok=True)

    def teach(self, student: nn.Module, course: Course, loss: Callable, learners: dict[nn.Module, float]) -> None:
        """Run a course, or load the student as it was saved after it.

        Args:
            student: the model whose state is saved.
            course: the lessons.
            loss: loss of one batch of lessons.
            learners: parts of the student that are trained, each with its share of the learning rate.
        """
        self._hash.update(repr((course.name, course.stage, list(learners.values()))).encode())
        saved = self._folder / f"{course.name.replace(':', '')} {self._hash.hexdigest()[:12]}.safetensors"
        if saved.exists():
            load_model(student, saved)
            return
        student.requires_grad_(False)
        for learner in learners:
            learner.requires_grad_(True)
        snapshot = saved.with_suffix(".snapshot")
        _optimise([(learner.parameters(), share) for learner, share in learners.items()], course, loss, snapshot)
        unfinished = saved.with_suffix(".part")
        save_model(student, str(unfinished))
        unfinished.rename(saved)
        snapshot.unlink(missing_ok=True)


def _optimise(
    learners: list[tuple[Iterable[nn.Parameter], float]], course: Course, loss: Callable, snapshot: Path
) -> None:
    """Optimise with AdamW: warm-up, cosine decay to zero, gradients clipped at 1."""
    stage = course.stage
    groups = [{"params": list(parameters), "lr": stage.learning_rate * share} for parameters, share in learners]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], total_steps=stage.steps, pct_start=0.08, cycle_momentum=False
    )
    parameters = [p for group in groups for p in group["params"]]
    done = _resume(optimiser, schedule, parameters, snapshot)
    last = time.monotonic()
    with phase(course.name, stage.steps) as report:
        report(done)
        for step, batch in enumerate(islice(course.batches(), done, None), done + 1):
            value = loss(batch)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            report(1, note=f"loss {value.item():.3f}")
            if time.monotonic() - last > SNAPSHOT_EVERY:
                _save(optimiser, parameters, step, snapshot)
                last = time.monotonic()


def _save(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], step: int, snapshot: Path) -> None:
    """Write the learners, their moments and the number of steps."""
    tensors: dict[str, Tensor] = {"step": torch.tensor(step)}
    for i, parameter in enumerate(parameters):
        state: Mapping[str, Tensor] = optimiser.state.get(parameter, {})
        tensors |= {f"{i}.{name}": value.contiguous() for name, value in state.items()}
        tensors[f"{i}.weight"] = parameter.detach().contiguous()
    unfinished = snapshot.with_suffix(".unfinished")
    save_file(tensors, unfinished)
    unfinished.rename(snapshot)


def _resume(optimiser: torch.optim.Optimizer, schedule, parameters: list[nn.Parameter], snapshot: Path) -> int:
    """Read a snapshot into learners, optimiser and schedule, and return the number of steps done; 0 without one."""
    if not snapshot.exists():
        return 0
    tensors = load_file(snapshot)
    for i, parameter in enumerate(parameters):
        own = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{i}.")}
        with torch.no_grad():
            parameter.copy_(own.pop("weight"))
        if own:
            optimiser.state[parameter] = own
    done = int(tensors["step"])
    with warnings.catch_warnings():
        # Steps of the schedule that belong to steps of the optimiser in an earlier run.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        for _ in range(done):
            schedule.step()
    return done
