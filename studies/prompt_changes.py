"""How did the guard change each prompt? Coordinates before and after, the gate, and both answers.

This is a table of prompts, not of measurements: figures of single prompts are drawn from it, and a reader finds in it
what is behind a rate.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from interp import TYPOGRAPHIC
from interp.projection import coordinates
from studies.bookkeeping.progress import phase
from studies.defences.answer_log import AnswerRecord
from studies.experiment.config import Config
from studies.experiment.experiment import Experiment
from studies.guards.configuration import GuardConfiguration

SETTINGS = PLAIN, MULTIMODAL = ("plain", "multimodal")
COLUMNS = (
    "model split setting modality reference harmful pair text layer coordinate reference_coordinate gate after "
    "delta_norm answer guarded_answer refused guarded_refused"
).split()


def run(
    config: Config, experiment: Experiment, configuration: GuardConfiguration, answers: Sequence[AnswerRecord]
) -> pd.DataFrame:
    """List what the guard changed for every prompt of the reported split.

    Args:
        config: settings of the run.
        experiment: model and queries.
        configuration: the chosen guard. Coordinates are those at its first layer, where nothing has been changed
            before; at several layers, those after it see what the first one has changed.
        answers: judged answers of `studies.defence_comparison`.

    Returns:
        One row per prompt and reference, with the columns `COLUMNS`: `gate` says whether the guard acts at that layer,
        `coordinate` and `after` are those of the last prompt token before and after it, `delta_norm` is how far the
        state moves relative to its length. Verdicts are the first judge's.
    """
    by_prompt = {
        (answer.setting, answer.modality, answer.defence, answer.about.get("reference"), answer.row): answer
        for answer in answers
    }
    modalities, judge = experiment.sizes.modalities, experiment.judges[0].name
    tables = []
    with phase("what the guard changed", len(modalities)) as report:
        for modality in modalities:
            is_written = modality in TYPOGRAPHIC
            setting = MULTIMODAL if is_written else PLAIN
            n = len(experiment.prompts(config.split, modality))
            unguarded = _answer_table(by_prompt, (setting, modality, "unguarded", None), judge, n)
            for reference in ("prompt_text", "transcription") if is_written else ("prompt_text",):
                changes = _change_table(experiment, configuration, modality, reference)
                guarded = _answer_table(by_prompt, (setting, modality, "guard", reference), judge, n)
                guarded = guarded.rename(columns={"answer": "guarded_answer", "refused": "guarded_refused"})
                labels = {"setting": setting, "modality": modality, "reference": reference}
                tables.append(pd.concat([changes.assign(**labels), unguarded, guarded], axis=1))
            report(1)
    table = pd.concat(tables, ignore_index=True)
    return table.assign(model=experiment.labels["model"], split=config.split)[COLUMNS]


def _answer_table(by_prompt: Mapping[tuple, AnswerRecord], condition: tuple, judge: str, n: int) -> pd.DataFrame:
    """Return answers and the judge's verdicts under one condition, in the order of the prompts.

    Raises:
        LookupError: an answer is missing.
    """
    missing = [row for row in map(str, range(n)) if (*condition, row) not in by_prompt]
    if missing:
        raise LookupError(f"{len(missing)} of {n} answers of {condition} are missing, the first of row {missing[0]}")
    answers = [by_prompt[*condition, str(row)] for row in range(n)]
    refused = [answer.verdicts[judge]["refused"] for answer in answers]
    return pd.DataFrame({"answer": [answer.answer for answer in answers], "refused": refused})


def _change_table(
    experiment: Experiment, configuration: GuardConfiguration, modality: str, reference: str
) -> pd.DataFrame:
    """Return the states that the guard reads and writes at its first layer, as coordinates."""
    guard, layer = configuration.guard, configuration.guard.layers[0]
    prompts = experiment.prompts(experiment.config.split, modality)
    traced = experiment.activations(experiment.config.split, modality)
    resid = torch.from_numpy(traced.resid_post.sel(layer=layer, token="last").values)
    texts = experiment.cached_model.reference_texts(prompts, reference)
    references = experiment.cached_model.text_states(texts, configuration.source)
    is_open = guard.opens(references)
    # One position per prompt: its last token, which a guard on generated tokens leaves unchanged.
    mask = torch.full((len(prompts), 1), guard.positions != "generated")
    own_reference = references[:, layer] if guard.needs_reference else None
    after = guard.change(resid[:, None], layer, own_reference, mask, is_open)[:, 0]
    basis = guard.basis(layer)
    by_column = {
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
            **by_column,
            "gate": is_open.numpy(),
            "delta_norm": moved,
        }
    )
