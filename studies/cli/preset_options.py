"""`--preset NAME`: the model and the data of a published experiment, for verbs other than `reproduce`."""

from collections.abc import Mapping
from pathlib import Path

from studies.bookkeeping.console import note
from studies.cli.arguments import ArgumentError
from studies.presets.preset import Preset, read_preset

DATA = Path("data")
"""Folder of the data sets, as `vlm-guard reproduce` looks for them by default."""
OWN = "own"
"""Benchmark name of a table with both classes, which can be the requests of a study."""


def with_preset(name: str, values: Mapping, loading: Mapping, default_model: str) -> tuple[dict, dict]:
    """Return the options of a verb with the model and the data of a preset where nothing else was typed.

    Args:
        name: name of a preset, or a file.
        values: options of the verb; `model`, and `queries` or `data` if it takes them.
        loading: options that say how the model is loaded.
        default_model: the value of `model` that nobody typed.

    Raises:
        ArgumentError: another model was typed too, or the preset's model runs code that was not allowed.
        PresetError: there is no such preset.
    """
    preset = read_preset(name)
    model = preset.model
    if values["model"] != default_model:
        raise ArgumentError(f"--preset {name} and --model {values['model']} both name a model; give one of them")
    if model.needs_code and not loading["trust_remote_code"]:
        raise ArgumentError(f"{model.name} runs Python code of its own; read it, then give --trust-remote-code")
    filled = {**values, "model": model.name}
    if "data" in values:
        filled["data"] = values["data"] or _benchmarks(preset)
    elif "queries" in values and values["queries"] is None:
        filled["queries"] = _own_queries(preset)
    return filled, {**loading, **model.loading(loading)}


def _benchmarks(preset: Preset) -> list[str]:
    """Return the benchmarks that a preset's answers are about, as they would be typed.

    Raises:
        ArgumentError: one of them is not there, or the preset has none.
    """
    names = dict.fromkeys(name for part in preset.answers for name in part.data)
    sets = [preset.dataset(name) for name in names]
    missing = [each for each in sets if not (DATA / each.file).exists()]
    if missing:
        raise ArgumentError(f"{DATA / missing[0].file} does not exist ({missing[0].get}); or give --data NAME=PATH")
    if not sets:
        raise ArgumentError(f"preset {preset.name!r} has no benchmarks; give --data NAME=PATH")
    return [f"{each.benchmark}={DATA / each.file}" for each in sets]


def _own_queries(preset: Preset) -> Path | None:
    """Return a preset's table of harmful and harmless requests; None, the built-in ones, if there is none."""
    tables = [DATA / each.file for each in preset.data if each.benchmark == OWN]
    for path in tables:
        if path.exists():
            return path
    where = f" ({tables[0]} does not exist)" if tables else ""
    note(f"Preset {preset.name} brings no table of requests{where}: the built-in ones are used.")
    return None
