"""Wrong arguments are reported before anything large is imported, and the names checked are those of the registries."""

import re
import subprocess
import sys

import pytest

from interp.estimators import ESTIMATORS
from interp.guard import POSITIONS, REFERENCES, SOURCES
from interp.inputs import MODALITIES
from interp.projection import GATE_SCOPES, GATES, RULES
from interp.trace import STORE_DTYPES
from interp.tracing.forward import DECODER_SITES, SITES
from probes import PROBES
from studies.cli import arguments
from studies.datasets.attacks import ATTACKS
from studies.experiment.config import SCALES, SPLITS
from studies.experiment.model_loading import MODEL_DTYPES
from studies.guards.sweep_grid import FIT_TOKENS

REGISTRIES = {
    "SCALES": SCALES,
    "SPLITS": SPLITS[1:],
    "DTYPES": MODEL_DTYPES,
    "STORED_AS": STORE_DTYPES,
    "MODALITIES": MODALITIES,
    "DECODER_SITES": DECODER_SITES,
    "SITES": SITES,
    "PROBES": PROBES,
    "ATTACKS": ATTACKS,
    "RULES": RULES,
    "GATES": GATES,
    "SCOPES": GATE_SCOPES,
    "ESTIMATORS": ESTIMATORS,
    "SOURCES": SOURCES,
    "POSITIONS": POSITIONS,
    "TOKENS": FIT_TOKENS,
    # The true request is a bound, not something to use.
    "REFERENCES": set(REFERENCES) - {"oracle"},
}
WRONG = {
    "--help": "Commands",
    "sweep --help": "--scale",
    "repro --scale nope": "scale 'nope' does not exist; expected one of tiny, brief, quick, full",
    "repro --split anchors": "split 'anchors' does not exist",
    "repro --dtype float8": "dtype 'float8' does not exist",
    "repro --model ./nowhere": "model folder './nowhere' does not exist",
    "repro --queries nowhere.csv": "query file 'nowhere.csv' does not exist",
    "sweep --rules substitute,nope": "rule 'nope' does not exist",
    "sweep --positions lst": "positions 'lst' does not exist; expected one of .*; did you mean 'last'?",
    "probe --probes nope": "probe 'nope' does not exist",
    "trace --out x --modality text,smell": "modality 'smell' does not exist",
    "trace --out x --stored-as int8": "dtype 'int8' does not exist; expected one of float32, float16",
    "defend --data x --attacks charm": "attack 'charm' does not exist",
    "equal-strength --targets 0.1,0": "target '0'; expected positive numbers, in nats, as 0.1,0.3,1",
    "equal-strength --targets many": "target 'many'; expected positive numbers",
    "equal-strength --cone nowhere": "cone 'nowhere' does not exist",
    "defend --data x --cone nowhere": "cone 'nowhere' does not exist",
    "judge nowhere.jsonl --judge keywords": "file of answers 'nowhere.jsonl' does not exist",
    "judges nowhere.csv": "file of answers 'nowhere.csv' does not exist",
    "store nowhere": "store 'nowhere' does not exist",
    "report nowhere": "folder of results 'nowhere' does not exist",
    "figures nowhere": "folder of results 'nowhere' does not exist",
    "compare nowhere": "nowhere has no claims.csv",
    "data check nowhere": "data file or folder 'nowhere' does not exist",
}
RUN = """
import sys
from studies.cli.app import main
try:
    main()
finally:
    large = {"torch", "transformers", "pandas", "sklearn", "matplotlib", "nnsight"} & set(sys.modules)
    assert not large, large
"""


@pytest.mark.parametrize("name", REGISTRIES)
def test_names_that_are_checked_are_those_of_the_registry(name):
    assert set(getattr(arguments, name)) == set(REGISTRIES[name])


@pytest.mark.parametrize("command", WRONG)
def test_nothing_large_is_imported_before_arguments_are_checked(command, tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", RUN, *command.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "", "TERM": "dumb"},
    )
    is_help = command.endswith("--help")
    assert finished.returncode == (0 if is_help else 2), finished.stderr
    said = finished.stdout if is_help else finished.stderr

    assert re.search(WRONG[command] if ".*" in WRONG[command] else re.escape(WRONG[command]), said), said
    assert is_help or len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
