"""`vlm-guard model get`: the models that the project provides but can't ship whole."""

from pathlib import Path
from typing import Annotated

import typer

from studies.cli.messages import quieten
from studies.cli.verbs import VerbResult, Verbs
from studies.experiment.built_models import PROVIDED

app = Verbs(help="Get a model that the project provides.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Keep `get` a verb of its own: typer would drop the name of an only one."""


@app.command("get")
def get(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help=f"{' or '.join(PROVIDED)}, or a variant of it behind a colon, such as llava-qwen-0.5b:c1.",
        ),
    ],
    base: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of the LLM (GGUF), if you have it; nothing is downloaded then."),
    ] = None,
) -> VerbResult:
    """Build a model: an LLM that is downloaded (491 MB), with the weights that were trained here."""
    quieten()
    from studies.experiment.built_models import built_model
    from studies.experiment.config import ConfigError
    from studies.experiment.shipped_models import variant_of
    from studies.llava_qwen import build

    model = built_model(name)
    if model is None:
        known = " or ".join(PROVIDED)
        raise ConfigError(f"{name!r} can't be built; expected {known}, perhaps with a variant behind a colon")
    folder = build.get(model, variant_of(model, name), base)
    print(folder)
    return VerbResult({"model": name, "folder": folder})
