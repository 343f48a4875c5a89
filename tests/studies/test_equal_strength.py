"""Methods at their own best and at equal KL, on the built-in model and two rivals."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import figures
from interp import answer_kl
from studies import equal_strength
from studies.defences.cone import check_cone, read_cone
from studies.defences.related import grids
from studies.experiment.config import Config, ConfigError
from studies.experiment.experiment import load_experiment
from studies.generation.generate import Generation
from studies.guards import runner
from studies.guards.equal_kl import QUANTILE, TOLERANCE

TARGETS = (0.05, 1000.0)
METHODS = ("alpha_steer", "tbop")


@pytest.fixture(scope="module")
def few():
    """Few methods, prompts and tokens; layers and strengths stay the scale's."""

    def few_grids(*args):
        return {name: own for name, own in grids(*args).items() if name in METHODS}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_strength, "grids", few_grids)
        patch.setattr(equal_strength, "N_HARMLESS", 3)
        patch.setattr(equal_strength, "N_TOKENS", 3)
        patch.setattr(equal_strength, "N_STRENGTHS", 2)
        yield patch


@pytest.fixture(scope="module")
def study(tmp_path_factory, few):
    """On validation: the test split is reserved for released results."""
    out, short = str(tmp_path_factory.mktemp("equal")), Generation(max_new_tokens=6)
    config = Config(scale="tiny", split="validation", out=out, generation=short)
    experiment = load_experiment(config)
    return config, experiment, equal_strength.run(config, experiment, TARGETS)


def test_every_method_is_there_at_its_own_best_and_where_it_can_be_matched(study):
    table = study[2].table
    asr = table[(table.metric == "asr") & (table.judge == "exact@1")]
    assert set(asr[asr.setting == "own best"].defence) == {"unguarded", "guard", "guard_always", *METHODS}
    assert set(asr.setting) == {"own best", "0.05 nats"} and set(asr.modality) == {"blank", "typographic"}
    assert "alpha_steer" in set(asr[asr.setting == "0.05 nats"].defence)
    assert {"over_refusal_rate", "coherence", "refusal_score", "kl"} <= set(table.metric)


def test_matched_strengths_have_the_kl_of_their_target(study):
    _, experiment, result = study
    kl = result.table[(result.table.metric == "kl_p95") & (result.table.n > 0)]
    matched = kl[kl.setting == "0.05 nats"]
    assert "alpha_steer" in set(matched.defence) and set(matched.n) == {2 * 3}
    assert (matched.value - 0.05).abs().max() <= TOLERANCE * 0.05
    # The same quantile, measured here.
    guard, parts = result.guards["alpha_steer", "0.05 nats"], []
    for modality in ("blank", "typographic"):
        harmless = [p for p in experiment.prompts("validation", modality) if not p.query.harmful][:3]
        parts.append(answer_kl(experiment.vlm, harmless, [guard], n_tokens=3)[0].flatten())
    expected = np.nanquantile(torch.cat(parts).numpy(), QUANTILE)
    assert matched[matched.defence == "alpha_steer"].value.item() == pytest.approx(expected, rel=1e-3)


def test_targets_that_cannot_be_reached_are_rows_that_say_so(study):
    result = study[2]
    missed = result.table[result.table.tuning.fillna("").str.startswith("not reached: ")]
    assert {("tbop", "1000 nats"), ("guard", "1000 nats")} <= set(zip(missed.defence, missed.setting, strict=True))
    assert missed.tuning.str.contains("at most .* nats at strengths up to").all() and set(missed.n) == {0}
    assert len(result.unreached) == len(missed)
    assert any(line.startswith("tbop can't reach 1000 nats: at most") for line in result.unreached)


def test_a_finished_run_is_read_from_disk(study, few):
    config, experiment, result = study

    def fail(*args, **kwargs):
        raise AssertionError("ran again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_strength, "answer_kl", fail)
        patch.setattr(runner, "run_guards", fail)
        again = equal_strength.run(config, experiment, TARGETS)
    pd.testing.assert_frame_equal(again.table, result.table)


def test_success_is_drawn_against_kl(study):
    # The reported split's own KL is drawn, which here is validation's.
    figure = figures.equal_strength(study[2].table)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ["blank picture", "text in picture"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"unguarded", "TBOP"}
    assert "95th percentile" in figures.caption(figure)
    with pytest.raises(ValueError, match="equal_strength needs the columns"):
        figures.equal_strength(study[2].table.drop(columns="metric"))


@pytest.mark.parametrize("targets", [(), (0.0,), (-1.0,), (float("nan"),), (0.1, 0.1)])
def test_targets_that_make_no_sense_are_refused_before_anything_runs(targets):
    with pytest.raises(ConfigError, match="expected"):
        equal_strength.run(Config(scale="tiny"), None, targets)


def test_cones_are_read_from_safetensors_and_checked(tmp_path, tiny_vlm):
    path, vectors = tmp_path / "cone.safetensors", torch.randn(2, tiny_vlm.d_model)
    save_file({"basis": vectors, "other": torch.zeros(1)}, path)
    assert torch.equal(read_cone(path), vectors)
    check_cone(vectors, tiny_vlm)
    for cone, message in ((vectors[:, 1:], "layers of width"), (torch.ones_like(vectors), "depend on each other")):
        with pytest.raises(ConfigError, match=message):
            check_cone(cone, tiny_vlm)
    save_file({"a": vectors, "b": vectors.clone()}, path)
    with pytest.raises(ConfigError, match="expected one tensor, or one called 'basis'"):
        read_cone(path)
    path.write_text("no tensors")
    with pytest.raises(ConfigError, match="can't be read"):
        read_cone(path)
