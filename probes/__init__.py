"""Arrays and labels -> fitted probes, and scores with intervals. Independent of any model."""

from probes.baselines import length_scores, out_of_fold_words, random_features, word_probe
from probes.degradation import auroc_drop, cosine, drop_p_values, modality_gap
from probes.fit_plan import FitPlan, PlaceScores, fit_place
from probes.folds import Fold, as_groups, category_folds, control_task, grouped_folds, shuffled_labels
from probes.intervals import auroc_difference, auroc_interval, difference_interval, wilson_interval
from probes.linear import (
    PENALTIES,
    PROBES,
    LdaProbe,
    LinearProbe,
    LogisticProbe,
    MeanDifferenceProbe,
    RidgeProbe,
    SvmProbe,
)
from probes.metrics import Measured, accuracy, auroc, measure
from probes.out_of_fold import FoldedProbe, refit_spread
from probes.paired import Paired, cohen_kappa, holm, mcnemar

__all__ = [
    "FitPlan",
    "Fold",
    "FoldedProbe",
    "LdaProbe",
    "LinearProbe",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "Measured",
    "PENALTIES",
    "PROBES",
    "Paired",
    "PlaceScores",
    "RidgeProbe",
    "SvmProbe",
    "accuracy",
    "as_groups",
    "auroc",
    "auroc_difference",
    "auroc_drop",
    "auroc_interval",
    "category_folds",
    "cohen_kappa",
    "control_task",
    "cosine",
    "difference_interval",
    "drop_p_values",
    "fit_place",
    "grouped_folds",
    "holm",
    "length_scores",
    "mcnemar",
    "measure",
    "modality_gap",
    "out_of_fold_words",
    "random_features",
    "refit_spread",
    "shuffled_labels",
    "wilson_interval",
    "word_probe",
]
