"""Loss functions: one value per element or per example, the reduction left to the caller.

`reduce(softmax_cross_entropy(logits, labels), weights=...)`: every supervised loss takes `(prediction, target)` first and its
options by keyword, so `training.steps.supervised(model.apply, losses.softmax_cross_entropy)` needs no adapter.
A result has the dtype of the prediction; sums inside are accumulated in float32 at least. optax is reused where it is right.

Where a value can't be finite (a missing target, a class that doesn't exist, an alignment that doesn't fit) it is NaN or inf,
for a guard to see, while the gradient of the prediction is finite: a mask or a weight of 0 in `reduce` removes it altogether.
"""

from jaxnets.losses.classification import (
    hinge,
    multiclass_hinge,
    nll,
    poly,
    sigmoid_cross_entropy,
    sigmoid_focal,
    softmax_cross_entropy,
    softmax_focal,
)
from jaxnets.losses.composition import with_auxiliary, with_ohem
from jaxnets.losses.divergence import gaussian_kl, kl_divergence, reverse_kl_divergence
from jaxnets.losses.metric_learning import (
    contrastive,
    cosine_distance,
    cosine_similarity,
    info_nce,
    supervised_contrastive,
    triplet,
)
from jaxnets.losses.reduction import reduce, target_weights
from jaxnets.losses.regression import (
    absolute,
    gaussian_nll,
    huber,
    log_cosh,
    poisson_nll,
    quantile,
    smooth_l1,
    squared,
)
from jaxnets.losses.segmentation import dice, generalized_dice, lovasz_softmax, ohem, tversky
from jaxnets.losses.sequence import ctc

__all__ = [
    "absolute",
    "contrastive",
    "cosine_distance",
    "cosine_similarity",
    "ctc",
    "dice",
    "gaussian_kl",
    "gaussian_nll",
    "generalized_dice",
    "hinge",
    "huber",
    "info_nce",
    "kl_divergence",
    "log_cosh",
    "lovasz_softmax",
    "multiclass_hinge",
    "nll",
    "ohem",
    "poisson_nll",
    "poly",
    "quantile",
    "reduce",
    "reverse_kl_divergence",
    "sigmoid_cross_entropy",
    "sigmoid_focal",
    "smooth_l1",
    "softmax_cross_entropy",
    "softmax_focal",
    "squared",
    "supervised_contrastive",
    "target_weights",
    "triplet",
    "tversky",
    "with_auxiliary",
    "with_ohem",
]
