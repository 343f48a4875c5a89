"""The table of the signal path holds what the lens and the patching measured."""

from dataclasses import replace

import numpy as np
import pytest

from interp.lens import NotInTransformerLens
from studies import signal_path
from studies.experiment.config import Config
from studies.experiment.experiment import load_experiment
from studies.generation.openings import Opening


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return load_experiment(Config(scale="tiny", split="validation", out=str(tmp_path_factory.mktemp("signal"))))


@pytest.fixture(scope="module")
def table(experiment):
    return signal_path.run(experiment.config, experiment)


def rows(table, **columns):
    for column, value in columns.items():
        table = table[table[column] == value]
    return table


def test_contributions_sum_to_a_coordinate_that_separates_the_classes(table):
    written = rows(table, metric="coordinate_written", modality="text")
    gap = {name: rows(written, category=name).value.sum() for name in ("harmful", "harmless")}
    assert gap["harmful"] > 0 and gap["harmful"] > gap["harmless"]
    assert (rows(table, metric="attribution_error").value < 1e-5).all()


def test_text_states_bring_the_refusal_back_at_the_last_token_of_the_last_layer(table, experiment):
    recovered = rows(table, metric="recovered", layer=experiment.vlm.n_layers - 1)
    assert np.allclose(rows(recovered, token="last").value, 1, atol=1e-3)
    assert np.allclose(rows(recovered, token="request").value, 0, atol=1e-3)
    assert set(rows(recovered, modality="typographic").reference) == {"oracle"}
    assert "request" not in set(rows(recovered, modality="typographic").token)


def test_heads_attend_to_pictures_only_if_there_are_any(table):
    attention = rows(table, metric="attention_image")
    assert (rows(attention, modality="text").value == 0).all() and (rows(attention, modality="blank").value > 0).all()


def test_a_family_without_a_bridge_still_gets_the_patching(experiment, monkeypatch, capsys):
    def refuse(vlm):
        raise NotInTransformerLens("Foo is not supported by TransformerLens")

    monkeypatch.setattr(signal_path, "Lens", refuse)
    assert set(signal_path.run(experiment.config, experiment).metric) == {"recovered"}
    assert "attention are left out: Foo is not supported" in capsys.readouterr().err


def test_with_two_token_openings_the_lens_says_that_it_reads_the_single_ones(experiment, table, monkeypatch):
    """Patching scores both tokens; the last state decides the first, and the second is said in view of the picture."""
    single = experiment.refusal_openings
    (i,) = [opening.tokens[0] for opening in single.openings if opening.text == "I"]
    cannot = experiment.vlm.tokenizer(" I cannot", add_special_tokens=False)["input_ids"]
    assert cannot[0] == i
    others = tuple(opening for opening in single.openings if opening.tokens[0] != i)
    for openings, metrics in (
        ((*others, Opening(tuple(cannot))), {"refusal_score_single", "recovered"}),
        ((Opening(tuple(cannot)),), {"recovered"}),
    ):
        monkeypatch.setitem(experiment.__dict__, "refusal_openings", replace(single, openings=openings))
        with_pairs = signal_path.run(experiment.config, experiment)
        assert metrics == set(with_pairs.metric) & {"refusal_score", "refusal_score_single", "recovered"}
        recovered = rows(with_pairs, metric="recovered", layer=experiment.vlm.n_layers - 1, token="last")
        assert np.isfinite(recovered.value).all() and not np.allclose(recovered.value, 1, atol=1e-3)
    assert "refusal_score" in set(table.metric)
