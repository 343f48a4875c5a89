"""The words in which a claim is decided."""

SHOWN = "shown on the built-in model"
REPRODUCED = "reproduced"
NOT_SHOWN = "not shown"
UNDECIDED = "undecided"
NOT_TESTABLE = "not testable here"
