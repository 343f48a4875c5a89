"""The possible verdicts on a claim."""

SHOWN = "shown on the built-in model"
REPRODUCED = "reproduced"
NOT_SHOWN = "not shown"
UNDECIDED = "undecided"
CEILING = "undecided (ceiling)"
"""Undecided because the measure is at its ceiling, or at its floor, in both conditions: no difference can be seen."""
NOT_TESTABLE = "not testable here"
