"""`vlm-guard defend`: published benchmarks, or your own files, under every defence."""

from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import quieten
from studies.cli.options import (
    DEFAULT_MODEL,
    LOADING_DEFAULTS,
    BatchSize,
    ColumnNames,
    HarmfulValues,
    JudgeSetting,
    Label,
    Loading,
    MaxNewTokens,
    Model,
    StandIn,
    choices,
    flag,
    loads_model,
    words,
)
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()
DEFAULT_JUDGES = ("xstest", "keywords")


@app.command()
@loads_model
def defend(
    model: Model = DEFAULT_MODEL,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A benchmark as its authors publish it, by name (`vlm-guard data list`) and file or folder; or just "
            "the path, also of a table of your own; repeatable.",
        ),
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of a guard (`vlm-guard guard fit`), or hub id; by default only the defences that need no "
            "guard are run.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for answers and tables; an interrupted run is resumed.")
    ] = Path("results/defend"),
    modality: Annotated[
        str,
        choices("modality", arguments.MODALITIES, "How requests published as text are shown"),
    ] = "text",
    attacks: Annotated[
        str | None,
        choices("attack", arguments.ATTACKS, "Also wrap requests in jailbreaks"),
    ] = None,
    defences: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Defences to run, separated by commas: self_reminder, goal_priority, adashield_s, safety_prompt, "
            "ecso, caption_only, text_verdict, text_score_verdict; with --guard also guard, gate_refuser, "
            "guard_always, guard_full_state; with known anchors also shift_dc, cmrm, infer_aligner, astra, tbop, "
            "alpha_steer, null_steer, re_gap, angular_steering, and with --cone refusal_cone (untuned). By default "
            "all that can be run; `vlm-guard defences list` says what each is.",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JUDGE",
            help="Rules: keywords, xstest, gcg, jailbreakbench, vlguard, lmms_eval, adashield, full_completion, exact. "
            "Models: RUBRIC=MODEL, RUBRIC=MODEL@URL (an endpoint) with RUBRIC one of llama_guard, harmbench, "
            "wildguard, strongreject_anew, xstest_prompt, qwen_guard; classifier=MODEL. Repeatable; rankings rest on "
            "the first one; by default xstest, then keywords. `vlm-guard judges list` says what each is.",
        ),
    ] = None,
    judge_setting: JudgeSetting = None,
    label: Label = None,
    anchors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Requests that the guard was fitted on (its anchors), as a CSV; by default those in the guard's "
            "folder.",
        ),
    ] = None,
    cone: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Vectors of a refusal cone, as safetensors: (rank, d_model), or (layer, rank, d_model).",
            callback=arguments.existing("cone"),
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Cut each benchmark: at most N rows of its largest class, other classes in proportion, pairs whole.",
        ),
    ] = None,
    costs: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Also measure tokens, passes and seconds of an answer, and the seconds of each stage (p50, p95), on "
            "N prompts of each set, one by one.",
        ),
    ] = 0,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of the pictures; by default the place in which the benchmark publishes them."
        ),
    ] = None,
    stand_in: StandIn = False,
    skip_missing: Annotated[bool, flag("--skip-missing", "Leave out rows whose pictures are missing.")] = False,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    max_new_tokens: MaxNewTokens = 256,
    batch_size: BatchSize = 16,
    *,
    loading: Loading,
) -> VerbResult:
    """Run every defence on published benchmarks: attack success, over-refusal and utility, with intervals.

    Answers are saved as they come (answers.jsonl): rerun the command to resume.
    """
    if not data:
        raise arguments.ArgumentError("nothing to answer; expected --data NAME=PATH, or --preset NAME")
    quieten()

    from studies.cli.benchmark_options import benchmark_file
    from studies.cli.benchmark_run import BenchmarkRun
    from studies.cli.judge_options import judge_options
    from studies.datasets import Columns
    from studies.defences.benchmark_sets import BenchmarkOptions
    from studies.defences.cone import read_cone
    from studies.generation.generate import Generation

    options = BenchmarkOptions.of(
        [benchmark_file(text) for text in data],
        words(modality),
        words(defences or ""),
        limit,
        str(pictures) if pictures else None,
        stand_in,
        skip_missing,
        words(attacks or ""),
        costs,
        Columns.parse(columns, harmful_values),
    )
    run = BenchmarkRun(
        model,
        loading,
        guard,
        anchors,
        options,
        judge or DEFAULT_JUDGES,
        # A revision and a chat template are those of the model, not of its judges.
        judge_options(judge_setting, label, {name: loading[name] for name in LOADING_DEFAULTS} | {"revision": None}),
        Generation(max_new_tokens, batch_size),
        out,
        read_cone(cone) if cone else None,
    )
    return run.start(plain_console())
