"""The possible verdicts on a claim."""

SHOWN = "shown on the built-in model"
REPRODUCED = "reproduced"
NOT_SHOWN = "not shown"
UNDECIDED = "undecided"
NOT_TESTABLE = "not testable here"
