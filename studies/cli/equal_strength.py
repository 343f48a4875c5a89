"""`vlm-guard equal-strength`: every steering method at its own best, and at equal KL."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import print_paths, quieten
from studies.cli.options import words
from studies.cli.run_options import runs_study
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    from studies.experiment.config import Config

app = Verbs()
DEFAULT_TARGETS = "0.1,0.3,1"


def _targets(text: str) -> str:
    """Check that targets are numbers above 0."""
    for word in words(text) or ("",):
        try:
            is_valid = 0 < float(word) < float("inf")
        except ValueError:
            is_valid = False
        if not is_valid:
            raise arguments.ArgumentError(f"target {word!r}; expected positive numbers, in nats, as {DEFAULT_TARGETS}")
    return text


@app.command("equal-strength")
@runs_study("results/equal_strength")
def equal_strength(
    targets: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="KL from the unguarded model that methods are matched at, in nats, separated by commas: the 95th "
            "percentile over the first 8 tokens of the answers to harmless validation prompts.",
            callback=_targets,
        ),
    ] = DEFAULT_TARGETS,
    cone: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also compare a refusal cone: its vectors, as safetensors.",
            callback=arguments.existing("cone"),
        ),
    ] = None,
    *,
    config: "Config",
) -> VerbResult:
    """Compare steering methods at equal KL: which stops more, when all of them cost harmless answers the same?

    Each method is chosen on validation by the guard's rule, then matched to each target. Rerun it to resume.
    """
    quieten()

    import figures
    from studies import equal_strength as study
    from studies.bookkeeping.provenance import write_config, write_provenance
    from studies.bookkeeping.tables import write_table
    from studies.defences.cone import check_cone, read_cone
    from studies.experiment.experiment import load_experiment
    from studies.experiment.run_folder import run_folder

    console, numbers = plain_console(), tuple(map(float, words(targets)))
    study.check_targets(numbers)
    vectors = read_cone(cone) if cone else None
    options = {"targets": list(numbers), "cone": str(cone) if cone else None}
    with run_folder(config, options) as folder:
        experiment = load_experiment(config)
        if vectors is not None:
            check_cone(vectors, experiment.vlm)
        write_config(folder, config, options)
        result = study.run(config, experiment, numbers, vectors)
        table = write_table(result.table, folder, "equal_strength")
        write_provenance(folder, experiment.inputs(), config.seed, [table])
        console.print(_summary(result.table))
        for line in result.unreached:
            console.print(f"- {line}", soft_wrap=True)
        written = [table, *figures.save(figures.equal_strength(result.table), folder, "equal_strength")]
    print_paths(console, written)
    return VerbResult({"unreached": result.unreached}, written)


def _summary(table) -> Table:
    """Lay out attack success and over-refusal of every method, averaged over modalities."""
    from figures import first_judge

    rows = first_judge(table)
    rows = rows[rows.metric.isin(("asr", "over_refusal_rate")) & rows.modality.notna()]
    means = rows.pivot_table("value", ["defence"], ["setting", "metric"], sort=False)
    printed = Table(title="Attack success / over-refusal, means over modalities")
    settings = list(dict.fromkeys(rows.setting))
    for name in ("defence", *settings):
        printed.add_column(name, overflow="fold")
    for defence, own in means.iterrows():
        pairs = [
            [own.get((setting, metric), float("nan")) for metric in ("asr", "over_refusal_rate")]
            for setting in settings
        ]
        printed.add_row(defence, *("" if asr != asr else f"{asr:.2f} / {refused:.2f}" for asr, refused in pairs))
    return printed
