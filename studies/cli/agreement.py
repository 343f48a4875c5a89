"""`vlm-guard judges`: how far judges agree with people, and with each other."""

from pathlib import Path
from typing import Annotated

import typer

from studies.bookkeeping.console import plain_console
from studies.cli import arguments
from studies.cli.lists import JUDGES, print_list
from studies.cli.messages import print_paths, quieten
from studies.cli.options import HarmfulValues, JudgeSetting, Label, Loading, loads_judges
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()


def _existing_or_list(paths: list[Path]) -> list[Path]:
    return paths if list(map(str, paths)) == ["list"] else arguments.existing("file of answers")(paths)


@app.command()
@loads_judges
def judges(
    completions: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Files of answers that people have labelled: XSTest's completions, JailbreakBench's judge comparison, "
            "WildGuardTest, Do-Not-Answer's reviews, or a table of your own; or `list`.",
            callback=_existing_or_list,
        ),
    ],
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JUDGE",
            help="A judge, named as in `vlm-guard judges list`; repeatable. By default every judge by rule.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the table.")] = Path("results/judges"),
    columns: Annotated[
        str,
        typer.Option(
            metavar="NAME=COLUMN",
            help="What your table's columns are called, separated by commas: request=prompt,refused=label; also "
            "response, harmful (of the answer), model and id.",
        ),
    ] = "",
    refused_values: Annotated[
        str,
        typer.Option(metavar="LABELS", help="Which labels in your table mean refused, separated by commas."),
    ] = "",
    harmful_values: HarmfulValues = "",
    judge_setting: JudgeSetting = None,
    label: Label = None,
    *,
    loading: Loading,
) -> VerbResult:
    """Show how far judges agree with people, and with each other: kappa, confusion, precision and recall.

    `vlm-guard judges list` lists the judges.
    """
    if list(map(str, completions)) == ["list"] and not completions[0].exists():
        return print_list("judges", JUDGES)
    quieten()
    from studies.bookkeeping.tables import write_table
    from studies.cli.judge_options import judge_options
    from studies.datasets.responses import ResponseColumns, read_response_files
    from studies.experiment.run_folder import held
    from studies.judges.agreement import compare_with_people, summary_lines
    from studies.judges.by_name import judges_named, rule_judges, with_keywords

    options = judge_options(judge_setting, label, loading)
    files = read_response_files(completions, ResponseColumns.parse(columns, refused_values, harmful_values))
    if files.repeated:
        print(f"- counted once: {', '.join(map(str, files.repeated))} hold answers that another file holds")
    with held(out) as folder:
        judges = with_keywords(judges_named(judge or list(rule_judges()), folder, options))
        table = compare_with_people(files, judges)
        written = write_table(table, folder, "judges")
    for line in summary_lines(table):
        print(f"- {line}")
    print_paths(plain_console(), [written])
    return VerbResult({"counted_once": files.repeated}, [written])
