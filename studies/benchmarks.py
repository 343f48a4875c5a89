"""`vlm-guard defend`: published benchmarks, or files of one's own, under every defence, on any model.

Into the folder go `answers.jsonl` (an answer a line, with its verdicts), `defence.csv`, `judges.csv`, `leakage.csv`, a
figure, and what was asked. The same command goes on where it was stopped, answer by answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

import figures
from interp.guard import Guard
from interp.guard_files import read_settings
from interp.inputs import TYPOGRAPHIC, Query, to_prompts
from interp.trace import trace
from interp.vlm import VLM
from studies import organism
from studies.bookkeeping.progress import phase
from studies.bookkeeping.provenance import file_hash, model_hash, write_json, write_provenance
from studies.bookkeeping.tables import tidy, write_table
from studies.datasets import Benchmark, QueryFileError, find_leakage, read_queries
from studies.defences.answer_log import ANSWERS, AnswerLog, AnswerRecord, read_answers
from studies.defences.benchmark_sets import BenchmarkOptions, prompt_sets_of
from studies.defences.lineup import NEIGHBOURS, LineUp, check_names, made_neighbours
from studies.defences.prompt_sets import PromptSet, collect, judge_all
from studies.defences.ranking import RANKED, table_rows
from studies.experiment.config import BUILT_IN, ConfigError, writable_folder
from studies.experiment.model_loading import load_model
from studies.experiment.refusal_tokens import refusal_tokens
from studies.generation.cached_model import CachedModel
from studies.generation.generate import Generation
from studies.generation.reference_texts import reference_for
from studies.guard_choice import anchors_of
from studies.judges import KEYWORDS, Judge
from studies.judges.agreement import agreement_rows
from studies.judges.by_name import judges_named
from studies.organism import language

N_OPENINGS = 32
"""Anchors of each class by whose answers the model's refusal openings are found."""


def command(
    model: str,
    loading: dict,
    guard: str | None,
    asked: BenchmarkOptions,
    judges: Sequence[str],
    anchors: Path | None,
    out: Path,
    how: Generation,
    console: Console,
    judge_options: Sequence[dict] = ({}, {}),
) -> pd.DataFrame:
    """Everything that was typed is checked before a model is loaded.

    Raises:
        ConfigError, GuardFileError, QueryFileError, JudgeNameError, ModelError, EndpointError: what is wrong with it.
    """
    if guard and read_settings(guard)["guard"]["source"] == "llm":
        raise ConfigError(f"guard {guard!r} reads states of the aligned LLM (source llm), which is not at hand here")
    known = read_queries(anchors, look=False) if anchors else (anchors_of(guard) if guard else ())
    check_names(asked.defences, bool(guard), bool(known))
    AnswerLog(writable_folder(out) / ANSWERS)
    told_judges = judges_named(judges, out, loading | {"revision": None}, *judge_options)
    vlm = load_model(model, **loading)
    weights = identity_of(vlm, str(organism.path()) if model == BUILT_IN else model)
    about = {"model": model, "weights": weights, "guard": guard, "judges": list(judges), "generation": asdict(how)}
    sets = [_about_set(one) for one in asked.benchmarks]
    for one in sets:
        if one["stand-ins"]:
            told = f"{one['name']}: {one['stand-ins']} of {one['rows']} pictures are stand-ins"
            console.print(f"{told}: what comes out of it is no figure of the published set", soft_wrap=True)
    about |= {"sets": sets, "attacks": asked.attacks}
    about |= {"anchors": str(anchors) if anchors else None, "judge options": judge_options}
    about |= {"modalities": asked.modalities, "defences": asked.defences, "limit": asked.limit, "loading": loading}
    fitted = Guard.from_pretrained(guard, vlm) if guard else None
    return run(vlm, weights, asked, told_judges, out, how, fitted, known, about, console)


def identity_of(vlm: VLM, folder: str) -> str:
    """Of the weights as they were loaded: files or hub id, commit, precision, quantization."""
    config = vlm.model.config
    dtype, commit = str(vlm.model.dtype).removeprefix("torch."), getattr(config, "_commit_hash", None)
    quantized = getattr(config, "quantization_config", None)
    return " ".join(filter(None, (model_hash(folder), commit, dtype, str(quantized) if quantized else "")))


def _about_set(one: Benchmark) -> dict:
    """What is stored of a set beside its results."""
    records = {"rows": len(one.records), "left out": len(one.left_out), "pictures missing": len(one.missing)}
    records["stand-ins"] = sum(record.is_stand_in for record in one.records)
    about = {"name": one.source.name, "url": one.source.url, "licence": one.source.licence}
    return about | {"files": {str(file): file_hash([file]) for file in one.files}} | records


def run(
    vlm: VLM,
    weights: str,
    asked: BenchmarkOptions,
    judges: Sequence[Judge],
    out: Path,
    how: Generation,
    guard: Guard | None = None,
    anchors: Sequence[Query] = (),
    about: dict | None = None,
    console: Console | None = None,
) -> pd.DataFrame:
    """Answers of every defence to every prompt, verdicts, and the tables that follow.

    Args:
        weights: identity of the model, part of what an answer is known by.
        judges: the first one decides.
        anchors: what guard and neighbours were fitted on; looked for in the sets, and what neighbours are fitted on.
        about: what is stored beside the results.
    """
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    leakage = _told_leakage(asked.benchmarks, anchors, out, console)
    write_json(out / "defend.json", dict(about or {}) | {"leakage": leakage})
    write_provenance(out, {"weights": weights})
    # 1. what is asked, and who answers
    openings = [*anchors] or list(language.queries("anchors"))
    openings = [q for label in (True, False) for q in [q for q in openings if q.harmful == label][:N_OPENINGS]]
    tokens = refusal_tokens(vlm, to_prompts(openings, "text", vlm.picture_size), KEYWORDS, how)
    asker, log = CachedModel(vlm, how, tokens.ids), AnswerLog(out / ANSWERS)
    _check_same(log, weights, asker.generation)
    neighbours = _neighbours(vlm, anchors, asked.defences)
    line_up = LineUp(vlm.name, KEYWORDS, guard, neighbours, asked.defences)
    trials = [
        (trial, line_up(trial, [_reference_of(trial, guard)])) for trial in prompt_sets_of(asked, vlm.picture_size)
    ]
    # 2. answers, then verdicts
    answers: list[AnswerRecord] = []
    with log.alone():
        with phase("answers", sum(len(trial.prompts) * len(some) for trial, some in trials)) as report:
            for trial, some in trials:
                answers += collect(asker, weights, trial, some, log, report)
        answers = _judged(log, answers, judges)
    # 3. what they say
    table = write_results(answers, [judge.name for judge in judges], out, console, scorer=vlm)
    tables = ["defence.csv", *(["judges.csv"] if len(judges) > 1 else [])]
    write_provenance(out, {"weights": weights}, tables=[out / name for name in tables if (out / name).exists()])
    return table


def _judged(log: AnswerLog, answers: Sequence[AnswerRecord], judges: Sequence[Judge]) -> list[AnswerRecord]:
    with phase("verdicts", sum(not one.right for one in answers) * len(judges)) as report:
        return judge_all(log, answers, judges, report)


def _check_same(log: AnswerLog, weights: str, generation: dict) -> None:
    """Raises:
    ConfigError: the folder holds answers of another model, or generated otherwise; one table can't show both.
    """
    for one in log.answers:
        if (one.weights, one.generation) != (weights, generation):
            raise ConfigError(
                f"{log.path} holds answers of {one.model!r} ({one.weights}) with {one.generation}, now asked of "
                f"{weights} with {generation}; give another --out"
            )


def judge(path: Path, judges: Sequence[Judge], out: Path, console: Console) -> pd.DataFrame:
    """Puts new judges' verdicts into a file of answers, and writes tables of their own; needs no model but the judges'.

    Judges that have seen every answer before stay, behind the new ones: the first one named decides.

    Raises:
        AnswerLogError: no such file, or it is damaged.
    """
    if not path.is_file():
        read_answers(path)
    log = AnswerLog(path)
    found = log.answers
    if not found:
        raise QueryFileError(f"{path} holds no answers; expected those of `vlm-guard defend`")
    _check_same(log, found[-1].weights, found[-1].generation)
    with log.alone():
        answers = _judged(log, found, judges)
    names, judged = [one.name for one in judges], [one for one in answers if not one.right]
    seen = dict.fromkeys(name for one in judged for name in one.verdicts)
    old = [name for name in seen if name not in names and all(name in one.verdicts for one in judged)]
    return write_results(answers, names + old, out, console)


def write_results(
    answers: Sequence[AnswerRecord], judges: Sequence[str], out: Path, console: Console, scorer: VLM | None = None
) -> pd.DataFrame:
    """Tables and figure, written and printed; perplexity where there is a model to measure it."""
    labels = {"model": Path(answers[0].model).name}
    table = tidy(labels | row for row in table_rows(answers, judges, scorer, by_category=True))
    write_table(table, out, "defence")
    written = [out / "defence.csv"]
    if len(judges) > 1:
        judged = [(one.case, one.verdicts) for one in answers if not one.right]
        if judged:
            agreement = agreement_rows(judged, judges)
            written.append(write_table(tidy(labels | row for row in agreement), out, "judges"))
    has_attacks = "asr" in set(table.metric)
    drawn = figures.save(figures.safety_tradeoff(table), out, "safety_tradeoff") if has_attacks else []
    for shown in _summaries(table, judges[0]):
        console.print(shown)
    for path in (*written, *(path for path in drawn if path.suffix == ".png")):
        console.print(f"  {path}", soft_wrap=True)
    return table


def _told_leakage(
    benchmarks: Sequence[Benchmark], anchors: Sequence[Query], out: Path, console: Console
) -> dict[str, str]:
    """What a guard was fitted on, looked for in every set: printed and stored."""
    if not anchors:
        console.print("leakage: not known, since what was fitted on is not (--anchors FILE)")
        (out / "leakage.csv").unlink(missing_ok=True)
        return {}
    found, told = [], {}
    for one in benchmarks:
        ids, texts = zip(*((record.id, record.query.text) for record in one.records), strict=True)
        leakage = find_leakage([query.text for query in anchors], ids, texts)
        console.print(f"leakage, {one.source.name}: {leakage}", soft_wrap=True)
        found.append(leakage.rows.assign(dataset=one.source.name))
        told[one.source.name] = str(leakage)
    write_table(pd.concat(found), out, "leakage")
    return told


def _neighbours(vlm: VLM, anchors: Sequence[Query], names: Sequence[str]) -> list[tuple[str, Guard]]:
    if not anchors or not set(NEIGHBOURS) & set(names or NEIGHBOURS):
        return []
    with phase("trace anchors", 2 * len(anchors)) as report:
        traced = {
            name: trace(vlm, to_prompts(anchors, name, vlm.picture_size), advance=report) for name in ("text", "blank")
        }
    return made_neighbours(vlm.n_layers, traced["text"], traced["blank"])


def _reference_of(trial: PromptSet, guard: Guard | None) -> str:
    """What says the request: in a picture what is read there, else what the guard was made for."""
    return guard.reference if guard and trial.modality not in TYPOGRAPHIC else reference_for(trial.modality)


def _summaries(table: pd.DataFrame, judge: str) -> Iterator[Table]:
    """Of each set: attack success, over-refusal and pairs by defence, with intervals."""
    metrics = {
        "asr": "attack success",
        "over_refusal_rate": "over-refusal",
        "paired_rate": "pairs",
        "accuracy": "right",
        "unparsed_rate": "unparsed",
        "failed_rate": "not asked",
    }
    rows = table.reindex(columns=list(dict.fromkeys([*table.columns, "judge", "category", "reference"])))
    # Rows by category stand in the file.
    rows = rows[((rows.judge == judge) | rows.judge.isna()) & rows.category.isna() & rows.metric.isin(metrics)]
    for place, here in rows.groupby(["dataset", "setting", "modality"], sort=False):
        present = [name for name in metrics if name in set(here.metric)]
        shown = Table("defence", *(metrics[name] for name in present), "", title=f"{', '.join(place)}; judge {judge}")
        for (defence, _, stands), some in here.groupby(["defence", "reference", "standing"], dropna=False, sort=False):
            told = {row.metric: f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]" for row in some.itertuples()}
            shown.add_row(defence, *(told.get(name, "") for name in present), "" if stands == RANKED else stands)
        yield shown
