"""Results of a real model as they may be published: tables and figures, with hashes in place of its answers.

python -m studies.llava_qwen.published results/llava-qwen-0.5b results/reference/llava-qwen-0.5b
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from studies.bookkeeping.provenance import file_hash, write_json
from studies.bookkeeping.tables import read_table, write_table

ANSWERS = ("answer", "guarded_answer")
"""Columns with what the model said."""
COPIED = ("*.csv", "*.pdf", "*.png", "captions.md", "config.json", "provenance.json")
"""Files that hold no answers, once the columns `ANSWERS` are hashed; the page and the log of answers are not copied."""


def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    folder: Annotated[Path, typer.Argument(help="Folder for what may be published.")],
) -> None:
    """Copy a run's tables and figures without the model's answers: hashes still show which of them are equal.

    Args:
        run: folder that `studies.repro.run` has written.
        folder: created if it does not exist.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in COPIED for path in run.glob(pattern)):
        table = read_table(run, path.stem) if path.suffix == ".csv" else None
        columns = [name for name in ANSWERS if table is not None and name in table]
        if not columns:
            shutil.copyfile(path, folder / path.name)
            continue
        table[columns] = table[columns].map(_hashed)
        written = write_table(table, folder, path.stem)
        provenance["tables"].setdefault(path.name, {})["sha256"] = file_hash([written])
    write_json(folder / "provenance.json", provenance)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    # Where somebody keeps their results is nobody's business.
    write_json(folder / "config.json", config | {"out": f"results/{run.name}"})


def _hashed(answer: object) -> str:
    return "" if pd.isna(answer) else hashlib.sha256(str(answer).encode()).hexdigest()[:16]


if __name__ == "__main__":
    typer.run(publish)
