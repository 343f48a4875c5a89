"""`vlm-guard store`: what a store of traced activations holds, and whether it is damaged."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from studies.cli import arguments
from studies.cli.options import flag
from studies.cli.verbs import VerbResult, Verbs

app = Verbs()


@app.command()
def store(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder written by `vlm-guard trace`, or by interp.trace with out=FOLDER.",
            callback=arguments.existing("store"),
        ),
    ],
    check: Annotated[bool, flag("--check", "Read everything, and name the damaged batches.")] = False,
    mend: Annotated[
        bool, flag("--mend", "As --check, and mark damaged batches for the next run of the same trace to redo.")
    ] = False,
) -> VerbResult:
    """Show what a folder of traced states holds. Ends with exit code 1 if --check finds damage."""
    found = summary(folder)
    for name, value in found.items():
        print(f"{name:<20} {value}")
    if not (check or mend):
        return VerbResult(found)
    batches = damaged(folder, mend)
    print(f"damaged batches: {', '.join(map(str, batches)) or 'none'}{'; forgotten' if batches and mend else ''}")
    return VerbResult(found | {"damaged": batches}, is_ok=not batches)


def summary(folder: Path) -> dict[str, str]:
    """Describe a store in a few texts by name.

    Raises:
        StoreError: the folder holds no store, or its header is damaged.
    """
    from interp import ALL_TOKENS, Store

    store = Store(folder)
    about, prompts = store.header["about"], store.prompts
    kinds = Counter((prompt["modality"], "harmful" if prompt["harmful"] else "harmless") for prompt in prompts)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    lines = {
        "model": f"{about['model']} ({about['weights']}, {about['dtype']})",
        "prompts": f"{len(prompts)}: " + ", ".join(f"{n} {' '.join(kind)}" for kind, n in kinds.items()),
        "sites": ", ".join(about["sites"]),
        "tokens": about["tokens"] if about["tokens"] == ALL_TOKENS else ", ".join(map(str, about["tokens"])),
        "layers": ", ".join(map(str, about["layers"])),
        "batches": f"{store.n_done} of {store.plan.n_batches} done, {store.plan.batch_size} prompts each",
        "on disk": f"{size / 1e6:.1f} MB, {about['stored_as']}",
        "made with": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
    }
    arrays = {
        name: f"{' '.join(('prompt', *field.dims))}: {' x '.join(map(str, (len(prompts), *field.lengths)))}"
        for name, field in store.fields.items()
    }
    return lines | arrays


def damaged(folder: Path, mend: bool) -> list[int]:
    """Return the batches that are not what was written.

    Args:
        folder: folder of the store.
        mend: forget them, so that the next run of the same trace does them again.
    """
    from interp import Store

    store = Store(folder)
    return store.mend() if mend else store.damaged()
