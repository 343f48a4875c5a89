"""Presets: published experiments on a named model, and the numbers that a run of them is held to.

A preset is a TOML file in this folder: model, data sets, prompts, answers, and published targets with their sources.
`preset.py` reads and checks it, `plan.py` says what a run of it will take, `verdicts.py` compares its results with the
targets, `directions.py` and `refusal_direction.py` measure directions. `studies.reproduce` runs it.

To add a preset, write a TOML file here in the form of the others; every test of presets uses it from then on.
"""
