"""The folder of a run: one writer at a time, and results of one run only.

A command holds its folder while it works (`run_folder`), and writes whose it is once model and queries are loaded
(`studies.bookkeeping.provenance.write_config`): a run that fails before leaves nothing.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from interp.errors import first_line
from interp.json_text import parse_json
from interp.whole_files import WrittenByAnotherError, only_writer
from studies.experiment.config import Config, ConfigError, writable_folder

CONFIG = "config.json"
LOCK = ".lock"
FIXED = (
    "model",
    "queries",
    "columns",
    "scale",
    "split",
    "seed",
    "weights",
    "limit",
    "max_new_tokens",
    "revision",
    "dtype",
    "store",
)
"""Settings that results depend on; batches may have another size, devices be others, and a folder be moved."""


@contextmanager
def run_folder(config: Config, options: Mapping[str, object] | None = None) -> Iterator[Path]:
    """Hold the folder of a run, `config.out`.

    Args:
        config: settings of the run.
        options: what the command's own options set, by name.

    Raises:
        ConfigError: the folder can't be written to, another process writes it, or it holds results with other settings,
            which would be overwritten.
    """
    with held(config.out) as folder:
        check_settings(folder, asdict(config) | {"options": options or {}})
        yield folder


@contextmanager
def held(out: str | Path) -> Iterator[Path]:
    """Hold a folder of results, so that no other process writes it; one in which nothing was written is removed again.

    Raises:
        ConfigError: it can't be written to, or another process writes it.
    """
    folder = writable_folder(out)
    missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with only_writer(folder / LOCK):
            yield folder
    except WrittenByAnotherError:
        raise ConfigError(f"{out} is being written by another process; wait for it, or give another --out") from None
    finally:
        for path in missing:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


def check_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Check that a folder holds no results that were computed with other settings.

    A run that ended before its first table left no results. Its checkpoints are named by their inputs, so another run
    does not overwrite them.

    Args:
        folder: folder of results.
        settings: fields of `Config` or others of `FIXED`, and `options` by name.

    Raises:
        ConfigError: it does, or its `config.json` is damaged.
    """
    if not any(path.is_file() and path.name != CONFIG and path.name[0] != "." for path in folder.iterdir()):
        return
    try:
        before = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
        earlier, earlier_options = _fixed(before), before.get("options")
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / CONFIG} is damaged ({first_line(error)}), so it is unknown whose results these are; give "
            "another --out, or delete it"
        ) from None
    asked = json.loads(json.dumps(settings, default=str))
    now, options = _fixed(asked), asked.get("options") or {}
    pairs = {name: (earlier[name], now[name]) for name in now if name in earlier}
    # Folders of earlier versions don't say which options they were made with.
    if isinstance(earlier_options, dict):
        names = dict.fromkeys([*earlier_options, *options])
        pairs |= {name: (earlier_options.get(name, "not set"), options.get(name, "not set")) for name in names}
    differing = [f"{name} {before!r}, now {value!r}" for name, (before, value) in pairs.items() if before != value]
    if differing:
        raise ConfigError(
            f"{folder} holds results of another run ({'; '.join(differing)}); give another --out, or delete it"
        )


def _fixed(settings: Mapping) -> dict:
    """Return the settings that results depend on, with paths in full; those that an earlier version had."""
    found = {name: settings[name] for name in FIXED if name in settings}
    for name in ("model", "queries", "weights"):
        if isinstance(found.get(name), str) and Path(found[name]).exists():
            found[name] = str(Path(found[name]).resolve())
    for part, name in (("generation", "max_new_tokens"), ("loading", "revision"), ("loading", "dtype")):
        if isinstance(settings.get(part), dict) and name in settings[part]:
            found[name] = settings[part][name]
    return found
