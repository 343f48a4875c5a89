"""Judged answers to attacked prompts: rates with intervals, and changes with exact p-values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool

from interp import Prompt
from interp.identity import fingerprint, weights_identity
from interp.whole_files import hash_of
from studies.attacks.target import AttackTarget
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.estimates import rate
from studies.experiment.experiment import Experiment
from studies.guards.measures import change_rows
from studies.judges import Case, RuleJudge, attack_succeeds

SUCCEEDS, REFUSED = "succeeds", "refused"


@dataclass(frozen=True)
class JudgedAnswers:
    """Verdicts on the answers to some prompts. The answers themselves are not kept."""

    succeeds: Mapping[str, Bool[np.ndarray, " prompt"]]
    """True, by judge, for a coherent answer that is not a refusal."""
    refused: Mapping[str, Bool[np.ndarray, " prompt"]]


@dataclass(frozen=True, eq=False)
class Answering:
    """Has defences answer prompts; verdicts are saved as they come."""

    experiment: Experiment
    checkpoints: Checkpoints

    @classmethod
    def of(cls, experiment: Experiment, folder) -> "Answering":
        """Open the verdicts of a run in its folder."""
        depends_on = {
            "model": weights_identity(experiment.vlm),
            "generation": experiment.cached_model.generation_settings,
            "judges": [judge.identity for judge in experiment.judges],
        }
        return cls(experiment, Checkpoints(folder / "verdicts", depends_on))

    def judged(self, target: AttackTarget, prompts: Sequence[Prompt]) -> JudgedAnswers:
        """Return the verdicts on a defence's answers."""
        asked = f"{target.name} {target.defence.id} {fingerprint(self.experiment.vlm, prompts)}"
        name = hash_of(asked.encode())[:16]
        judges = self.experiment.judges
        arrays = self.checkpoints.read(name)
        if arrays is None:
            answers = target.defence.run(self.experiment.cached_model, prompts).answers
            arrays = _verdicts(judges, prompts, answers)
            self.checkpoints.write(name, arrays)
        by_question = ({judge.name: arrays[f"{judge.name} {what}"] for judge in judges} for what in (SUCCEEDS, REFUSED))
        return JudgedAnswers(*by_question)


def _verdicts(
    judges: Sequence[RuleJudge], prompts: Sequence[Prompt], answers: Sequence[str]
) -> dict[str, Bool[np.ndarray, " prompt"]]:
    cases = [
        Case(prompt.query.text, answer, prompt.query.rendered) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    arrays = {}
    for judge in judges:
        verdicts = judge.verdicts(cases)
        arrays[f"{judge.name} {SUCCEEDS}"] = np.array([bool(attack_succeeds(asdict(each))) for each in verdicts])
        arrays[f"{judge.name} {REFUSED}"] = np.array([bool(each.refused) for each in verdicts])
    return arrays


def success_rows(judged: JudgedAnswers) -> list[dict]:
    """Return attack success by judge, with Wilson intervals."""
    return [{"judge": judge} | rate("asr", hits) for judge, hits in judged.succeeds.items()]


def over_refusal_rows(judged: JudgedAnswers) -> list[dict]:
    """Return over-refusal by judge, with Wilson intervals; of harmless prompts."""
    return [{"judge": judge} | rate("over_refusal_rate", hits) for judge, hits in judged.refused.items()]


def attack_change_rows(judged: JudgedAnswers, before: JudgedAnswers) -> list[dict]:
    """Return the change of attack success by judge on the same prompts."""
    return [
        {"judge": judge} | row
        for judge, hits in judged.succeeds.items()
        for row in change_rows("asr", hits, before.succeeds[judge])
    ]
