"""Planted truth: the table reports what was put into synthetic states, and controls expose what is not harm."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from interp import to_prompts, trace
from interp.activations import StoreError
from studies.bookkeeping.checkpoints import Checkpoints
from studies.bookkeeping.tables import tidy
from studies.probing import rows
from studies.probing.rows import probe_rows
from studies.probing.settings import ProbeError, ProbeSettings
from studies.probing.states import FILLER, ProbeData, load_probe_data
from studies.probing.summary import summary_lines

N_PAIRS, D = 60, 12
SETTINGS = ProbeSettings(n_shuffles=1, n_tasks=1, n_swaps=100)
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
    """Noise, with harm along an axis, of a given strength at each layer."""
    resid = rng.normal(size=(2 * N_PAIRS, len(strengths), D)).astype(np.float32)
    harmful = np.tile([True, False], N_PAIRS)
    for layer, strength in enumerate(strengths):
        resid[harmful, layer, axis] += strength
    return resid


def data_of(states, settings=SETTINGS, **kwargs):
    return ProbeData({name: dataset(resid) for name, resid in states.items()}, settings, **kwargs)


def table_of(data, folder):
    return tidy(probe_rows(data, folder, {}))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """No signal at layer 0; strong in text and weak in blank at layer 1; along another axis in blank at layer 2."""
    rng = np.random.default_rng(0)
    text, blank = planted(rng, (0, 3, 3)), planted(rng, (0, 0.7, 0))
    blank[:, 2] = planted(rng, (3,), axis=1)[:, 0]
    blank[:, :, 5] += 8
    filler = planted(rng, (0, 3, 3))
    return table_of(
        data_of({"text": text, "blank": blank, FILLER: filler}, verbs=VERBS), tmp_path_factory.mktemp("probes")
    )


def only_row(table, **columns):
    for column, value in columns.items():
        table = table[table[column].isna() if value is None else table[column] == value]
    assert len(table) == 1, table
    return table.iloc[0]


def within(table, layer, modality, metric="auroc", control=None):
    labels = {"setting": "folds", "probe": "logistic", "fit_modality": modality, "modality": modality}
    return only_row(table, **labels, layer=layer, metric=metric, control=control)


def test_each_modality_has_the_separability_that_was_planted(table):
    assert within(table, 0, "text").ci_low < 0.5 < within(table, 0, "text").ci_high
    assert within(table, 1, "text").value > 0.9 and 0.55 < within(table, 1, "blank").value < 0.8
    assert within(table, 2, "blank").value > 0.95
    assert within(table, 1, "text", "d_prime").value > 2


def test_the_drop_is_detected_at_its_layer(table):
    drop = {layer: only_row(table, metric="auroc_drop", layer=layer, modality="blank") for layer in range(3)}
    p_value = {layer: only_row(table, metric="auroc_drop_p", layer=layer, modality="blank").value for layer in range(3)}
    assert drop[1].ci_low > 0.1 and p_value[1] < 0.02
    assert drop[2].ci_low < 0.02 and p_value[0] > 0.05 and p_value[2] > 0.05


def test_a_probe_does_not_transfer_to_an_axis_that_it_has_not_seen(table):
    transferred = only_row(table, setting="folds", fit_modality="text", modality="blank", layer=2, metric="auroc")
    assert transferred.value < 0.7
    cosines = (
        table[(table.metric == "weight_cosine") & (table.layer == 2)].set_index(["fit_modality", "modality"]).value
    )
    assert cosines["text", "text"] > 0.7 and abs(cosines["text", "blank"]) < 0.4


def test_a_gap_between_modalities_says_nothing_about_harm(table):
    assert only_row(table, metric="modality_gap", layer=0, modality="blank").ci_low > 0.5
    assert within(table, 0, "blank").ci_low < 0.5


def test_controls_stay_at_chance_and_the_filler_is_a_control_of_text(table):
    for layer in (1, 2):
        assert abs(within(table, layer, "text", control="shuffled_labels").value - 0.5) < 0.15
        selectivity = within(table, layer, "text", "selectivity", control="verb_labels")
        assert selectivity.value > 0.2 and selectivity.interval.endswith("; remembering reaches 1.00 of the task")
        assert within(table, layer, "text", "control_ceiling", control="verb_labels").value == 1.0
    filler = within(table, 1, "text", control=FILLER)
    assert filler.value > 0.95 and FILLER not in set(table.modality)
    assert only_row(table, metric="auroc_drop", layer=1, control=FILLER).ci_low < 0.02


def test_the_summary_says_where_the_probe_does_not_beat_its_baselines(table):
    summary = {line.split(":")[0]: line for line in summary_lines(table)}
    assert "does not beat length, first last token, bag of words, random features at layer 0" in summary["text"]
    assert "at layers" not in summary["text"] and "at layers" not in summary["blank"]


def test_a_confound_is_exposed(tmp_path):
    """States that encode one word, which only harmful queries contain, and nothing else."""
    rng = np.random.default_rng(0)
    texts = [f"do {'zap' if i % 2 == 0 else 'hug'} it {i // 2}" for i in range(2 * N_PAIRS)]
    states = dataset(planted(rng, (2.5,)), texts)
    table = table_of(ProbeData({"text": states}, SETTINGS), tmp_path)
    assert within(table, 0, "text").value > 0.9
    gain = within(table, 0, "text", "auroc_gain", control="bag_of_words")
    assert gain.ci_low <= 0 and "does not beat bag of words at layer 0" in summary_lines(table)[0]


def test_noise_is_not_reported_as_a_signal(tmp_path):
    """Six layers of noise: intervals miss 0.5 about as often as they should, and no drop is significant."""
    rng = np.random.default_rng(1)
    table = table_of(data_of({name: planted(rng, (0,) * 6) for name in ("text", "blank")}), tmp_path)
    own = table[(table.metric == "auroc") & (table.fit_modality == table.modality) & table.control.isna()]
    own = own[own.layer.notna()]
    assert len(own) == 12 and ((own.ci_low <= 0.5) & (own.ci_high >= 0.5)).sum() >= 10
    assert table[table.metric == "auroc_drop_p"].value.min() > 0.05


def test_anchors_and_categories_have_their_own_settings(tmp_path):
    rng = np.random.default_rng(0)
    settings = replace(SETTINGS, by_category=True, probes=("logistic", "ridge"), sites=("resid_post", "mlp_out"))
    states = {name: dataset(planted(rng, (2,)), sites=settings.sites) for name in ("text", "blank")}
    table = table_of(ProbeData(states, settings, anchors=dataset(planted(rng, (2,)), sites=settings.sites)), tmp_path)
    assert set(table.setting.dropna()) == {"folds", "category", "anchors", "halves"}
    assert set(table[table.site == "mlp_out"].probe) == {"logistic"}
    assert {"logistic", "ridge"} <= set(table[table.site == "resid_post"].probe)
    transferred = table[(table.setting == "anchors") & (table.metric == "auroc")]
    assert set(transferred.modality) == {"text", "blank"} and transferred.value.min() > 0.8


def test_parallel_processes_give_the_same_table_as_one(tmp_path, monkeypatch):
    states = {name: planted(np.random.default_rng(0), (0, 2)) for name in ("text", "blank")}
    tables = []
    for few in (0, 10**9):
        monkeypatch.setattr(rows, "FEW_FITS", few)
        tables.append(table_of(data_of(states), tmp_path / str(few)))
    pd.testing.assert_frame_equal(*tables)


def test_finished_fits_are_not_repeated_and_damaged_ones_are(tmp_path, monkeypatch):
    states = {name: planted(np.random.default_rng(0), (0, 2)) for name in ("text", "blank")}
    before, fitted, fit = table_of(data_of(states), tmp_path), [], rows._fit
    saved = sorted(tmp_path.rglob("*.safetensors"))
    assert len(saved) == 2
    saved[0].write_bytes(saved[0].read_bytes()[:-40])
    monkeypatch.setattr(rows, "_fit", lambda key, *args: fitted.append(key) or fit(key, *args))
    pd.testing.assert_frame_equal(table_of(data_of(states), tmp_path), before)
    assert len(fitted) == 1
    table_of(data_of(states, seed=1), tmp_path)
    assert len(fitted) == 3


def test_a_picture_shared_by_all_prompts_is_uninformative_and_left_out(tmp_path):
    """Picture tokens come before the request: with one shared picture they are all equal, and text has none."""
    tokens, rng = ("last", "image_mean"), np.random.default_rng(0)
    settings = replace(SETTINGS, tokens=tokens)
    states = {name: dataset(planted(rng, (2,)), tokens=tokens) for name in ("text", "blank", "scene")}
    states["text"].resid_post.values[:, :, 1] = np.nan
    states["blank"].resid_post.values[:, :, 1] = 1.5
    table = table_of(ProbeData(states, settings), tmp_path)
    assert set(table[table.token == "image_mean"].modality) == {"scene"}


def test_states_that_are_not_finite_are_named_before_anything_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_fit", None)
    text = planted(np.random.default_rng(0), (0, 2))
    text[3, 1, 2] = np.inf
    with pytest.raises(
        ProbeError, match=r"1 of 120 states of modality text \(resid_post, token last, layer 1\) are not finite: .*verb"
    ):
        table_of(data_of({"text": text}), tmp_path)
    flat = np.ones_like(text)
    with pytest.raises(ProbeError, match="states of modality text .* are the same for all 120 prompts"):
        table_of(data_of({"text": flat}), tmp_path)


def test_a_place_where_all_states_are_the_same_is_a_row_that_says_so(tmp_path):
    """One modality can be so in an early layer in bfloat16; all else is measured, and drops over the other layers."""
    rng = np.random.default_rng(0)
    text, blank = planted(rng, (2, 2, 2)), planted(rng, (2, 2, 2))
    # One prompt differs, and is missing in one of the training folds.
    blank[1:, 1] = 1.5
    table = table_of(data_of({"text": text, "blank": blank}, anchors=dataset(planted(rng, (2, 2, 2)))), tmp_path)
    at_1 = table[(table.layer == 1) & (table.modality == "blank")]
    (row,) = at_1[at_1.metric == "auroc"].to_dict("records")
    assert np.isnan(row["value"]) and row["n"] == 120 and row["interval"].startswith("not measurable")
    assert set(at_1.metric) == {"auroc"}
    drops = table[(table.metric == "auroc_drop") & (table.setting == "folds")]
    assert sorted(drops.layer) == [0, 2]
    assert {"auroc_drop_p", "accuracy", "auroc_gain"} <= set(table[table.layer == 0].metric)
    whole = table_of(data_of({"text": text[:, [0, 2]], "blank": blank[:, [0, 2]]}), tmp_path / "whole")
    for metric in ("auroc", "auroc_drop", "auroc_drop_p"):
        ours, theirs = (
            rows[(rows.setting == "folds") & (rows.metric == metric) & (rows.modality == "blank")].value.dropna()
            for rows in (table, whole)
        )
        assert len(ours) and ours.tolist() == theirs.tolist()
    assert summary_lines(table)


def test_states_with_a_massive_dimension_are_not_taken_for_constant(tmp_path):
    text = planted(np.random.default_rng(0), (3,))
    text[:, :, 5] = 1e6
    assert within(table_of(data_of({"text": text}), tmp_path), 0, "text", "auroc").value > 0.9


def test_bad_settings_and_states_that_do_not_match_are_named():
    text = planted(np.random.default_rng(0), (0, 2))
    with pytest.raises(ProbeError, match="site.*lobe"):
        replace(SETTINGS, sites=("lobe",))
    with pytest.raises(ProbeError, match="probes none"):
        replace(SETTINGS, probes=())
    with pytest.raises(ProbeError, match="1 folds"):
        replace(SETTINGS, n_folds=1)
    with pytest.raises(ProbeError, match=r"layers \[7\] do not exist"):
        data_of({"text": text}, replace(SETTINGS, layers=(7,)))
    with pytest.raises(ProbeError, match="attn_out of modality text was not traced"):
        data_of({"text": text}, replace(SETTINGS, sites=("attn_out",)))
    with pytest.raises(ProbeError, match="60 pairs can't be divided into 61 folds"):
        data_of({"text": text}, replace(SETTINGS, n_folds=61))
    with pytest.raises(ProbeError, match="modality blank has other queries than text"):
        ProbeData({"text": dataset(text), "blank": dataset(text, ["other"] * 120)}, SETTINGS)
    with pytest.raises(ProbeError, match="all queries are of category 'a'"):
        ProbeData({"text": dataset(text, categories=["a"] * 120)}, replace(SETTINGS, by_category=True))


def test_a_store_is_probed_without_the_model_and_errors_name_what_it_lacks(tiny_vlm, queries, tmp_path):
    repeated = [
        replace(query, text=f"{query.text[:-1]} {i}?", pair=f"{query.pair}{i}", split="test")
        for i in range(5)
        for query in queries
    ]
    prompts = [prompt for name in ("text", "blank") for prompt in to_prompts(repeated, name, tiny_vlm.picture_size)]
    trace(tiny_vlm, prompts, out=tmp_path / "store")
    settings = replace(SETTINGS, n_shuffles=1, n_tasks=0, n_folds=3)
    table = table_of(load_probe_data(tmp_path / "store", settings, split="test"), tmp_path / "out")
    assert set(table.modality) == {"text", "blank"} and set(table.layer.dropna()) == {0, 1, 2}
    with pytest.raises(ProbeError, match="holds no scene; its modalities are text, blank"):
        load_probe_data(tmp_path / "store", settings, ["scene"], "test")
    with pytest.raises(ProbeError, match="has no split 'train'; give one of 'test'"):
        load_probe_data(tmp_path / "store", settings, split="train")
    with pytest.raises(StoreError):
        load_probe_data(tmp_path / "nowhere", settings)


def test_bad_anchors_are_named_before_anything_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_fit", None)
    rng = np.random.default_rng(0)
    anchors = dataset(planted(rng, (2,)))
    anchors.resid_post.values[5] = np.nan
    with pytest.raises(ProbeError, match="1 of 120 states of the anchors"):
        table_of(ProbeData({"text": dataset(planted(rng, (2,)))}, SETTINGS, anchors=anchors), tmp_path)


def test_repeated_texts_stay_in_one_fold(tmp_path):
    """Noise that a probe could memorize."""
    rng = np.random.default_rng(0)
    noise = np.repeat(rng.normal(size=(60, 1, D)).astype(np.float32), 2, axis=0)
    states = dataset(noise, [f"say {i // 2}" for i in range(120)])
    states = states.assign_coords(
        harmful=("prompt", np.repeat(rng.permutation([True, False] * 30), 2)), pair=("prompt", [""] * 120)
    )
    auroc = within(table_of(ProbeData({"text": states}, SETTINGS), tmp_path), 0, "text")
    assert auroc.ci_low < 0.5 < auroc.ci_high


def test_noise_does_not_beat_words_that_are_worse_than_chance(tmp_path):
    """Words that are balanced over classes score below chance out of fold, which is no baseline to beat."""
    rng = np.random.default_rng(0)
    words = [f"w{i // 4}" for i in range(120)]
    table = table_of(ProbeData({"text": dataset(planted(rng, (0,)), words)}, SETTINGS), tmp_path)
    assert within(table, 0, "text", "auroc_gain", control="bag_of_words").ci_low <= 0


def test_a_modality_that_is_uninformative_at_one_layer_is_left_out_at_all_layers(tmp_path):
    tokens, rng = ("last", "image_mean"), np.random.default_rng(0)
    states = {name: dataset(planted(rng, (2, 2)), tokens=tokens) for name in ("blank", "scene")}
    states["blank"].resid_post.values[:, 1, 1] = 1.5
    table = table_of(ProbeData(states, replace(SETTINGS, tokens=tokens)), tmp_path)
    assert set(table[table.token == "image_mean"].modality) == {"scene"}


def test_fits_with_other_verbs_are_not_reused(tmp_path):
    states = {"text": planted(np.random.default_rng(0), (2,))}
    first = table_of(data_of(states, verbs=VERBS), tmp_path)
    other = table_of(data_of(states, verbs=VERBS[::-1]), tmp_path)
    fresh = table_of(data_of(states, verbs=VERBS[::-1]), tmp_path / "fresh")
    pd.testing.assert_frame_equal(other, fresh)
    assert not first.equals(other)


def test_lda_is_left_out_where_it_would_take_hours(monkeypatch, capsys):
    monkeypatch.setattr("studies.probing.settings.WIDEST_LDA", 8)
    states = {"text": planted(np.random.default_rng(0), (2,))}
    assert data_of(states, replace(SETTINGS, probes=("logistic", "lda"))).settings.probes == ("logistic",)
    assert "lda is left out: it inverts a 12 x 12 matrix" in capsys.readouterr().err
    with pytest.raises(ProbeError, match="ask for another probe"):
        data_of(states, replace(SETTINGS, probes=("lda",)))


def test_the_summary_is_about_the_reported_split_alone(tmp_path):
    rng = np.random.default_rng(0)
    weak, strong = (table_of(data_of({"text": planted(rng, (size,))}), tmp_path / str(size)) for size in (0, 4))
    both = pd.concat([weak.assign(split="test"), strong.assign(split="train")])
    assert summary_lines(both) == summary_lines(weak.assign(split="test"))


def test_checkpoints_of_another_computation_are_not_used(tmp_path):
    mine, other = (Checkpoints(tmp_path, {"seed": seed}) for seed in (0, 1))
    mine.write("a", {"x": np.arange(3)})
    assert other.read("a") is None and mine.read("a")["x"].tolist() == [0, 1, 2]
    assert not list(mine.folder.glob(".*"))
