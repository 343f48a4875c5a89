"""`vlm-guard judge`: saved answers, judged again."""

from pathlib import Path
from typing import Annotated

import typer

from studies.cli.messages import quieten
from studies.cli.options import JudgeSetting, Label, Loading, loads_judges

app = typer.Typer()


@app.command()
@loads_judges
def judge(
    answers: Annotated[Path, typer.Argument(help="answers.jsonl of `vlm-guard defend` or `repro`.")],
    judge: Annotated[
        list[str],
        typer.Option(help="A judge, named as for `vlm-guard defend`; repeatable. The first one decides."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the tables; by default `judged`, next to the answers.")
    ] = None,
    judge_setting: JudgeSetting = None,
    label: Label = None,
    *,
    loading: Loading,
) -> None:
    """Re-judge saved answers with other judges; nothing is regenerated. The verdicts are added to the file."""
    quieten()
    from rich.console import Console

    from studies import benchmarks
    from studies.cli.benchmark_run import print_result
    from studies.cli.judge_options import judge_options
    from studies.experiment.config import writable_folder
    from studies.judges.by_name import judges_named

    folder = writable_folder(out or answers.parent / "judged")
    judges = judges_named(judge, answers.parent, judge_options(judge_setting, label, loading))
    print_result(benchmarks.judge_again(answers, judges, folder), Console())
