"""`vlm-guard check`: the properties that everything else rests on, measured on a model."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from studies.cli.messages import quieten
from studies.cli.options import Loading, ModelArgument, loads_model

app = typer.Typer()


@app.command()
@loads_model
def check(
    model: ModelArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, for programs.")] = False,
    *,
    loading: Loading,
) -> None:
    """Verify on a model that the toolkit reads and changes what it claims to. Run it before you trust a new model.

    Prints one line per property: ok, degraded (rounding), silently wrong, error, or not applicable; then how many are
    ok. Exit code 1 on anything worse than degraded.
    """
    quieten()
    from interp import LLM, ModelError
    from interp.verify import check_vlm
    from studies.experiment.model_loading import load_model

    loaded = load_model(model, **loading)
    if isinstance(loaded, LLM):
        raise ModelError(f"model {model!r} accepts no pictures; `check` is about vision-language models")
    findings = check_vlm(loaded)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.verdict:<15} {finding.claim}  ({finding.measured})")
        counts = Counter(finding.verdict for finding in findings)
        n_ok = counts.pop("ok", 0)
        others = "".join(f", {n} {verdict}" for verdict, n in counts.items())
        print(f"{n_ok} of {len(findings)} ok{others}")
    if not all(finding.is_accepted for finding in findings):
        raise typer.Exit(1)
