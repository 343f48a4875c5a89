"""`vlm-guard check`: the properties that everything else rests on, measured on a model."""

from collections import Counter
from typing import Annotated

import typer

from studies.cli.messages import quieten
from studies.cli.options import DEFAULT_MODEL, Loading, Model, loads_model
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()


@app.command()
@loads_model
def check(
    # As in version 0.1: `vlm-guard check MODEL`.
    positional: Annotated[str | None, typer.Argument(metavar="[MODEL]", hidden=True, help="As --model.")] = None,
    model: Model = DEFAULT_MODEL,
    *,
    loading: Loading,
) -> VerbResult:
    """Verify on a model that the toolkit reads and changes what it claims to. Run it before you trust a new model.

    Prints one line per property: ok, degraded (rounding), silently wrong, error, or not applicable; then how many are
    ok. Ends with exit code 1 on anything worse than degraded.
    """
    quieten()
    from interp import LLM, ModelError
    from interp.verify import check_vlm
    from studies.experiment.model_loading import load_model

    loaded = load_model(positional or model, **loading)
    if isinstance(loaded, LLM):
        raise ModelError(f"model {loaded.name!r} accepts no pictures; `check` is about vision-language models")
    findings = check_vlm(loaded)
    for finding in findings:
        print(f"{finding.verdict:<15} {finding.claim}  ({finding.measured})")
    counts = Counter(finding.verdict for finding in findings)
    n_ok = counts.pop("ok", 0)
    others = "".join(f", {n} {verdict}" for verdict, n in counts.items())
    print(f"{n_ok} of {len(findings)} ok{others}")
    is_ok = all(finding.is_accepted for finding in findings)
    return VerbResult({"model": loaded.name, "findings": findings, "n_ok": n_ok}, is_ok=is_ok)
