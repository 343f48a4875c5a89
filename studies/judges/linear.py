"""A linear judge: reads from a model's hidden states whether an answer refuses."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from interp import LLM, VLM, SafetyDirection, text_prompt, trace
from interp.control_tokens import without_control_tokens
from probes import LogisticProbe, Measured, accuracy
from studies.judges.verdicts import Case, Verdict


@dataclass(frozen=True)
class LinearJudge:
    """One direction of one layer, read at the last token of request and answer as text.

    Fitted on the reader's own answers, it reads what the reader represents; it is not a second opinion on another model
    until its accuracy was measured there.
    """

    name: str
    reader: VLM | LLM
    layer: int
    weights: Float[np.ndarray, " d_model"]
    bias: float
    anchors: frozenset[Case] = frozenset()
    """The cases it was fitted on, which can't be used to measure its accuracy."""
    validation: Measured | None = None
    """Accuracy on answers that it was not fitted on; without it the judge gives no verdicts."""

    @property
    def identity(self) -> str:
        """The layer, the reader, and a hash of the weights."""
        digest = hashlib.sha256(np.append(self.weights, self.bias).astype(np.float64).tobytes()).hexdigest()[:16]
        return f"layer {self.layer} of {self.reader.name}, weights {digest}"

    @classmethod
    def fit(cls, reader: VLM | LLM, layer: int, cases: Sequence[Case], refused: Sequence[bool]) -> "LinearJudge":
        """Fit a logistic probe on labelled answers; answers to one request stay in one fold.

        Args:
            reader: model whose states are read.
            layer: which layer is read.
            cases: the answers.
            refused: whether each of them is a refusal.

        Raises:
            ValueError: one of the classes is missing.
        """
        groups = np.array([case.request for case in cases])
        probe = LogisticProbe().fit(_states(reader, layer, cases), np.asarray(refused, dtype=bool), groups)
        return cls("linear@1", reader, layer, probe.coef_[0], probe.bias, frozenset(cases))

    @classmethod
    def of_direction(cls, reader: VLM | LLM, layer: int, direction: SafetyDirection) -> "LinearJudge":
        """Use the first row of a fitted direction, with the threshold half way between the classes."""
        weights = direction.basis[layer, 0].double().numpy()
        return cls("linear_direction@1", reader, layer, weights, -direction.midpoint(layer))

    def checked(self, cases: Sequence[Case], refused: Sequence[bool]) -> "LinearJudge":
        """Return the judge with its accuracy on other answers, with Wilson's interval over requests.

        Raises:
            ValueError: there is only one class, or some cases are anchors.
        """
        seen = sum(case in self.anchors for case in cases)
        if seen:
            raise ValueError(f"{seen} of {len(cases)} cases are anchors; expected answers the judge was not fitted on")
        labels = np.asarray(refused, dtype=bool)
        if len(set(labels)) != 2:
            raise ValueError(f"all {len(labels)} answers are of one class; expected refusals and other answers")
        is_right = self._is_refusal(_states(self.reader, self.layer, cases)) == labels
        return replace(self, validation=accuracy(is_right, [case.request for case in cases]))

    def _is_refusal(self, states: Float[np.ndarray, "case d_model"]) -> Bool[np.ndarray, " case"]:
        return states @ self.weights + self.bias > 0

    def verdicts(self, cases: Sequence[Case], advance: Callable[[int], None] = lambda n_cases: None) -> list[Verdict]:
        """Judge each case by its state; the judge's words give its accuracy.

        Raises:
            ValueError: the accuracy was not measured.
        """
        if self.validation is None:
            raise ValueError(f"the accuracy of {self.name} is unknown; measure it with judge.checked(cases, refused)")
        is_refusal = self._is_refusal(_states(self.reader, self.layer, cases, advance))
        accuracy = self.validation
        interval = f"[{accuracy.ci_low:.2f}, {accuracy.ci_high:.2f}]"
        said = f"accuracy {accuracy.value:.2f} {interval} on {accuracy.n} other answers"
        return [Verdict(refused=bool(refused), said=said) for refused in is_refusal]


def _states(
    reader: VLM | LLM, layer: int, cases: Sequence[Case], advance: Callable[[int], None] = lambda n_cases: None
) -> Float[np.ndarray, "case d_model"]:
    texts = [without_control_tokens(reader, f"{case.request}\n{case.answer}") for case in cases]
    prompts = [text_prompt(text) for text in texts]
    states = trace(reader, prompts, layers=(layer,), advance=advance).resid_post
    return states.sel(token="last", layer=layer).values.astype(np.float64)
