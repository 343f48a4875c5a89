import numpy as np
import pytest
from scipy.stats import norm

from probes import (
    FoldedProbe,
    LogisticProbe,
    accuracy_drop,
    auroc_drop,
    auroc_interval,
    cosine,
    d_prime_drop,
    drop_p_values,
    grouped_folds,
    margin,
    margin_drop,
    modality_gap,
    refit_spread,
)

LABELS = np.tile([True, False], 100)
PAIRS = np.repeat(np.arange(100), 2)


def two_modalities(rng, text, other, n_layers=4):
    """Return scores of the same queries with shared noise per query, and a drop planted in the last layer only."""
    of_query = rng.normal(size=200)
    aurocs = {"text": [text] * n_layers, "other": [text] * (n_layers - 1) + [other]}
    return [
        np.stack(
            [0.6 * of_query + 0.8 * rng.normal(size=200) + np.sqrt(2) * norm.ppf(a) * LABELS for a in aurocs[name]]
        )
        for name in aurocs
    ]


def test_the_planted_drop_is_found_in_its_layer_only():
    text, other = two_modalities(np.random.default_rng(0), 0.9, 0.65)
    drops = [auroc_drop(LABELS, *layer, PAIRS) for layer in zip(text, other, strict=True)]
    assert drops[-1].ci_low <= 0.25 <= drops[-1].ci_high and drops[-1].ci_low > 0
    assert all(abs(drop.value) < 0.1 for drop in drops[:-1])
    p_values = drop_p_values(LABELS, text, other, PAIRS, n_draws=200)
    assert p_values[-1] == 1 / 201 and (p_values[:-1] > 0.05).all()


def test_false_alarms_over_all_layers_are_as_rare_as_stated():
    rng, n_simulated, n_alarms = np.random.default_rng(0), 200, 0
    for seed in range(n_simulated):
        text, other = two_modalities(rng, 0.8, 0.8)
        n_alarms += drop_p_values(LABELS, text, other, PAIRS, n_draws=99, seed=seed).min() <= 0.05
    # 5 % of 200, plus or minus three standard errors.
    assert 0.005 <= n_alarms / n_simulated <= 0.1


def test_a_change_of_scale_is_not_a_drop():
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
    gap = modality_gap(text, other, PAIRS)
    units = [states / np.linalg.norm(states, axis=1, keepdims=True) for states in (text, other)]
    assert gap.value == pytest.approx(np.linalg.norm(units[0].mean(0) - units[1].mean(0)), rel=1e-3)
    assert gap.value == pytest.approx(np.sqrt(2), abs=0.01) and gap.ci_low < gap.value < gap.ci_high
    assert modality_gap(text, 3 * text, PAIRS).value == pytest.approx(0, abs=1e-6)


def states_apart(rng, n, shift):
    """Return states of the same queries twice, with independent noise, and a relative shift along one axis."""
    of_query = rng.normal(size=(n, 256)) + 3
    text, other = (of_query + 0.5 * rng.normal(size=of_query.shape) for _ in range(2))
    other[:, 0] += shift * np.linalg.norm(other, axis=1)
    return text, other


def test_the_interval_of_a_gap_covers_and_no_gap_is_reported_where_there_is_none():
    """The distance of two noisy means is never 0; value and interval account for that."""
    rng = np.random.default_rng(0)
    truth = modality_gap(*states_apart(rng, 20_000, 0.06), np.arange(20_000)).value
    assert 0.03 < truth < 0.07
    small, none = ([modality_gap(*states_apart(rng, 200, shift), PAIRS) for _ in range(100)] for shift in (0.06, 0.0))
    assert sum(gap.ci_low <= truth <= gap.ci_high for gap in small) >= 90
    assert sum(gap.ci_low == 0 for gap in none) >= 90 and np.mean([gap.value for gap in none]) < 0.02


def test_false_alarms_between_refitted_probes_are_as_rare_as_stated():
    """Out-of-fold scores of two real probes: their errors share training rows."""
    rng, n_simulated, p_values, excluded, covered = np.random.default_rng(0), 150, [], 0, 0
    spread = refit_spread(5)
    for seed in range(n_simulated):
        folds = grouped_folds(LABELS, PAIRS.astype(str), seed=seed)
        scores = []
        for _ in range(2):
            features = rng.normal(size=(200, 64))
            fitted = FoldedProbe.fit(LogisticProbe(penalties=(0.01,)), features, LABELS, folds, PAIRS.astype(str))
            scores.append(fitted.distances(features))
        _, low, high = auroc_interval(LABELS, scores[0], PAIRS, spread=spread)
        covered += low <= 0.5 <= high
        drop = auroc_drop(LABELS, *scores, PAIRS, spread=spread)
        excluded += not drop.ci_low <= 0 <= drop.ci_high
        text, other = (distances[None] for distances in scores)
        p_values.append(drop_p_values(LABELS, text, other, PAIRS, 99, seed, spread)[0])
    # 5 %, plus three standard errors.
    assert covered / n_simulated >= 0.9 and excluded / n_simulated <= 0.1
    assert np.mean(np.array(p_values) <= 0.05) <= 0.1


def test_the_cosine_with_a_zero_vector_is_nan():
    assert cosine(np.array([3.0, 4.0]), np.array([6.0, 8.0])) == pytest.approx(1)
    assert np.isnan(cosine(np.zeros(2), np.ones(2)))


def paired_scores(rng, distances, n_pairs=60, shift=0.0, noise="normal"):
    """Return scores of the same queries as text and in another modality, whose classes are apart by these distances."""

    def draw(n):
        return rng.normal(size=n) if noise == "normal" else rng.exponential(size=n) - 1

    harmful = np.tile([True, False], n_pairs)
    of_query = draw(2 * n_pairs)
    scores = [0.7 * of_query + 0.7 * draw(2 * n_pairs) + distance * (harmful - 0.5) for distance in distances]
    return harmful, scores[0], scores[1] + shift, np.repeat(np.arange(n_pairs), 2)


def covered_share(measure, truth, draws):
    drops = [measure(*scores) for scores in draws]
    return np.mean([drop.ci_low <= truth <= drop.ci_high for drop in drops])


@pytest.mark.parametrize("n_pairs", [20, 60])
def test_the_interval_of_a_lost_distance_covers_as_often_as_it_says(n_pairs):
    rng = np.random.default_rng(0)
    truth = d_prime_drop(*paired_scores(rng, (9, 4.5), 2000)[:3], np.repeat(np.arange(2000), 2) % 20).value
    share = covered_share(d_prime_drop, truth, (paired_scores(rng, (9, 4.5), n_pairs) for _ in range(200)))
    # 0.95, minus and plus three standard errors.
    assert 0.9 <= share <= 0.99


def test_the_interval_of_lost_accuracy_covers_at_the_ceiling_of_text():
    """Text is always right and both classes have moved in the other modality, as in the built-in model."""
    rng = np.random.default_rng(0)
    truth = accuracy_drop(*paired_scores(rng, (9, 6), 50_000, shift=-2.0)).value
    assert 0.05 < truth < 0.25
    share = covered_share(accuracy_drop, truth, (paired_scores(rng, (9, 6), shift=-2.0) for _ in range(300)))
    assert share >= 0.95
    drop = accuracy_drop(*paired_scores(rng, (9, 9)))
    assert drop.value == 0 and drop.ci_low < 0 < drop.ci_high


@pytest.mark.parametrize("noise", ["normal", "exponential"])
def test_the_interval_of_a_lost_margin_covers_what_as_many_other_pairs_lose(noise):
    rng = np.random.default_rng(0)

    def lost():
        labels, text, other, _ = paired_scores(rng, (9, 4.5), noise=noise)
        return margin(labels, text).value - margin(labels, other).value

    truth = np.mean([lost() for _ in range(5000)])
    share = covered_share(margin_drop, truth, (paired_scores(rng, (9, 4.5), noise=noise) for _ in range(100)))
    assert share >= 0.9


def test_the_measures_of_the_same_scores_are_rewritten_plainly():
    labels, text, other, pairs = paired_scores(np.random.default_rng(0), (6, 3), shift=-1.0)

    def distance(scores):
        spread = np.sqrt((scores[labels].var(ddof=1) + scores[~labels].var(ddof=1)) / 2)
        return (scores[labels].mean() - scores[~labels].mean()) / spread

    drop = d_prime_drop(labels, text, other, pairs)
    assert drop.value == pytest.approx(distance(text) - distance(other)) and drop.ci_low < drop.value < drop.ci_high
    right = [((scores > 0) == labels).mean() for scores in (text, other)]
    assert accuracy_drop(labels, text, other, pairs).value == pytest.approx(right[0] - right[1])
    gaps = [scores[labels].min() - scores[~labels].max() for scores in (text, other)]
    assert margin(labels, text).value == gaps[0] and np.isnan(margin(labels, text).ci_low)
    lost = margin_drop(labels, text, other, pairs)
    assert lost.value == pytest.approx(gaps[0] - gaps[1]) and lost.ci_low <= lost.value <= lost.ci_high
    assert lost == margin_drop(labels, text, other, pairs)


def test_classes_that_move_together_lose_the_border_and_nothing_else():
    labels, text, _, pairs = paired_scores(np.random.default_rng(0), (6, 6))
    moved = text - 4
    assert auroc_drop(labels, text, moved, pairs).value == 0
    assert d_prime_drop(labels, text, moved, pairs).value == pytest.approx(0)
    assert margin_drop(labels, text, moved, pairs).value == pytest.approx(0)
    assert accuracy_drop(labels, text, moved, pairs).ci_low > 0.2
