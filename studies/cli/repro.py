"""`vlm-guard repro`: the paper's argument, from separability to verdicts."""

from pathlib import Path
from typing import TYPE_CHECKING

from studies.bookkeeping.console import plain_console
from studies.cli.messages import quieten
from studies.cli.run_options import runs_study
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    from studies.experiment.config import Config

app = Verbs()


@app.command()
@runs_study("results/repro")
def repro(config: "Config") -> VerbResult:
    """Run the paper's whole argument on one model: a verdict for each of its claims, tables, figures and a report.

    Does a picture blur harmful and harmless? Which guard is best? Does it bring refusals back, and at what cost?
    """
    quieten()

    from studies import repro as study

    study.run(config, plain_console())
    out = Path(config.out)
    return VerbResult({"report": out / study.REPORT}, study.files_of(out))
