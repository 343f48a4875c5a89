"""Published benchmarks, or the user's own files, under every defence, on any model (`vlm-guard defend`).

The folder of results holds `answers.jsonl` (one answer a line, with its verdicts), `defence.csv`, `judges.csv`,
`leakage.csv`, a figure, and `defend.json`, which says what was asked. An interrupted run is resumed after its last
answer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import Tensor

import figures
from interp import LLM, TYPOGRAPHIC, VLM, Guard, Prompt, Query, to_prompts, trace
from studies.bookkeeping.progress import phase
from studies.bookkeeping.provenance import model_hash, write_json, write_provenance
from studies.bookkeeping.tables import tidy, write_table
from studies.datasets import Benchmark, QueryFileError, SeenTexts
from studies.datasets.seen_texts import NOTHING_SEEN
from studies.defences.answer_log import ANSWERS, AnswerLog, AnswerRecord, read_answers
from studies.defences.benchmark_sets import BenchmarkOptions, prompt_sets_of
from studies.defences.costs import cost_rows
from studies.defences.defence import Defence
from studies.defences.detours import TextScoreRule
from studies.defences.lineup import CONE, RELATED_METHODS, LineUp
from studies.defences.prompt_sets import AnswerCollector, PromptSet, judge_all
from studies.defences.ranking import table_rows
from studies.defences.related import RelatedMethod, published
from studies.defences.stage_costs import stage_rows
from studies.experiment.config import ConfigError
from studies.experiment.refusal_openings import RefusalOpenings, coverage_row, refusal_openings
from studies.generation.cached_model import CachedModel
from studies.generation.generate import Generation
from studies.generation.reference_texts import reference_for
from studies.judges import KEYWORDS, Judge
from studies.judges.agreement import agreement_rows
from studies.judges.by_name import VERSIONED, is_keyword_judge, with_keywords
from studies.organism import language

N_OPENINGS = 32
"""Anchors of each class whose answers show how the model opens its refusals."""


@dataclass(frozen=True)
class BenchmarkResult:
    """Rates of every defence, and where they were written."""

    table: pd.DataFrame
    judge: str
    """Name of the judge that decides."""
    files: tuple[Path, ...]
    """Tables and figures."""

    @property
    def tables(self) -> list[Path]:
        """The files that are tables."""
        return [path for path in self.files if path.suffix == ".csv"]


def checkpoint_identity(vlm: VLM | LLM, folder: str) -> str:
    """Identify the weights as loaded: files or hub id, commit, precision and quantization."""
    config = vlm.model.config
    dtype, commit = str(vlm.model.dtype).removeprefix("torch."), getattr(config, "_commit_hash", None)
    quantization = getattr(config, "quantization_config", None)
    return " ".join(filter(None, (model_hash(folder), commit, dtype, str(quantization) if quantization else "")))


def run(
    vlm: VLM | LLM,
    weights: str,
    options: BenchmarkOptions,
    judges: Sequence[Judge],
    out: Path,
    generation: Generation,
    guard: Guard | None = None,
    anchors: Sequence[Query] = (),
    description: dict | None = None,
    report_leakage: Callable[[Mapping[str, str]], None] = lambda leakage: None,
    seen: SeenTexts = NOTHING_SEEN,
    extra: Sequence[Defence] = (),
    cone: Tensor | None = None,
) -> BenchmarkResult:
    """Answer every prompt under every defence, judge the answers, and write the tables.

    Args:
        vlm: the model.
        weights: identity of its weights; other weights give other answers.
        options: what is asked, and which defences answer.
        judges: the first one decides; if all of them are models, keywords are judged next to them.
        out: folder of the results; answers that it has are reused.
        generation: how answers are generated.
        guard: the guard to compare with its rivals; None runs the rivals alone.
        anchors: what the guard was fitted on; it is looked for in the benchmarks, and related methods are fitted on it.
        description: what is stored in `defend.json` next to the results, together with the leakage.
        report_leakage: called before the first answer with a sentence about the leakage into each benchmark, by its
            name; empty if there is nothing to look for.
        seen: what the guard's folder says about the texts it was fitted and chosen on, all of which are looked for.
        extra: defences that answer everything, next to those that `options` names.
        cone: vectors of a refusal cone, which is then one of the related methods.

    Raises:
        ConfigError: the folder holds answers of another model, or answers generated with other settings.
    """
    judges = with_keywords(judges)
    out.mkdir(parents=True, exist_ok=True)
    leakage = _write_leakage(options.benchmarks, seen.with_anchors(anchors), out)
    report_leakage(leakage)
    write_json(out / "defend.json", dict(description or {}) | {"leakage": leakage})
    write_provenance(out, {"weights": weights})
    # 1. the model and its defences
    openings = _openings(vlm, anchors, generation, out)
    model, log = CachedModel(vlm, generation, openings), AnswerLog(out / ANSWERS)
    _check_same_model(log, weights, model.generation_settings)
    text_anchors = to_prompts(anchors, "text", vlm.picture_size)
    text_score = TextScoreRule.fit(vlm, text_anchors, openings, generation)
    related = _related(vlm, anchors, options.defences, cone)
    line_up = LineUp(vlm.name, KEYWORDS, text_score, guard, related, options.defences)
    asked = [
        (prompt_set, [*line_up(prompt_set, [_reference(prompt_set, guard)]), *extra])
        for prompt_set in prompt_sets_of(options, vlm.picture_size)
    ]
    # 2. answers, then verdicts
    collector, answers = AnswerCollector(model, weights, log), []
    with log.locked():
        n_answers = sum(len(prompt_set.prompts) * len(defences) for prompt_set, defences in asked)
        with phase("answers", n_answers) as report:
            for prompt_set, defences in asked:
                answers += collector.collect(prompt_set, defences, report)
        answers = _judged(log, answers, judges)
    # 3. tables
    measured = [coverage_row(openings), *_cost_rows(model, asked, options.n_costed)]
    result = _write_results(answers, [judge.name for judge in judges], out, scorer=vlm, measured=measured)
    write_provenance(out, {"weights": weights}, tables=result.tables)
    return result


def prompts_by_kind(options: BenchmarkOptions, picture_size: int) -> list[list[Prompt]]:
    """Return all prompts of benchmarks, those with pictures apart from those without: they take different times."""
    prompts = [prompt for prompt_set in prompt_sets_of(options, picture_size) for prompt in prompt_set.prompts]
    kinds = ([prompt for prompt in prompts if bool(prompt.pictures) == pictured] for pictured in (False, True))
    return [kind for kind in kinds if kind]


def judge_again(path: Path, judges: Sequence[Judge], out: Path) -> BenchmarkResult:
    """Add the verdicts of other judges to a file of answers, and write their tables; no answer is regenerated.

    Earlier judges that have seen every answer stay in the tables, after the new ones; the first new one decides.
    Earlier judges by rule judge again, since a later version may measure coherence in another way. If all judges are
    models, keywords are judged next to them.

    Raises:
        AnswerLogError: there is no such file, or it is damaged.
        QueryFileError: the file holds no answers.
        ConfigError: the file mixes answers of several models.
    """
    if not path.is_file():
        # Raises the error that says so; a log would start a new file.
        read_answers(path)
    log = AnswerLog(path)
    answers = log.answers
    if not answers:
        raise QueryFileError(f"{path} holds no answers; expected those of `vlm-guard defend`")
    _check_same_model(log, answers[-1].weights, answers[-1].generation)
    judged = [record for record in answers if not record.right]
    seen = dict.fromkeys(name for record in judged for name in record.verdicts)
    earlier = [name for name in seen if all(name in record.verdicts for record in judged)]
    by_rule = [VERSIONED[name] for name in earlier if name in VERSIONED]
    judges = with_keywords(judges) if not any(map(is_keyword_judge, earlier)) else list(judges)
    names = [judge.name for judge in judges]
    earlier = [name for name in earlier if name not in names]
    with log.locked():
        answers = _judged(log, answers, [*judges, *(judge for judge in by_rule if judge.name in earlier)])
    return _write_results(answers, names + earlier, out)


def _write_leakage(benchmarks: Sequence[Benchmark], seen: SeenTexts, out: Path) -> dict[str, str]:
    """Look for what a guard has seen in every benchmark, and write `leakage.csv`; if that is nothing, remove it.

    Returns:
        A sentence for each benchmark, by its name; empty if there is nothing to look for.
    """
    if not seen.by_split:
        (out / "leakage.csv").unlink(missing_ok=True)
        return {}
    tables, summaries = [], {}
    for benchmark in benchmarks:
        ids, texts = zip(*((record.id, record.query.text) for record in benchmark.records), strict=True)
        by_split = seen.leakage(ids, texts)
        for split, leakage in by_split.items():
            tables.append(leakage.rows.assign(dataset=benchmark.source.name, split=split))
        summaries[benchmark.source.name] = "; ".join(map(str, by_split.values()))
    write_table(pd.concat(tables), out, "leakage")
    return summaries


def _openings(vlm: VLM | LLM, anchors: Sequence[Query], generation: Generation, out: Path) -> RefusalOpenings:
    queries = [*anchors] or list(language.queries("anchors"))
    by_class = ([query for query in queries if query.harmful == label][:N_OPENINGS] for label in (True, False))
    prompts = to_prompts([query for group in by_class for query in group], "text", vlm.picture_size)
    return refusal_openings(vlm, prompts, KEYWORDS, generation, out / "openings")


def _judged(log: AnswerLog, answers: Sequence[AnswerRecord], judges: Sequence[Judge]) -> list[AnswerRecord]:
    with phase("verdicts", sum(not record.right for record in answers) * len(judges)) as report:
        return judge_all(log, answers, judges, report)


def _check_same_model(log: AnswerLog, weights: str, generation: dict) -> None:
    """Raise a ConfigError if the log holds answers of another model or setting; one table can't show both."""
    for record in log.answers:
        if (record.weights, record.generation) != (weights, generation):
            raise ConfigError(
                f"{log.path} holds answers of {record.model!r} ({record.weights}) with {record.generation}, now asked "
                f"of {weights} with {generation}; give another --out"
            )


def _related(
    vlm: VLM | LLM, anchors: Sequence[Query], names: Sequence[str], cone: Tensor | None
) -> list[RelatedMethod]:
    """Fit the related methods, unless none of them is wanted or there is nothing to fit them on.

    They are untuned: only anchors are available here, so there is no validation split to choose on.
    """
    available = {*RELATED_METHODS, CONE}
    if not anchors or not available & set(names or available):
        return []
    with phase("trace anchors", 2 * len(anchors)) as report:
        traced = {
            name: trace(vlm, to_prompts(anchors, name, vlm.picture_size), advance=report) for name in ("text", "blank")
        }
    return published(vlm.n_layers, traced["text"], traced["blank"], cone, names)


def _reference(prompt_set: PromptSet, guard: Guard | None) -> str:
    """Return the text that states the request: what is read in a typographic picture, else the guard's reference."""
    return guard.reference if guard and prompt_set.modality not in TYPOGRAPHIC else reference_for(prompt_set.modality)


def _cost_rows(
    model: CachedModel, asked: Sequence[tuple[PromptSet, Sequence[Defence]]], n_prompts: int
) -> Iterator[dict]:
    """Yield what an answer costs, for each set as it is published or shown; attacks are no other prompts."""
    costed = [entry for entry in asked if n_prompts and entry[0].setting in ("plain", "multimodal")]
    with phase("costs", sum(len(defences) for _, defences in costed)) as report:
        for prompt_set, defences in costed:
            yield from cost_rows(model, prompt_set, defences, n_prompts, report)
            yield from stage_rows(model, prompt_set, defences, n_prompts)


def _write_results(
    answers: Sequence[AnswerRecord],
    judges: Sequence[str],
    out: Path,
    scorer: VLM | LLM | None = None,
    measured: Sequence[dict] = (),
) -> BenchmarkResult:
    """Write tables and figure.

    Args:
        answers: judged.
        judges: names of the judges; the first one decides.
        out: folder of the results.
        scorer: measures perplexity; None leaves it out.
        measured: rows of the table that don't follow from answers.
    """
    labels = {"model": Path(answers[0].model).name}
    rows = [*table_rows(answers, judges, scorer, by_category=True), *measured]
    table = tidy(labels | row for row in rows)
    files = [write_table(table, out, "defence")]
    judged = [(record.case, record.verdicts) for record in answers if not record.right]
    if len(judges) > 1 and judged:
        files.append(write_table(tidy(labels | row for row in agreement_rows(judged, judges)), out, "judges"))
    if "asr" in set(table.metric):
        files += figures.save(figures.safety_tradeoff(table), out, "safety_tradeoff")
    return BenchmarkResult(table, judges[0], tuple(files))
