"""Which guard should a model have? `vlm-guard guard fit` makes every choice on validation and saves the guard."""

from dataclasses import replace
from pathlib import Path

from figures import first_judge
from interp import LLM, VLM, Guard, Query
from studies import layer_sweep
from studies.datasets import SeenTexts, read_queries, write_queries
from studies.experiment.config import Config, writable_folder
from studies.experiment.experiment import Experiment, load_experiment
from studies.experiment.run_folder import held
from studies.guards.sweep_result import SweepResult

ANCHORS = "anchors.csv"
"""File in the folder of a guard: the queries it was fitted on, which related methods are fitted on too."""
VALIDATION_METRICS = ("refusal_rate", "over_refusal_rate", "coherence", "refusal_score", "kl")


def fit(config: Config, out: Path) -> Guard:
    """Fit the direction on the anchors, choose the guard by the layer sweep, and save it with the choice's numbers.

    Raises:
        ConfigError: a folder can't be written to, another process works in `config.out`, or the settings are invalid.
        QueryFileError, ModelError: see `studies.experiment.experiment.load_experiment`.
    """
    writable_folder(out)
    with held(config.out):
        experiment = load_experiment(config)
        sweep = layer_sweep.run(config, experiment)
        guard = chosen_guard(sweep, experiment.vlm.name)
        save(guard, out, experiment)
    return guard


def chosen_guard(sweep: SweepResult, model: str) -> Guard:
    """Return the choice of a sweep as a guard, with the rule of choice and its numbers on validation."""
    record = {"model": model, "chosen_by": sweep.best.mark, "validation": validation_numbers(sweep)}
    return replace(sweep.chosen.guard, source=sweep.chosen.source, **record)


def save(guard: Guard, folder: str | Path, experiment: Experiment) -> None:
    """Write a guard to a folder, with its anchors and hashes of all that it was fitted and chosen on."""
    # The guard comes last: a folder never holds one without the texts that it was fitted and chosen on.
    write_queries(Path(folder) / ANCHORS, experiment.queries["anchors"])
    SeenTexts.of({split: experiment.queries[split] for split in ("anchors", "validation")}).write(folder)
    guard.save_pretrained(folder, _resolved(experiment.vlm))


def anchors_of(folder: str | Path) -> tuple[Query, ...]:
    """Return the queries that a guard was fitted on; none if its folder does not hold them."""
    path = Path(folder) / ANCHORS
    # Without their pictures, some requests may be the same.
    return read_queries(path, check_pictures=False, check_labels=False) if path.exists() else ()


def _resolved(vlm: VLM | LLM) -> VLM | LLM:
    """Name a local model by its absolute path: its guard may be loaded from another working directory."""
    return replace(vlm, name=str(Path(vlm.name).resolve())) if Path(vlm.name).is_dir() else vlm


def validation_numbers(sweep: SweepResult) -> dict[str, float]:
    """Return the chosen guard's numbers on validation, and those of the unguarded model.

    Returns:
        Description (metric, modality, reference, n) -> value.
    """
    finalists = sweep.table[sweep.table.setting == "finalists"]
    chosen = finalists[finalists.selection_rule == sweep.best.mark]
    numbers = {}
    for prefix, table in (("", chosen), ("unguarded, ", finalists[finalists.defence == "unguarded"])):
        rows = first_judge(table)
        rows = rows[rows.metric.isin(VALIDATION_METRICS) & rows.value.notna()]
        # The KL of the unguarded model from itself is 0.
        rows = rows[(rows.metric != "kl") | (prefix == "")]
        for row in rows.itertuples():
            words = [f"{row.metric} {row.category}" if isinstance(row.category, str) else row.metric, row.modality]
            words += [f"reference {row.reference}"] if isinstance(row.reference, str) else []
            numbers[f"{prefix}{', '.join(words)} (n = {row.n:.0f})"] = float(row.value)
    return numbers
