"""`vlm-guard judge`: saved answers, of this or another program, judged by other judges."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.messages import quieten
from studies.cli.options import HarmfulValues, JudgeSetting, Label, Loading, loads_judges
from studies.cli.verbs import VerbResult, Verbs

if TYPE_CHECKING:
    from studies.datasets import SavedAnswers

app = Verbs()


@app.command()
@loads_judges
def judge(
    answers: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS",
            help="answers.jsonl of `vlm-guard defend` or `repro`; samples_*.jsonl of lmms-eval, a log of inspect_ai "
            "(.eval), predictions of VLMEvalKit (.xlsx, .tsv), or any table with requests and answers.",
            callback=arguments.existing("file of answers"),
        ),
    ],
    judge: Annotated[
        list[str],
        typer.Option(
            metavar="JUDGE",
            help="A judge, named as in `vlm-guard judges list`; repeatable. The first one decides.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for the tables; by default `judged`, next to the answers."),
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="NAME=COLUMN",
            help="What the columns of answers from elsewhere are called, separated by commas: "
            "request=goal,response=output; also model, defence, dataset, category, id, and harmful (the class of the "
            "request), or harmful=none if all are harmless.",
        ),
    ] = "",
    harmful_values: HarmfulValues = "",
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Which model answered, if answers from elsewhere don't say it.")
    ] = "",
    defence: Annotated[
        str, typer.Option(metavar="NAME", help="Which defence it had, if answers from elsewhere don't say it.")
    ] = "",
    judge_setting: JudgeSetting = None,
    label: Label = None,
    *,
    loading: Loading,
) -> VerbResult:
    """Judge saved answers with other judges; nothing is regenerated.

    Verdicts are added to the file of answers; of answers from elsewhere, a file is written next to the tables.
    """
    quieten()

    from studies import benchmarks
    from studies.cli.benchmark_run import print_result
    from studies.cli.judge_options import judge_options
    from studies.datasets import AnswerColumns, read_saved_answers
    from studies.defences.saved import is_own_log, write_logs
    from studies.experiment.run_folder import held
    from studies.judges.by_name import judges_named

    options, folder = judge_options(judge_setting, label, loading), out or answers.parent / "judged"
    with held(folder):
        if is_own_log(answers):
            judges = judges_named(judge, answers.parent, options)
            return print_result(benchmarks.judge_again(answers, judges, folder), plain_console())
        saved = read_saved_answers(answers, AnswerColumns.parse(columns, harmful_values))
        judges = judges_named(judge, folder, options)
        print("\n".join(summary_lines(saved)))
        files = []
        for log in write_logs(saved, answers, folder, model, defence):
            files += print_result(benchmarks.judge_again(log, judges, log.parent), plain_console()).files
    return VerbResult({"n_without_answer": saved.n_without}, files)


def summary_lines(saved: "SavedAnswers") -> list[str]:
    """Return what a file of answers says of itself, a line for each model and defence."""
    counts = Counter((answer.model, answer.defence, answer.dataset) for answer in saved.answers)
    lines = [
        f"{saved.program}: {n} answers to {dataset or 'requests'}; model: {model or 'not stated (--model)'}; "
        f"defence: {defence or 'not stated (--defence)'}"
        for (model, defence, dataset), n in counts.items()
    ]
    if saved.n_without:
        lines.append(f"{saved.n_without} requests without an answer are left out")
    if not saved.tells_harm:
        lines.append("nothing says which requests are harmful: all count as harmful (--columns harmful=NAME, or none)")
    return lines
