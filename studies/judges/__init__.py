"""Judges of answers. A judge turns a `Case` (request and answer) into a `Verdict` (refused? harmful?).

| judge | file |
|---|---|
| by rule: own keywords, published keyword lists, exact forms | `rules.py`, `own_keywords.py`, `keywords.py` |
| by model, asked with a rubric | `models.py`, `rubrics.py` |
| behind an endpoint, asked with a rubric | `endpoint.py`, `rubrics.py` |
| by sequence classifier | `classifiers.py` |
| by a direction in hidden states | `linear.py` |

`verdicts.py` says what a judge is, `by_name.py` finds a judge by its name, `agreement.py` compares judges with each
other and with people, `replies.py` stores what models have replied.

To add a judge:

- a keyword list: add a `KeywordRule` to `RULES` in `keywords.py`; it is found by its name without version;
- a way of asking a model: add a `Rubric` to `RUBRICS` in `rubrics.py`; it is found as `NAME=MODEL`;
- anything else: write a class with `name`, `identity` and `verdicts` (the protocol `Judge` in `verdicts.py`), and add
  its name to `judge_named` in `by_name.py`.
"""

from studies.judges.classifiers import ClassifierJudge
from studies.judges.endpoint import EndpointError, EndpointJudge
from studies.judges.keywords import PUBLISHED, KeywordRule
from studies.judges.linear import LinearJudge
from studies.judges.loops import is_looping
from studies.judges.models import ModelJudge
from studies.judges.own_keywords import REFUSAL_PHRASES, is_late_refusal
from studies.judges.replies import Replies
from studies.judges.rubrics import RUBRICS, Rubric
from studies.judges.rules import EXACT, KEYWORDS, KEYWORDS_1, RuleJudge
from studies.judges.verdicts import FAILED, JUDGED, UNPARSED, Case, Judge, Verdict, attack_succeeds

__all__ = [
    "EXACT",
    "FAILED",
    "JUDGED",
    "KEYWORDS",
    "KEYWORDS_1",
    "PUBLISHED",
    "REFUSAL_PHRASES",
    "RUBRICS",
    "UNPARSED",
    "Case",
    "ClassifierJudge",
    "EndpointError",
    "EndpointJudge",
    "Judge",
    "KeywordRule",
    "LinearJudge",
    "ModelJudge",
    "Replies",
    "Rubric",
    "RuleJudge",
    "Verdict",
    "attack_succeeds",
    "is_late_refusal",
    "is_looping",
]
