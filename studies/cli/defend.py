"""`vlm-guard defend`: published benchmarks, or your own files, under every defence."""

from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import quieten
from studies.cli.options import (
    DEFAULT_MODEL,
    ColumnNames,
    HarmfulValues,
    JudgeSetting,
    Label,
    Loading,
    MaxNewTokens,
    Model,
    StandIn,
    loads_model,
    words,
)

app = typer.Typer()
DEFAULT_JUDGES = ("xstest", "keywords")


@app.command()
@loads_model
def defend(
    data: Annotated[
        list[str],
        typer.Option(help="NAME=PATH of a benchmark as published, or PATH of a file of your own; repeatable."),
    ],
    model: Model = DEFAULT_MODEL,
    guard: Annotated[
        str | None,
        typer.Option(help="Folder of a guard, or hub id; by default only the defences that need no guard are run."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for answers and tables; an interrupted run is resumed.")] = Path(
        "results/defend"
    ),
    modality: Annotated[
        str,
        typer.Option(
            help="How requests published as text are shown, comma-separated: text, blank, noise, scene, typographic, "
            "typographic_scene.",
            callback=arguments.some_of("modality", arguments.MODALITIES),
        ),
    ] = "text",
    attacks: Annotated[
        str | None,
        typer.Option(
            help="Also wrap requests in jailbreaks, comma-separated: prefix_injection, refusal_suppression, role_play, "
            "style_injection, distractor.",
            callback=arguments.some_of("attack", arguments.ATTACKS),
        ),
    ] = None,
    defences: Annotated[
        str | None,
        typer.Option(
            help="Defences to run, comma-separated: self_reminder, goal_priority, adashield_s, safety_prompt, ecso, "
            "caption_only, text_verdict, text_score_verdict; with --guard also guard, gate_refuser, guard_always, "
            "guard_full_state; with known anchors also shift_dc, cmrm, infer_aligner, astra, tbop, alpha_steer, "
            "null_steer, re_gap, angular_steering, and with --cone refusal_cone (untuned). By default all that can be "
            "run."
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Rules: keywords, xstest, gcg, jailbreakbench, vlguard, lmms_eval, adashield, full_completion, exact. "
            "Models: RUBRIC=MODEL, RUBRIC=MODEL@URL (an endpoint) with RUBRIC one of llama_guard, harmbench, "
            "wildguard, strongreject_anew, xstest_prompt, qwen_guard; classifier=MODEL. Repeatable; rankings rest on "
            "the first one; by default xstest, then keywords."
        ),
    ] = None,
    judge_setting: JudgeSetting = None,
    label: Label = None,
    anchors: Annotated[
        Path | None,
        typer.Option(help="Queries the guard was fitted on, as a CSV; by default those saved in the guard's folder."),
    ] = None,
    cone: Annotated[
        Path | None,
        typer.Option(
            help="Vectors of a refusal cone, as safetensors: (rank, d_model), or (layer, rank, d_model).",
            callback=arguments.existing("cone"),
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cut each benchmark: at most N rows of its largest class, other classes in proportion, pairs whole.",
        ),
    ] = None,
    costs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Also measure tokens, passes and seconds of an answer, and the seconds of each stage (p50, p95), on N "
            "prompts of each set, one by one.",
        ),
    ] = 0,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder of the pictures; by default the place in which the benchmark publishes them."),
    ] = None,
    stand_in: StandIn = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out rows whose pictures are missing.")
    ] = False,
    columns: ColumnNames = "",
    harmful_values: HarmfulValues = "",
    max_new_tokens: MaxNewTokens = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 16,
    *,
    loading: Loading,
) -> None:
    """Run every defence on published benchmarks: attack success, over-refusal and utility, with intervals.

    Answers are saved as they come (answers.jsonl): rerun the command to resume.
    """
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
    BenchmarkRun(
        model,
        loading,
        guard,
        anchors,
        options,
        judge or DEFAULT_JUDGES,
        # A revision is one of the model, not of its judges.
        judge_options(judge_setting, label, loading | {"revision": None}),
        Generation(max_new_tokens, batch_size),
        out,
        read_cone(cone) if cone else None,
    ).start(plain_console())
