"""Arrays and labels -> fitted probe, score with interval. Knows no model."""

from probes.intervals import auroc_interval, wilson_interval
from probes.linear import grouped_folds, out_of_fold_scores, shuffled_labels, train_and_apply

__all__ = [
    "auroc_interval",
    "grouped_folds",
    "out_of_fold_scores",
    "shuffled_labels",
    "train_and_apply",
    "wilson_interval",
]
