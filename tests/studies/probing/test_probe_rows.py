"""Planted truth: what is put into synthetic states is what the table says, and controls expose what is no harm."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from interp import to_prompts, trace
from interp.activations import StoreError
from studies.bookkeeping import checkpoints
from studies.bookkeeping.tables import tidy
from studies.probing.rows import probe_rows, summary_lines
from studies.probing.states import FILLER, ProbeData, ProbeError, ProbeSettings, of_store

N_PAIRS, D = 60, 12
EXTENT = ProbeSettings(n_shuffles=1, n_tasks=1, n_swaps=100)
VERBS = [f"verb{i // 2 % 10}" for i in range(2 * N_PAIRS)]


def dataset(resid, texts=None, sites=("resid_post",), tokens=("last",), categories=None):
    """`prompt layer d_model` at every site and token."""
    n = len(resid)
    harmful = np.tile([True, False], n // 2)
    values = np.repeat(resid[:, :, None], len(tokens), axis=2)
    coords = {
        "harmful": ("prompt", harmful),
        "pair": ("prompt", np.repeat([f"p{i}" for i in range(n // 2)], 2)),
        "category": ("prompt", categories or ["a", "a", "b", "b"] * (n // 4)),
        "text": ("prompt", texts or [f"{VERBS[i]} thing{i // 2 * 37 % 97} now" for i in range(n)]),
        "layer": np.arange(resid.shape[1]),
        "token": list(tokens),
    }
    return xr.Dataset({site: (("prompt", "layer", "token", "d_model"), values) for site in sites}, coords=coords)


def planted(rng, strengths, axis=0):
    """Noise, with harm along an axis, so strong at each layer."""
    resid = rng.normal(size=(2 * N_PAIRS, len(strengths), D)).astype(np.float32)
    harmful = np.tile([True, False], N_PAIRS)
    for layer, strength in enumerate(strengths):
        resid[harmful, layer, axis] += strength
    return resid


def probed(states, extent=EXTENT, **more):
    return ProbeData({name: dataset(one) for name, one in states.items()}, extent, **more)


def rows(one, folder):
    return tidy(probe_rows(one, folder, {}))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Layer 0 says nothing; at layer 1 text is strong and blank weak; at layer 2 harm turns into another axis."""
    rng = np.random.default_rng(0)
    text, blank = planted(rng, (0, 3, 3)), planted(rng, (0, 0.7, 0))
    blank[:, 2] = planted(rng, (3,), axis=1)[:, 0]
    blank[:, :, 5] += 8
    filler = planted(rng, (0, 3, 3))
    return rows(probed({"text": text, "blank": blank, FILLER: filler}, verbs=VERBS), tmp_path_factory.mktemp("probes"))


def one(table, **where):
    for column, value in where.items():
        table = table[table[column].isna() if value is None else table[column] == value]
    assert len(table) == 1, table
    return table.iloc[0]


def within(table, layer, modality, metric="auroc", control=None):
    about = {"setting": "folds", "probe": "logistic", "fit_modality": modality, "modality": modality}
    return one(table, **about, layer=layer, metric=metric, control=control)


def test_each_modality_has_the_separability_that_was_planted(table):
    assert within(table, 0, "text").ci_low < 0.5 < within(table, 0, "text").ci_high
    assert within(table, 1, "text").value > 0.9 and 0.55 < within(table, 1, "blank").value < 0.8
    assert within(table, 2, "blank").value > 0.95
    assert within(table, 1, "text", "d_prime").value > 2


def test_the_drop_is_found_at_the_layer_where_it_is(table):
    drop = {layer: one(table, metric="auroc_drop", layer=layer, modality="blank") for layer in range(3)}
    p_value = {layer: one(table, metric="auroc_drop_p", layer=layer, modality="blank").value for layer in range(3)}
    assert drop[1].ci_low > 0.1 and p_value[1] < 0.02
    assert drop[2].ci_low < 0.02 and p_value[0] > 0.05 and p_value[2] > 0.05


def test_a_probe_does_not_carry_over_to_an_axis_that_it_has_not_seen(table):
    carried = one(table, setting="folds", fit_modality="text", modality="blank", layer=2, metric="auroc")
    assert carried.value < 0.7
    cosines = (
        table[(table.metric == "weight_cosine") & (table.layer == 2)].set_index(["fit_modality", "modality"]).value
    )
    assert cosines["text", "text"] > 0.7 and abs(cosines["text", "blank"]) < 0.4


def test_the_gap_between_modalities_is_there_and_says_nothing_about_harm(table):
    assert one(table, metric="modality_gap", layer=0, modality="blank").ci_low > 0.5
    assert within(table, 0, "blank").ci_low < 0.5


def test_controls_stay_at_chance_and_the_filler_is_a_control_of_text(table):
    for layer in (1, 2):
        assert abs(within(table, layer, "text", control="shuffled_labels").value - 0.5) < 0.15
        assert within(table, layer, "text", "selectivity", control="verb_labels").value > 0.2
    filler = within(table, 1, "text", control=FILLER)
    assert filler.value > 0.95 and FILLER not in set(table.modality)
    assert one(table, metric="auroc_drop", layer=1, control=FILLER).ci_low < 0.02


def test_words_say_where_the_probe_does_not_beat_its_baselines(table):
    told = {line.split(":")[0]: line for line in summary_lines(table)}
    assert "does not beat length, first last token, bag of words, random features at layer 0" in told["text"]
    assert "at layers" not in told["text"] and "at layers" not in told["blank"]


def test_a_confound_is_exposed(tmp_path):
    """States that know one word, which only harmful queries have, and nothing else."""
    rng = np.random.default_rng(0)
    texts = [f"do {'zap' if i % 2 == 0 else 'hug'} it {i // 2}" for i in range(2 * N_PAIRS)]
    states = dataset(planted(rng, (2.5,)), texts)
    found = rows(ProbeData({"text": states}, EXTENT), tmp_path)
    assert within(found, 0, "text").value > 0.9
    gain = within(found, 0, "text", "auroc_gain", control="bag_of_words")
    assert gain.ci_low <= 0 and "does not beat bag of words at layer 0" in summary_lines(found)[0]


def test_nothing_is_called_nothing(tmp_path):
    """Six layers of noise: intervals leave 0.5 out about as often as they say, and no drop is found."""
    rng = np.random.default_rng(1)
    found = rows(probed({name: planted(rng, (0,) * 6) for name in ("text", "blank")}), tmp_path)
    own = found[(found.metric == "auroc") & (found.fit_modality == found.modality) & found.control.isna()]
    own = own[own.layer.notna()]
    assert len(own) == 12 and ((own.ci_low <= 0.5) & (own.ci_high >= 0.5)).sum() >= 10
    assert found[found.metric == "auroc_drop_p"].value.min() > 0.05


def test_anchors_and_categories_have_settings_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    extent = replace(EXTENT, by_category=True, probes=("logistic", "ridge"), sites=("resid_post", "mlp_out"))
    states = {name: dataset(planted(rng, (2,)), sites=extent.sites) for name in ("text", "blank")}
    found = rows(ProbeData(states, extent, anchors=dataset(planted(rng, (2,)), sites=extent.sites)), tmp_path)
    assert set(found.setting.dropna()) == {"folds", "category", "anchors", "halves"}
    assert set(found[found.site == "mlp_out"].probe) == {"logistic"}
    assert {"logistic", "ridge"} <= set(found[found.site == "resid_post"].probe)
    carried = found[(found.setting == "anchors") & (found.metric == "auroc")]
    assert set(carried.modality) == {"text", "blank"} and carried.value.min() > 0.8


def test_processes_side_by_side_find_the_same_as_one(tmp_path, monkeypatch):
    states = {name: planted(np.random.default_rng(0), (0, 2)) for name in ("text", "blank")}
    found = []
    for few in (0, 10**9):
        monkeypatch.setattr(rows, "FEW_FITS", few)
        found.append(rows(probed(states), tmp_path / str(few)))
    pd.testing.assert_frame_equal(*found)


def test_what_is_finished_is_not_fitted_again_and_what_is_damaged_is(tmp_path, monkeypatch):
    states = {name: planted(np.random.default_rng(0), (0, 2)) for name in ("text", "blank")}
    before, fitted, fit = rows(probed(states), tmp_path), [], rows._fit
    kept = sorted(tmp_path.rglob("*.safetensors"))
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:-40])
    monkeypatch.setattr(rows, "_fit", lambda key, *given: fitted.append(key) or fit(key, *given))
    pd.testing.assert_frame_equal(rows(probed(states), tmp_path), before)
    assert len(fitted) == 1
    rows(probed(states, seed=1), tmp_path)
    assert len(fitted) == 3


def test_a_picture_that_is_the_same_for_all_says_nothing_and_is_left_out(tmp_path):
    """Picture tokens come before the request: beside one picture they are alike, and text has none."""
    tokens, rng = ("last", "image_mean"), np.random.default_rng(0)
    extent = replace(EXTENT, tokens=tokens)
    states = {name: dataset(planted(rng, (2,)), tokens=tokens) for name in ("text", "blank", "scene")}
    states["text"].resid_post.values[:, :, 1] = np.nan
    states["blank"].resid_post.values[:, :, 1] = 1.5
    found = rows(ProbeData(states, extent), tmp_path)
    assert set(found[found.token == "image_mean"].modality) == {"scene"}


def test_states_that_are_no_numbers_are_named_before_anything_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_fit", None)
    text = planted(np.random.default_rng(0), (0, 2))
    text[3, 1, 2] = np.inf
    with pytest.raises(
        ProbeError, match=r"1 of 120 states of modality text \(resid_post, token last, layer 1\) are not finite: .*verb"
    ):
        rows(probed({"text": text}), tmp_path)
    flat = np.ones_like(text)
    with pytest.raises(ProbeError, match="states of modality text .* are the same for all 120 prompts"):
        rows(probed({"text": flat}), tmp_path)


def test_bad_extents_and_unfitting_states_are_named():
    text = planted(np.random.default_rng(0), (0, 2))
    with pytest.raises(ProbeError, match="site.*lobe"):
        replace(EXTENT, sites=("lobe",))
    with pytest.raises(ProbeError, match="probes none"):
        replace(EXTENT, probes=())
    with pytest.raises(ProbeError, match="1 folds"):
        replace(EXTENT, n_folds=1)
    with pytest.raises(ProbeError, match=r"layers \[7\] do not exist"):
        probed({"text": text}, replace(EXTENT, layers=(7,)))
    with pytest.raises(ProbeError, match="attn_out of modality text was not traced"):
        probed({"text": text}, replace(EXTENT, sites=("attn_out",)))
    with pytest.raises(ProbeError, match="60 pairs can't be divided into 61 folds"):
        probed({"text": text}, replace(EXTENT, n_folds=61))
    with pytest.raises(ProbeError, match="modality blank has other queries than text"):
        ProbeData({"text": dataset(text), "blank": dataset(text, ["other"] * 120)}, EXTENT)
    with pytest.raises(ProbeError, match="all queries are of category 'a'"):
        ProbeData({"text": dataset(text, categories=["a"] * 120)}, replace(EXTENT, by_category=True))


def test_a_store_is_probed_without_the_model_and_says_what_it_lacks(tiny_vlm, queries, tmp_path):
    many = [
        replace(query, text=f"{query.text[:-1]} {i}?", pair=f"{query.pair}{i}", split="test")
        for i in range(5)
        for query in queries
    ]
    prompts = [prompt for name in ("text", "blank") for prompt in to_prompts(many, name, tiny_vlm.picture_size)]
    trace(tiny_vlm, prompts, out=tmp_path / "store")
    extent = replace(EXTENT, n_shuffles=1, n_tasks=0, n_folds=3)
    found = rows(of_store(tmp_path / "store", extent, split="test"), tmp_path / "out")
    assert set(found.modality) == {"text", "blank"} and set(found.layer.dropna()) == {0, 1, 2}
    with pytest.raises(ProbeError, match="holds no scene; its modalities are text, blank"):
        of_store(tmp_path / "store", extent, ["scene"], "test")
    with pytest.raises(ProbeError, match="has no split 'train'; give one of 'test'"):
        of_store(tmp_path / "store", extent, split="train")
    with pytest.raises(StoreError):
        of_store(tmp_path / "nowhere", extent)


def test_bad_anchors_are_named_before_anything_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_fit", None)
    rng = np.random.default_rng(0)
    anchors = dataset(planted(rng, (2,)))
    anchors.resid_post.values[5] = np.nan
    with pytest.raises(ProbeError, match="1 of 120 states of the anchors"):
        rows(ProbeData({"text": dataset(planted(rng, (2,)))}, EXTENT, anchors=anchors), tmp_path)


def test_the_same_text_twice_is_not_divided_between_folds(tmp_path):
    """Noise that a probe could learn by heart."""
    rng = np.random.default_rng(0)
    noise = np.repeat(rng.normal(size=(60, 1, D)).astype(np.float32), 2, axis=0)
    states = dataset(noise, [f"say {i // 2}" for i in range(120)])
    states = states.assign_coords(
        harmful=("prompt", np.repeat(rng.permutation([True, False] * 30), 2)), pair=("prompt", [""] * 120)
    )
    found = within(rows(ProbeData({"text": states}, EXTENT), tmp_path), 0, "text")
    assert found.ci_low < 0.5 < found.ci_high


def test_noise_does_not_beat_words_that_are_worse_than_chance(tmp_path):
    """Crossed words are anti-learned out of fold: nothing to be proud of."""
    rng = np.random.default_rng(0)
    words = [f"w{i // 4}" for i in range(120)]
    found = rows(ProbeData({"text": dataset(planted(rng, (0,)), words)}, EXTENT), tmp_path)
    assert within(found, 0, "text", "auroc_gain", control="bag_of_words").ci_low <= 0


def test_a_modality_that_is_silent_at_one_layer_is_left_out_at_all(tmp_path):
    tokens, rng = ("last", "image_mean"), np.random.default_rng(0)
    states = {name: dataset(planted(rng, (2, 2)), tokens=tokens) for name in ("blank", "scene")}
    states["blank"].resid_post.values[:, 1, 1] = 1.5
    found = rows(ProbeData(states, replace(EXTENT, tokens=tokens)), tmp_path)
    assert set(found[found.token == "image_mean"].modality) == {"scene"}


def test_other_verbs_are_another_question(tmp_path):
    states = {"text": planted(np.random.default_rng(0), (2,))}
    first = rows(probed(states, verbs=VERBS), tmp_path)
    other = rows(probed(states, verbs=VERBS[::-1]), tmp_path)
    fresh = rows(probed(states, verbs=VERBS[::-1]), tmp_path / "fresh")
    pd.testing.assert_frame_equal(other, fresh)
    assert not first.equals(other)


def test_lda_is_left_out_where_it_would_take_hours(monkeypatch, capsys):
    monkeypatch.setattr("studies.probing.states.WIDEST_LDA", 8)
    states = {"text": planted(np.random.default_rng(0), (2,))}
    assert probed(states, replace(EXTENT, probes=("logistic", "lda"))).extent.probes == ("logistic",)
    assert "lda is left out: it inverts 12 x 12" in capsys.readouterr().err
    with pytest.raises(ProbeError, match="ask for another probe"):
        probed(states, replace(EXTENT, probes=("lda",)))


def test_words_are_of_the_reported_split_alone(tmp_path):
    rng = np.random.default_rng(0)
    weak, strong = (rows(probed({"text": planted(rng, (size,))}), tmp_path / str(size)) for size in (0, 4))
    both = pd.concat([weak.assign(split="test"), strong.assign(split="train")])
    assert summary_lines(both) == summary_lines(weak.assign(split="test"))


def test_pieces_of_another_question_are_not_taken(tmp_path):
    mine, other = (checkpoints.Checkpoints(tmp_path, {"seed": seed}) for seed in (0, 1))
    mine.write("a", {"x": np.arange(3)})
    assert other.read("a") is None and mine.read("a")["x"].tolist() == [0, 1, 2]
    assert not list(mine.folder.glob(".*"))
