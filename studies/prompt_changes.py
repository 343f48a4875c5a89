"""What the guard changed, prompt by prompt: the coordinate it found and left, its gate, and the answers with and
without.

A table of prompts, not of measurements: it is what figures of single prompts are drawn from, and what a person reads
who wants to know what stands behind a rate.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from interp.inputs import TYPOGRAPHIC
from interp.projection import coordinates
from studies.bookkeeping.progress import phase
from studies.defences.answer_log import AnswerRecord
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment
from studies.guards.configuration import GuardConfiguration

SETTINGS = ("plain", "multimodal")
COLUMNS = (
    "model split setting modality reference harmful pair text layer coordinate reference_coordinate gate after "
    "delta_norm answer guarded_answer refused guarded_refused"
).split()


def run(
    config: Config, material: Experiment, reading: GuardConfiguration, answers: Sequence[AnswerRecord]
) -> pd.DataFrame:
    """One row a prompt and reference, of the reported split.

    Args:
        reading: the guard, and whose states it reads. Coordinates are those at its first layer, where nothing has been
            changed before.
        answers: of the defence study, judged.

    Returns:
        Columns `COLUMNS`: `gate` says whether the guard acts, `coordinate` and `after` are those of the last prompt
        token before and after it, `delta_norm` is how far the state moves relative to its length. Verdicts are the
        first judge's.
    """
    said = {(one.setting, one.modality, one.defence, one.about.get("reference"), one.row): one for one in answers}
    modalities, judge = config.sizes.modalities, material.judges[0].name
    frames = []
    with phase("what the guard changed", len(modalities)) as report:
        for modality in modalities:
            is_written = modality in TYPOGRAPHIC
            setting = "multimodal" if is_written else "plain"
            n = len(material.prompts(config.split, modality))
            plain = _answers(said, (setting, modality, "unguarded", None), judge, n)
            for reference in ("prompt_text", "transcription") if is_written else ("prompt_text",):
                found = _states(material, reading, modality, reference)
                guarded = _answers(said, (setting, modality, "guard", reference), judge, n)
                guarded = guarded.rename(columns={"answer": "guarded_answer", "refused": "guarded_refused"})
                about = {"setting": setting, "modality": modality, "reference": reference}
                frames.append(pd.concat([found.assign(**about), plain, guarded], axis=1))
            report(1)
    table = pd.concat(frames, ignore_index=True)
    return table.assign(model=material.labels["model"], split=config.split)[COLUMNS]


def _answers(said: dict, kind: tuple, judge: str, n: int) -> pd.DataFrame:
    """In the order of the prompts.

    Raises:
        LookupError: an answer is missing.
    """
    missing = [row for row in map(str, range(n)) if (*kind, row) not in said]
    if missing:
        raise LookupError(f"{len(missing)} of {n} answers of {kind} are missing, the first of row {missing[0]}")
    rows = [said[*kind, str(row)] for row in range(n)]
    return pd.DataFrame({"answer": [r.answer for r in rows], "refused": [r.verdicts[judge]["refused"] for r in rows]})


def _states(material: Experiment, reading: GuardConfiguration, modality: str, reference: str) -> pd.DataFrame:
    """What the guard finds at its first layer, and what it makes of it."""
    guard, layer = reading.guard, reading.guard.layers[0]
    prompts = material.prompts(material.config.split, modality)
    traced = material.activations(material.config.split, modality)
    resid = torch.from_numpy(traced.resid_post.sel(layer=layer, token="last").values)
    texts = material.asker.read(prompts, reference)
    references = material.asker.states(texts, reading.source)
    is_open = guard.opens(references)
    mask = torch.full((len(prompts), 1), guard.positions != "generated")
    known = references[:, layer] if guard.needs_reference else None
    after = guard.change(resid[:, None], layer, known, mask, is_open)[:, 0]
    basis = guard.basis(layer)
    first = {
        name: coordinates(states.float(), basis)[:, 0].numpy()
        for name, states in (
            ("coordinate", resid),
            ("reference_coordinate", references[:, layer]),
            ("after", after),
        )
    }
    moved = ((after - resid).float().norm(dim=-1) / resid.float().norm(dim=-1)).numpy()
    queries = [prompt.query for prompt in prompts]
    return pd.DataFrame(
        {
            "harmful": [query.harmful for query in queries],
            "pair": [query.pair for query in queries],
            "text": [query.text for query in queries],
            "layer": np.full(len(prompts), layer),
            **first,
            "gate": is_open.numpy(),
            "delta_norm": moved,
        }
    )
