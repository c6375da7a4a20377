"""Losses of class scores. Integer labels that no class has give NaN without a gradient, ignored ones 0.

The classes are the last axis of the scores. `class_weights` multiply the values; see `reduction.target_weights` for a mean that
divides by them.
"""

import jax
import jax.numpy as jnp
import optax

from jaxnets.losses import common
from jaxnets.types import Array, Float, Integer, Num, Shaped


def softmax_cross_entropy(
    logits: Float[Array, "*batch classes"],
    targets: Integer[Array, "*batch"] | Shaped[Array, "*batch classes"],
    *,
    label_smoothing: common.Scalar = 0.0,
    class_weights: Float[Array, " classes"] | None = None,
    ignore_index: int | None = None,
) -> Float[Array, "*batch"]:
    """`-Σ_c w_c t_c log softmax(logits)_c` for integer labels (`t` is one-hot) or a distribution `t`, told apart by shape.

    Smoothing mixes `t` with the uniform distribution: `(1 - s) t + s / classes`. A logit of -inf removes its class, from the
    smoothing as well. The value is 0 where the label is `ignore_index`. optax gives NaN for label
    -100 and for a -inf logit beside a distribution.

    >>> print(softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([1, -100]), ignore_index=-100))
    [1.3862944 0.       ]

    Raises:
      ValueError: targets, class weights of another shape; `label_smoothing` outside [0, 1); `ignore_index` with a distribution.
    Source: label smoothing: Szegedy et al. (2016), arXiv:1512.00567, section 7.
    """
    inside = (label_smoothing >= 0) & (label_smoothing < 1)
    common.check_option("softmax_cross_entropy", "label_smoothing", label_smoothing, inside, "be inside [0, 1)")
    log_p = common.log_softmax(logits)
    values = _cross_entropy("softmax_cross_entropy", log_p, targets, label_smoothing, class_weights, ignore_index)
    return values.astype(logits.dtype)


def nll(
    log_probabilities: Float[Array, "*batch classes"],
    targets: Integer[Array, "*batch"] | Shaped[Array, "*batch classes"],
    *,
    class_weights: Float[Array, " classes"] | None = None,
    ignore_index: int | None = None,
) -> Float[Array, "*batch"]:
    """Negative log-likelihood `-Σ_c w_c t_c log p_c`: cross entropy of log-probabilities that are normalized already."""
    values = _cross_entropy("nll", common.wide(log_probabilities), targets, 0.0, class_weights, ignore_index)
    return values.astype(log_probabilities.dtype)


def softmax_focal(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    gamma: common.Scalar = 2.0,
    class_weights: Float[Array, " classes"] | None = None,
    ignore_index: int | None = None,
) -> Float[Array, "*batch"]:
    """`-α_y (1 - p_y)^γ log p_y`: cross entropy without its easy examples; `class_weights` are `α`.

    Raises:
      ValueError: `gamma < 0`; labels that aren't integers.
    Source: Lin et al. (2017), arXiv:1708.02002, eq. 5.
    """
    common.check_option("softmax_focal", "gamma", gamma, gamma >= 0, "not be negative")
    labels, _ = common.read_targets("softmax_focal", logits, labels, distribution=False)
    log_p = common.log_softmax(logits)
    plain = _cross_entropy("softmax_focal", log_p, labels, 0.0, None, ignore_index)
    weighted = _cross_entropy("softmax_focal", log_p, labels, 0.0, class_weights, ignore_index)
    # Where p_y rounds to 0 the factor is 1; where it rounds to 1 the cross entropy is 0 and the factor free: constants, since
    # the slope of 0**gamma is infinite, and a product of the largest floats overflows.
    undecided = (plain > 0) & (plain < 88)
    miss = -jnp.expm1(-jnp.where(undecided, plain, 1))  # 1 - p_y without cancellation
    return (jnp.where(undecided, miss**gamma, 1) * weighted).astype(logits.dtype)


def poly(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    epsilon: common.Scalar = 2.0,
    ignore_index: int | None = None,
) -> Float[Array, "*batch"]:
    """Poly-1 loss `-log p_y + ε (1 - p_y)`: the first term of the expansion of cross entropy reweighted; `ε >= -1`.

    Raises:
      ValueError: `epsilon < -1` (the value could be negative); labels that aren't integers.
    Source: Leng et al. (2022), arXiv:2204.12511, eq. 6.
    """
    common.check_option("poly", "epsilon", epsilon, epsilon >= -1, "be at least -1")
    labels, _ = common.read_targets("poly", logits, labels, distribution=False)
    cross_entropy = _cross_entropy("poly", common.log_softmax(logits), labels, 0.0, None, ignore_index)
    return (cross_entropy - epsilon * jnp.expm1(-cross_entropy)).astype(logits.dtype)


def sigmoid_cross_entropy(logits: Float[Array, "*shape"], targets: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`-t log σ(x) - (1 - t) log(1 - σ(x))` per element: independent yes/no classes with `t` in [0, 1]. Finite logits."""
    common.check_same_shape("sigmoid_cross_entropy", logits=logits, targets=targets)
    values = optax.losses.sigmoid_binary_cross_entropy(common.observed(common.wide(logits), targets), targets)
    return values.astype(logits.dtype)


def sigmoid_focal(
    logits: Float[Array, "*shape"],
    targets: Shaped[Array, "*shape"],
    *,
    gamma: common.Scalar = 2.0,
    alpha: common.Scalar | None = None,
) -> Float[Array, "*shape"]:
    """`α_t (1 - p_t)^γ` times the sigmoid cross entropy, `p_t` the probability of the target in [0, 1].

    `1 - p_t = t (1 - σ(x)) + (1 - t) σ(x)`; `α_t = α t + (1 - α)(1 - t)`, or 1 without `alpha`.
    The gradient of `optax.losses.sigmoid_focal_loss` is NaN at the largest logits of float32.

    Raises:
      ValueError: `gamma < 0`; `alpha` outside [0, 1].
    Source: Lin et al. (2017), arXiv:1708.02002, eq. 5.
    """
    common.check_option("sigmoid_focal", "gamma", gamma, gamma >= 0, "not be negative")
    if alpha is not None:
        common.check_option("sigmoid_focal", "alpha", alpha, (alpha >= 0) & (alpha <= 1), "be inside [0, 1]")
    dtype, logits = logits.dtype, common.wide(logits)
    cross_entropy = sigmoid_cross_entropy(logits, targets)
    logits, targets = common.observed(logits, targets), targets.astype(logits.dtype)
    log_miss = jnp.logaddexp(jnp.log(targets) + jax.nn.log_sigmoid(-logits), jnp.log1p(-targets) + jax.nn.log_sigmoid(logits))
    undecided = log_miss < 0  # else p_t rounds to 0 and the factor is 1: a constant, as in `softmax_focal`
    values = jnp.where(undecided, jnp.exp(gamma * jnp.where(undecided, log_miss, -1)), 1) * cross_entropy
    if alpha is not None:
        values = (alpha * targets + (1 - alpha) * (1 - targets)) * values
    return values.astype(dtype)


def hinge(scores: Float[Array, "*shape"], targets: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`max(0, 1 - t·score)` per element; targets are -1 or +1 (not 0).

    Source: Cortes & Vapnik (1995), doi:10.1007/BF00994018.
    """
    common.check_same_shape("hinge", scores=scores, targets=targets)
    return optax.losses.hinge_loss(common.observed(common.wide(scores), targets), targets).astype(scores.dtype)


def multiclass_hinge(
    scores: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    margin: common.Scalar = 1.0,
    ignore_index: int | None = None,
) -> Float[Array, "*batch"]:
    """`max(0, margin + max_{c ≠ y} s_c - s_y)`; a score of -inf removes its class (optax: NaN).

    Raises:
      ValueError: `margin <= 0`; labels that aren't integers.
    Source: Crammer & Singer (2001), JMLR 2, section 3.
    """
    common.check_option("multiclass_hinge", "margin", margin, margin > 0, "be positive")
    labels, _ = common.read_targets("multiclass_hinge", scores, labels, distribution=False)
    shifted, own = common.centered(scores), common.one_hot(labels, scores.shape[-1])
    rival = jnp.where(own, -jnp.inf, shifted).max(axis=-1)
    values = jnp.maximum(0, margin + rival - jnp.where(own, shifted, 0).sum(axis=-1))
    return common.screen(values, labels, scores.shape[-1], ignore_index).astype(scores.dtype)


def _cross_entropy(function, log_p, targets, label_smoothing, class_weights, ignore_index):
    """`-Σ_c w_c t_c log p_c`, wide, with `t` read, smoothed and screened."""
    classes, (targets, labels) = log_p.shape[-1], common.read_targets(function, log_p, targets)
    if ignore_index is not None and not labels:
        raise ValueError(f"{function}: ignore_index needs integer labels, got {targets.dtype} of shape {targets.shape}.")
    if not labels:
        log_p = common.observed_rows(log_p, targets)
    removed = log_p == -jnp.inf
    costs, barred = jnp.where(removed, 0, -log_p), removed  # weighted while finite: 0 times inf would be NaN
    if class_weights is not None:
        if class_weights.shape != (classes,):
            raise ValueError(f"{function}: class_weights must have shape ({classes},), got {class_weights.shape}.")
        weights = jnp.broadcast_to(class_weights, costs.shape)
        costs, barred = weights * costs, removed & (weights > 0)
    costs = jnp.where(barred, jnp.inf, costs)
    if labels:  # sums of chosen terms, not of products with 0: the cost of a removed class is inf
        values = jnp.where(common.one_hot(targets, classes), costs, 0).sum(axis=-1)
    else:
        values = (targets * jnp.where(targets == 0, 0, costs)).sum(axis=-1)
    if not (isinstance(label_smoothing, int | float) and label_smoothing == 0):
        uniform = (jnp.where(removed, 0, costs) / (~removed).sum(axis=-1, keepdims=True)).sum(axis=-1)
        values = (1 - label_smoothing) * values + label_smoothing * uniform
    return common.screen(values, targets, classes, ignore_index) if labels else values
