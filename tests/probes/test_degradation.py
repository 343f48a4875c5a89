import numpy as np
import pytest
from scipy.stats import norm

from probes import auroc_drop, cosine, drop_p_values, modality_gap

LABELS = np.tile([True, False], 100)
PAIRS = np.repeat(np.arange(100), 2)


def two_modalities(rng, text, other, n_layers=4):
    """Scores of the same queries, with noise of the query in common; the drop is planted in the last layer alone."""
    of_query = rng.normal(size=200)
    aurocs = {"text": [text] * n_layers, "other": [text] * (n_layers - 1) + [other]}
    return [
        np.stack(
            [0.6 * of_query + 0.8 * rng.normal(size=200) + np.sqrt(2) * norm.ppf(a) * LABELS for a in aurocs[name]]
        )
        for name in aurocs
    ]


def test_the_planted_drop_is_recovered_where_it_is_and_nowhere_else():
    text, other = two_modalities(np.random.default_rng(0), 0.9, 0.65)
    found = [auroc_drop(LABELS, *layer, PAIRS) for layer in zip(text, other, strict=True)]
    assert found[-1].low <= 0.25 <= found[-1].high and found[-1].low > 0
    assert all(abs(one.value) < 0.1 for one in found[:-1])
    p_values = drop_p_values(LABELS, text, other, PAIRS, n_draws=200)
    assert p_values[-1] == 1 / 201 and (p_values[:-1] > 0.05).all()


def test_no_drop_is_called_one_as_often_as_stated_over_all_layers():
    rng, n_simulated, called = np.random.default_rng(0), 200, 0
    for seed in range(n_simulated):
        text, other = two_modalities(rng, 0.8, 0.8)
        called += drop_p_values(LABELS, text, other, PAIRS, n_draws=99, seed=seed).min() <= 0.05
    # 5 % of 200, and three standard errors.
    assert 0.005 <= called / n_simulated <= 0.1


def test_scores_of_another_scale_are_no_drop():
    rng = np.random.default_rng(0)
    text, _ = two_modalities(rng, 0.8, 0.8)
    assert (drop_p_values(LABELS, text, 100 * text - 7, PAIRS, n_draws=50) == 1).all()


def test_a_p_value_over_many_layers_is_larger_than_over_one():
    text, other = two_modalities(np.random.default_rng(1), 0.85, 0.78, n_layers=8)
    alone = drop_p_values(LABELS, text[-1:], other[-1:], PAIRS, n_draws=500)[0]
    assert alone < drop_p_values(LABELS, text, other, PAIRS, n_draws=500)[-1]


def test_the_modality_gap_is_the_planted_distance_of_centroids():
    rng = np.random.default_rng(0)
    text, other = (rng.normal(size=(200, 16)) * 0.1 for _ in range(2))
    text[:, 0] += 5
    other[:, 1] += 3
    found = modality_gap(text, other, PAIRS)
    units = [states / np.linalg.norm(states, axis=1, keepdims=True) for states in (text, other)]
    assert found.value == pytest.approx(np.linalg.norm(units[0].mean(0) - units[1].mean(0)))
    assert found.value == pytest.approx(np.sqrt(2), abs=0.01) and found.low < found.value < found.high
    assert modality_gap(text, 3 * text, PAIRS).value == pytest.approx(0, abs=1e-12)


def test_the_cosine_of_nothing_is_no_number():
    assert cosine(np.array([3.0, 4.0]), np.array([6.0, 8.0])) == pytest.approx(1)
    assert np.isnan(cosine(np.zeros(2), np.ones(2)))
