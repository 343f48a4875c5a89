"""The command `vlm-guard`."""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.core import TyperGroup


class _Interruptible(TyperGroup):
    """Says on Ctrl-C what is kept; typer by itself ends without a word."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            told = "stopped; what was finished is kept: run the same command again to go on"
            print(f"vlm-guard: {told}", file=sys.stderr)
            raise typer.Exit(130) from stop


app = typer.Typer(
    cls=_Interruptible,
    help="Does an image undo a vision-language model's refusals, and can its own LLM bring them back?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
guard_app = typer.Typer(help="Fit a guard and save it, look at one, answer with and without it.", no_args_is_help=True)
app.add_typer(guard_app, name="guard")
data_app = typer.Typer(help="Files of published benchmarks, or of your own.", no_args_is_help=True)
app.add_typer(data_app, name="data")
BAD_INPUT = 2

Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code from the checkpoint. Read it first.")]
Precision = Annotated[str, typer.Option(help="Of the weights: auto, float32, bfloat16 or float16.")]
DeviceMap = Annotated[str | None, typer.Option(help="'auto' spreads a large model (needs accelerate).")]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch on the hub.")]
Model = Annotated[str, typer.Option(help="Folder in Hugging Face format, hub id, or 'organism' (the built-in model).")]
Ray = Annotated[
    str | None, typer.Option(help="Spread over a Ray cluster: its address, 'auto', or 'local' (this machine).")
]
CpusPerWorker = Annotated[int, typer.Option(min=1, help="Of a cluster without GPUs.")]
JudgeSetting = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE, of judges behind an endpoint: what they are asked with. NAME= leaves one out."),
]
Label = Annotated[
    list[str] | None,
    typer.Option(help="LABEL=refused|answered|harmful|harmless, of judges by classifier: what theirs stand for."),
]
Queries = Annotated[
    Path | None,
    typer.Option(help="CSV with columns text,harmful[,category,pair,picture]; by default the built-in queries."),
]


@app.command()
def repro(
    model: Model = "organism",
    queries: Queries = None,
    scale: Annotated[str, typer.Option(help="tiny, quick (five minutes) or full.")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; traces in it are used again.")] = Path(
        "results/repro"
    ),
    split: Annotated[str, typer.Option(help="What is reported: test, or validation while developing.")] = "test",
    seed: Annotated[int, typer.Option(help="Of folds, of splits of your own queries, and of shuffled labels.")] = 0,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Runs the paper's argument: separability, sweep, readings, defences, path of the signal; figures and verdicts."""
    _quieten()
    from studies import repro as study
    from studies.experiment.config import Config

    loading = _loading(trust_remote_code, dtype, device_map, revision)
    config = Config(model, str(queries) if queries else None, scale, str(out), split, seed, loading=loading)
    study.run(config, Console())


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Folder in Hugging Face format, hub id, or 'organism'.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON array.")] = False,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Proves on a model that what the toolkit reads and changes is what it says. Run it before you trust a new model.

    One line a property: ok, degraded (rounding), silently wrong, error, or not applicable. Exit code 1 on anything
    worse than degraded.
    """
    _quieten()
    from interp.verify import check_vlm

    findings = check_vlm(_load(model, trust_remote_code, dtype, device_map, revision))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.verdict:<15} {finding.claim}  ({finding.measured})")
    if not all(finding.is_accepted for finding in findings):
        raise typer.Exit(1)


@app.command()
def trace(
    out: Annotated[Path, typer.Option(help="Folder of the store; a trace that was stopped goes on.")],
    model: Model = "organism",
    queries: Queries = None,
    modality: Annotated[str, typer.Option(help="One or several: text,blank,noise,scene,typographic,...")] = "text",
    sites: Annotated[
        str, typer.Option(help="resid_post,resid_pre,attn_out,mlp_out,vision_resid_post,projector_out.")
    ] = "resid_post",
    tokens: Annotated[
        str, typer.Option(help="last,instruction,image_mean,text_mean, places as numbers; or all.")
    ] = "last",
    layers: Annotated[str | None, typer.Option(help="As 0,5,8-12; by default every one.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="By default what fits memory.")] = None,
    stored_as: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave prompts out whose pictures can't be read.")
    ] = False,
    ray: Ray = None,
    cpus_per_worker: CpusPerWorker = 1,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Traces activations into a store. Run it again to go on where it was stopped."""
    _quieten()
    from studies.cli import tracing_verbs

    asked = tracing_verbs.TraceOptions.of(modality, sites, tokens, layers, batch_size, stored_as, skip_unreadable)
    chosen = tracing_verbs.queries_of(queries)
    vlm = _load(model, trust_remote_code, dtype, device_map, revision)
    tracing_verbs.run(vlm, chosen, asked, out, ray, cpus_per_worker)
    print(f"{out} is complete; `vlm-guard store {out}` tells what it holds")


@app.command()
def store(
    folder: Annotated[Path, typer.Argument(help="Written by `vlm-guard trace`, or by interp.trace(out=...).")],
    check: Annotated[
        bool, typer.Option("--check", help="Read everything, and name the batches that are damaged.")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="As --check; the next run of the same trace does the damaged ones again.")
    ] = False,
) -> None:
    """Tells what a store holds. Exit code 1 where --check finds damage."""
    from studies.cli import tracing_verbs

    print(tracing_verbs.summary(folder))
    if check or mend:
        damaged = tracing_verbs.damaged(folder, mend)
        print(f"damaged batches: {', '.join(map(str, damaged)) or 'none'}{'; forgotten' if damaged and mend else ''}")
        raise typer.Exit(1 if damaged else 0)


@app.command()
def probe(
    model: Model = "organism",
    queries: Queries = None,
    store: Annotated[
        Path | None, typer.Option(help="Probe what `vlm-guard trace` has kept, without the model; not with --queries.")
    ] = None,
    scale: Annotated[str, typer.Option(help="tiny, quick or full: how much is probed and controlled.")] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for the table; what is finished in it is used again.")] = Path(
        "results/probe"
    ),
    sites: Annotated[str | None, typer.Option(help="resid_post,resid_pre,attn_out,mlp_out.")] = None,
    tokens: Annotated[str | None, typer.Option(help="last,instruction,image_mean,text_mean.")] = None,
    layers: Annotated[str | None, typer.Option(help="As 0,5,8-12; by default every one.")] = None,
    probes: Annotated[
        str | None, typer.Option(help="logistic,lda,ridge,svm,mean_difference; the first is carried over.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Of a store: some of those that were traced.")] = None,
    split: Annotated[
        str | None, typer.Option(help="test, or validation while developing; of a store any that it has.")
    ] = None,
    by_category: Annotated[bool, typer.Option("--by-category", help="Also with one category left out.")] = False,
    n_folds: Annotated[int | None, typer.Option(help="Folds, which never divide a pair.")] = None,
    seed: Annotated[int, typer.Option(help="Of folds, and of controls.")] = 0,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Where harmful and harmless come apart: probes with controls, by layer, modality, token and site.

    Run it again to go on where it was stopped.
    """
    _quieten()
    from studies import separability
    from studies.bookkeeping.typed_lists import numbers, words
    from studies.cli import study_verbs
    from studies.experiment.config import Config, ConfigError

    asked = {"sites": sites and words(sites), "tokens": tokens and words(tokens), "probes": probes and words(probes)}
    asked |= {"layers": layers and tuple(numbers(layers)), "n_folds": n_folds, "by_category": by_category or None}
    changes = {name: value for name, value in asked.items() if value is not None}
    if store is None:
        if modality:
            raise ConfigError("--modality is for stores; a study probes the modalities of its scale")
        loading = _loading(trust_remote_code, dtype, device_map, revision)
        path = str(queries) if queries else None
        config = Config(model, path, scale, str(out), split or "test", seed, loading=loading)
        study_verbs.probe(config, changes, Console())
        return
    if queries:
        raise ConfigError("--store brings its own queries; leave --queries out")
    extent = separability.extent_of(scale, changes)
    study_verbs.probe_store(store, str(out), extent, words(modality or ""), split or "", seed, Console())


@app.command()
def sweep(
    model: Model = "organism",
    queries: Queries = None,
    scale: Annotated[str, typer.Option(help="tiny, quick or full: grid, finalists and modalities.")] = "quick",
    out: Annotated[
        Path, typer.Option(help="Folder for tables and guard; what is finished in it is used again.")
    ] = Path("results/sweep"),
    layers: Annotated[
        str | None,
        typer.Option(help="single, every:N, windows:N, start-to-end, middle-to-last, or numbers; several by blanks."),
    ] = None,
    direction_layers: Annotated[
        str | None, typer.Option(help="Where directions are fitted: own, or as 0,5,8-12.")
    ] = None,
    rules: Annotated[str | None, typer.Option(help="ablate,substitute,add_reference,...")] = None,
    gates: Annotated[str | None, typer.Option(help="always,sign,threshold,probe.")] = None,
    scopes: Annotated[str | None, typer.Option(help="change,target.")] = None,
    ranks: Annotated[str | None, typer.Option(help="As 1,2,4.")] = None,
    estimators: Annotated[str | None, typer.Option(help="paired_svd,mean_diff,pca,lda,logistic.")] = None,
    sources: Annotated[str | None, typer.Option(help="vlm_text,llm.")] = None,
    tokens: Annotated[str | None, typer.Option(help="last,instruction.")] = None,
    positions: Annotated[str | None, typer.Option(help="last_prefill,generated,last,text,all.")] = None,
    strengths: Annotated[str | None, typer.Option(help="As 0.5,1,2.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Finalists, which answer.")] = None,
    halving: Annotated[
        bool, typer.Option("--halving", help="Rank on a quarter of the prompts first, and drop half each time.")
    ] = False,
    split: Annotated[str, typer.Option(help="What is reported: test, or validation while developing.")] = "test",
    seed: Annotated[int, typer.Option(help="Of splits of your own queries.")] = 0,
    ray: Ray = None,
    cpus_per_worker: CpusPerWorker = 1,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Where and how to guard: every configuration by its first token, answers for the best, and the chosen guard.

    Beside it what other rules for choosing a layer would have picked. Run it again to go on where it was stopped.
    """
    _quieten()
    from studies.cli import study_verbs
    from studies.experiment.config import Config
    from studies.guards.sweep_grid import Grid
    from studies.layer_sweep import GRIDS

    given = {"layers": layers, "direction_layers": direction_layers, "rules": rules, "gates": gates, "scopes": scopes}
    given |= {"ranks": ranks, "estimators": estimators, "sources": sources, "tokens": tokens, "positions": positions}
    given |= {"strengths": strengths}
    asked = {name: value for name, value in given.items() if value is not None}
    # A scale that does not exist is told by the study.
    grid = Grid.of(asked, GRIDS.get(scale, Grid()))
    loading = _loading(trust_remote_code, dtype, device_map, revision)
    config = Config(model, str(queries) if queries else None, scale, str(out), split, seed, loading=loading)
    study_verbs.sweep(config, grid, Console(), top, halving, ray, cpus_per_worker)


@app.command()
def defend(
    data: Annotated[
        list[str], typer.Option(help="NAME=PATH of a benchmark as published, or PATH of a file of yours; repeatable.")
    ],
    model: Model = "organism",
    guard: Annotated[str | None, typer.Option(help="Folder of a guard, or hub id; else its rivals alone.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for answers and tables; a run that was stopped goes on.")] = Path(
        "results/defend"
    ),
    modality: Annotated[str, typer.Option(help="Of requests that are published as text: text,blank,...")] = "text",
    attacks: Annotated[
        str | None, typer.Option(help="Also in jailbreaks: prefix_injection,refusal_suppression,role_play,...")
    ] = None,
    defences: Annotated[str | None, typer.Option(help="Some of them: self_reminder,ecso,guard,...")] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="keywords, xstest, gcg, ...; RUBRIC=MODEL; RUBRIC=MODEL@URL; classifier=MODEL; repeatable. The first "
            "one decides; by default xstest, then keywords."
        ),
    ] = None,
    judge_setting: JudgeSetting = None,
    label: Label = None,
    anchors: Annotated[
        Path | None,
        typer.Option(help="What the guard was fitted on, as --queries; by default what its folder says."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many rows of the largest class of each set, and whole pairs.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Their folder; by default where the set has them.")] = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Draw a picture in place of each missing one, and mark its row.")
    ] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave rows out whose pictures are missing.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Every defence on published benchmarks: attack success, over-refusal, pairs, abilities, with intervals.

    Answers are kept as they come (answers.jsonl): run it again to go on, and `vlm-guard judge` to ask other judges.
    """
    _quieten()
    from studies import benchmarks
    from studies.bookkeeping.typed_lists import words
    from studies.defences.benchmark_sets import BenchmarkOptions
    from studies.generation.generate import Generation

    missing = (pictures and str(pictures), stand_in, skip_missing)
    asked = BenchmarkOptions.of(data, words(modality), words(defences or ""), limit, *missing, words(attacks or ""))
    how = Generation(max_new_tokens, batch_size)
    loading = _loading(trust_remote_code, dtype, device_map, revision)
    options = _judge_options(judge_setting, label)
    names = judge or ["xstest", "keywords"]
    benchmarks.command(model, loading, guard, asked, names, anchors, out, how, Console(), options)


@app.command()
def judge(
    answers: Annotated[Path, typer.Argument(help="answers.jsonl of `vlm-guard defend` or `repro`.")],
    judge: Annotated[list[str], typer.Option(help="As for `vlm-guard defend`; the first one decides.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the tables; by default `judged`, beside the answers.")
    ] = None,
    judge_setting: JudgeSetting = None,
    label: Label = None,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Has answers judged again, by other judges: nothing is generated anew, and their verdicts stand in the file."""
    _quieten()
    from studies import benchmarks
    from studies.experiment.config import writable_folder
    from studies.judges.by_name import judges_named

    folder = writable_folder(out or answers.parent / "judged")
    loading = _loading(trust_remote_code, dtype, device_map, revision=None)
    asked = (loading, *_judge_options(judge_setting, label))
    benchmarks.judge(answers, judges_named(judge, answers.parent, *asked), folder, Console())


@app.command()
def judges(
    completions: Annotated[list[Path], typer.Argument(help="xstest_v2_completions_*.csv of XSTest.")],
    judge: Annotated[list[str] | None, typer.Option(help="By default every judge by rule.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("results/judges"),
    judge_setting: JudgeSetting = None,
    label: Label = None,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
) -> None:
    """How far judges agree with people, and with each other: kappa, confusion, precision and recall."""
    _quieten()
    from studies.bookkeeping.tables import write_table
    from studies.experiment.config import writable_folder
    from studies.judges.agreement import compare_with_people, summary_lines
    from studies.judges.by_name import judges_named, rule_judges

    folder, loading = writable_folder(out), _loading(trust_remote_code, dtype, device_map, revision=None)
    asked = (loading, *_judge_options(judge_setting, label))
    table = compare_with_people(completions, judges_named(judge or list(rule_judges()), folder, *asked))
    for line in summary_lines(table):
        print(f"- {line}")
    print(f"  {write_table(table, folder, 'judges')}")


@app.command()
def figures(
    results: Annotated[list[Path], typer.Argument(help="Folders of results, of one model; as `repro` writes them.")],
    out: Annotated[Path, typer.Option(help="Folder for figures, captions and tables.")] = Path("results/figures"),
) -> None:
    """Every figure that results allow, as PDF and PNG with captions, and tables as LaTeX and Markdown.

    What is left out is told, with the reason.
    """
    from studies.report import gallery

    gallery.command(results, out, Console())


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders of results, of one model; as `repro` writes them.")],
    out: Annotated[Path, typer.Option(help="The page: one file.")] = Path("report.html"),
) -> None:
    """Results as one page that needs no network: verdicts, figures, tables, hidden states, provenance."""
    from studies import report as page
    from studies.bookkeeping.progress import phase
    from studies.report.gallery import FIGURES
    from studies.report.results import Results

    found = Results.of(*results)
    with phase("figures", len(FIGURES)) as told:
        written = page.write(found, out, lambda name: told(note=name))
    print(f"  {written}")


@data_app.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(help="File or folder, as its authors publish it.")],
    name: Annotated[str | None, typer.Option(help="Which benchmark it is; by default it is recognised.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder of its pictures.")] = None,
    stand_in: Annotated[bool, typer.Option("--stand-in", help="Draw what is missing, and mark its rows.")] = False,
    anchors: Annotated[
        Path | None,
        typer.Option(help="What a direction is fitted on, as --queries; by default the built-in anchors."),
    ] = None,
) -> None:
    """Tells what a benchmark's files hold. Exit code 1 where a picture is damaged, or missing and not drawn."""
    from studies.datasets import QueryFileError, check, read_queries
    from studies.organism import language

    texts = [query.text for query in (read_queries(anchors) if anchors else language.queries("anchors"))]
    try:
        found = check(path, name, pictures, stand_in, texts)
    except QueryFileError:
        raise
    except ValueError as error:
        raise QueryFileError(str(error)) from None
    for what, told in found.lines():
        print(f"{what:<13} {told}")
    raise typer.Exit(0 if found.is_usable else 1)


@guard_app.command("fit")
def guard_fit(
    out: Annotated[Path, typer.Option(help="Folder of the guard.")],
    model: Model = "organism",
    queries: Queries = None,
    scale: Annotated[str, typer.Option(help="tiny, quick or full: how much is measured on validation.")] = "quick",
    work: Annotated[Path, typer.Option(help="Folder for traces, which are used again.")] = Path("results/guard_fit"),
    seed: Annotated[int, typer.Option(help="Of splits of your own queries.")] = 0,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Fits the direction on anchors, chooses layer, rule and strength on validation, and saves the guard."""
    _quieten()
    from studies import guard_choice
    from studies.cli import guard
    from studies.experiment.config import Config

    loading = _loading(trust_remote_code, dtype, device_map, revision)
    config = Config(model, str(queries) if queries else None, scale, str(work), "validation", seed, loading=loading)
    guard_choice.fit(config, out)
    guard.show(str(out), Console())
    print(f"{out} holds the guard; `vlm-guard guard apply {out}` answers with it")


@guard_app.command("show")
def guard_show(folder: Annotated[str, typer.Argument(help="Folder of a guard, or hub id.")]) -> None:
    """Tells what a guard is, for which model, and the numbers that it was chosen by."""
    from studies.cli import guard

    guard.show(folder, Console())


@guard_app.command("apply")
def guard_apply(
    folder: Annotated[str, typer.Argument(help="Folder of a guard, or hub id.")],
    text: Annotated[str | None, typer.Option(help="One request.")] = None,
    picture: Annotated[Path | None, typer.Option(help="A picture that stands beside the request.")] = None,
    queries: Queries = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the queries of each class.")] = 5,
    modality: Annotated[
        str | None,
        typer.Option(
            help="text, blank, noise, scene, typographic, typographic_scene; by default scene where the queries bring "
            "pictures, else blank."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="prompt_text, transcription, caption, prompt_text+transcription or prompt_text+caption; by default "
            "the guard's."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 40,
    model: Annotated[str | None, typer.Option(help="By default the model that the guard says it is for.")] = None,
    trust_remote_code: Trust = False,
    dtype: Precision = "auto",
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Answers with and without the guard, side by side. By default some of the validation queries."""
    _quieten()
    from interp.guard import Guard
    from interp.guard_files import read_settings
    from studies.cli import guard
    from studies.generation.generate import Generation

    about = read_settings(folder)
    asked = guard.ApplyOptions.of(text, picture, queries, limit, modality, reference, about["guard"]["reference"])
    precision = about["model"]["dtype"] if dtype == "auto" else dtype
    vlm = _load(model or about["model"]["name"], trust_remote_code, precision, device_map, revision)
    guard = Guard.from_pretrained(folder, vlm)
    guard.print_answers(guard.apply(vlm, guard, asked, Generation(max_new_tokens)), Console())


def _load(model: str, trust_remote_code: bool, dtype: str, device_map: str | None, revision: str | None):
    """Raises:
    ModelError: see `studies.experiment.model_loading.load_model`.
    """
    from studies.experiment.model_loading import load_model

    return load_model(model, dtype, device_map, revision, trust_remote_code)


def _loading(trust_remote_code: bool, dtype: str, device_map: str | None, revision: str | None) -> dict:
    return {
        "dtype": dtype,
        "device_map": device_map,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }


def _judge_options(settings: list[str] | None, labels: list[str] | None) -> tuple[dict, dict[str, str]]:
    """Raises:
    JudgeNameError: one of them can't be read.
    """
    from studies.judges.by_name import labels_typed, settings_typed

    return settings_typed(settings or ()), labels_typed(labels or ())


def _quieten() -> None:
    """The libraries' own bars and warnings; progress and errors are told by us."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub.set_verbosity_error()


def _is_about_input(error: Exception) -> bool:
    """Apart from mistakes of ours, which keep their traceback. Imports late: `--help` answers at once."""
    from interp import AnchorError, GuardFileError, ModelError, PictureError, StoreError, TraceError
    from studies.datasets import QueryFileError
    from studies.defences.answer_log import AnswerLogError
    from studies.experiment.config import ConfigError
    from studies.guards.sweep_grid import GridError
    from studies.judges import EndpointError
    from studies.judges.agreement import CompletionsError
    from studies.judges.by_name import JudgeNameError
    from studies.probing.states import ProbeError

    known = (GridError, ProbeError, AnchorError, GuardFileError, ModelError, PictureError, StoreError, TraceError)
    known += (QueryFileError, ConfigError, OSError, AnswerLogError, CompletionsError, EndpointError, JudgeNameError)
    return isinstance(error, known)


def main() -> None:
    """Bad input is one line and exit code 2, never a traceback."""
    warnings.filterwarnings("ignore")
    warnings.showwarning = lambda message, *where: print(f"vlm-guard: {message}", file=sys.stderr)
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        if not _is_about_input(error):
            raise
        print(f"vlm-guard: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
