"""Configurations of a guard: combined, fitted, run, measured and chosen.

configuration.py       one configuration, with the columns that identify it in a table
anchor_fits.py         directions, gates and thresholds fitted on the anchors
readings_grid.py       the configurations that `studies.readings` measures
sweep_grid.py          the axes of a layer sweep, and the configurations that they combine to
runner.py              many guards on many prompts, here or on a cluster
measures.py            rows of a table from the outcomes of a guard
sweep_runner.py        configurations run on validation: by the first token, then by judged answers
random_directions.py   a guard among random changes of the same size
choice_rule.py         the rule that chooses the best configuration on validation
sweep_result.py        the result of a layer sweep, returned or read from its saved table
wording.py             a guard in words that name it in full
reading_claims.py      verdicts on readings of the method, from their table
"""
