"""Small results for the tests of the report, with markup wherever text from outside can occur."""

import json
import shutil
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import figures
from studies.report.gallery import DrawnFigure, OmittedFigure
from studies.report.results import Results

REFERENCE = Path(__file__).parents[3] / "results" / "reference" / "quick"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKUP = (
    "<script>alert(1)</script>",
    '</script><img src=x onerror="alert(2)">',
    "<!-- <b>bold</b> & 'quoted' \u2028 line",
)
"""Three harmless requests, as hostile as a data set can be."""


def changes(points: pd.DataFrame, layer: int) -> pd.DataFrame:
    """Return a table like that of `studies.prompt_changes`: one row per prompt, modality and reference."""
    rows = []
    for i, point in enumerate(points[points.layer == layer].itertuples()):
        in_picture = point.modality.startswith("typographic")
        for reference in ("prompt_text", "transcription") if in_picture else ("prompt_text",):
            refused = bool(point.harmful) and point.modality == "text"
            guarded = bool(point.harmful) and (not in_picture or reference == "transcription")
            rows.append(
                {
                    "model": "organism", "setting": "plain", "modality": point.modality, "reference": reference,
                    "harmful": point.harmful, "pair": f"p{i // 2}", "text": point.text, "layer": layer,
                    "coordinate": point.coordinate, "reference_coordinate": 1.0, "gate": guarded,
                    "after": point.coordinate + 1, "delta_norm": 0.1, "answer": answer(refused, "unguarded"),
                    "guarded_answer": answer(guarded, "guarded"), "refused": refused, "guarded_refused": guarded,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def answer(refused: bool, how: str) -> str:
    return f"I can't help with that, {how}." if refused else f"Sure! <i>{how}</i> & done."


def folder_of_results(folder: Path) -> Path:
    """Write shortened tables of the built-in model, with `MARKUP` among the prompts, verdicts and cells."""
    points = pd.read_csv(REFERENCE / "points.csv")
    texts = points.text.unique()[:12]
    harmless = points[points.text.isin(texts) & ~points.harmful].text.unique()
    points = points[points.text.isin(texts) & points.layer.isin([0, 6, 7])].assign(
        text=lambda table: table.text.replace(dict(zip(harmless, MARKUP, strict=False)))
    )
    points.to_csv(folder / "points.csv", index=False)
    changes(points, 7).to_csv(folder / "changes.csv", index=False)
    claims = pd.read_csv(REFERENCE / "claims.csv")
    claims.loc[1, "ours"] = MARKUP[1]
    claims.to_csv(folder / "claims.csv", index=False)
    defence = pd.read_csv(REFERENCE / "defence.csv", low_memory=False)
    kept = defence.metric.isin(["asr", "over_refusal_rate", "kl"])
    defence[kept].assign(tuning=MARKUP[0]).to_csv(folder / "defence.csv", index=False)
    pd.read_csv(REFERENCE / "readings.csv").to_csv(folder / "readings.csv", index=False)
    pd.read_csv(REFERENCE / "separability.csv").head(300).to_csv(folder / "separability.csv", index=False)
    (folder / "config.json").write_bytes((REFERENCE / "config.json").read_bytes())
    provenance = json.loads((REFERENCE / "provenance.json").read_text(encoding="utf-8"))
    provenance["inputs"]["queries"] = MARKUP[0]
    provenance |= {"date": "2026-11-30", "machine": "2 CPU cores"}
    provenance["tables"] = {"points.csv": {"sha256": "of another file"}}
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    return folder


def draw_figures(results: Results):
    """Replace the gallery by a figure that is quick to draw, one that can't be drawn, and one without its table."""
    figure = Figure(figsize=(3.25, 2))
    figure.subplots().plot([0, 1], [1, 0], label="a line")
    yield DrawnFigure(
        "degradation", "A line <b>", "separability", figures.style.add_caption(figure, f"What it shows, {MARKUP[1]}.")
    )
    yield OmittedFigure("other", "Another figure", "readings", "readings needs `layer`; run `vlm-guard repro`")
    yield OmittedFigure("sweep", "A figure of the sweep", "layer_sweep", "layer_sweep.csv is missing; run `it`")
