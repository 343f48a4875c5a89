"""Arrays and labels -> fitted probes, and scores with intervals. Independent of any model."""

from probes.baselines import length_scores, out_of_fold_words, random_features, word_probe
from probes.degradation import (
    accuracy_drop,
    auroc_drop,
    cosine,
    d_prime_drop,
    drop_p_values,
    margin,
    margin_drop,
    modality_gap,
)
from probes.detectors import DETECTORS, Cluster, Detector, MahalanobisContrast, NeighbourContrast
from probes.fit_plan import FitPlan, PlaceScores, fit_place
from probes.folds import (
    Fold,
    as_groups,
    category_folds,
    control_ceiling,
    control_task,
    grouped_folds,
    shuffled_labels,
)
from probes.intervals import (
    auroc_difference,
    auroc_interval,
    difference_interval,
    mean_interval,
    newcombe_interval,
    wilson_interval,
)
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
from probes.metrics import Measured, accuracy, auroc, d_prime, measure
from probes.operating_points import threshold_at, true_positive_rate_at
from probes.out_of_fold import FoldedProbe, refit_spread
from probes.paired import Paired, cohen_kappa, holm, mcnemar, sign_test

__all__ = [
    "Cluster",
    "DETECTORS",
    "Detector",
    "FitPlan",
    "Fold",
    "FoldedProbe",
    "LdaProbe",
    "LinearProbe",
    "LogisticProbe",
    "MahalanobisContrast",
    "MeanDifferenceProbe",
    "Measured",
    "NeighbourContrast",
    "PENALTIES",
    "PROBES",
    "Paired",
    "PlaceScores",
    "RidgeProbe",
    "SvmProbe",
    "accuracy",
    "accuracy_drop",
    "as_groups",
    "auroc",
    "auroc_difference",
    "auroc_drop",
    "auroc_interval",
    "category_folds",
    "cohen_kappa",
    "control_ceiling",
    "control_task",
    "cosine",
    "d_prime",
    "d_prime_drop",
    "difference_interval",
    "drop_p_values",
    "fit_place",
    "grouped_folds",
    "holm",
    "length_scores",
    "margin",
    "margin_drop",
    "mcnemar",
    "mean_interval",
    "measure",
    "modality_gap",
    "newcombe_interval",
    "out_of_fold_words",
    "random_features",
    "refit_spread",
    "shuffled_labels",
    "sign_test",
    "threshold_at",
    "true_positive_rate_at",
    "wilson_interval",
    "word_probe",
]
