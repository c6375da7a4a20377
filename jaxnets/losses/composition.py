"""Losses of losses: for networks with several outputs, and of the hard examples only."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnets.losses import common, reduction, segmentation
from jaxnets.types import Array, Float, Integer


def with_auxiliary(loss: Callable[..., Array], weight: common.Scalar = 0.4) -> Callable[..., Array]:
    """`loss(main, targets) + weight Σ loss(auxiliary, targets)` of `outputs = (main, auxiliary, ...)`.

    An auxiliary output of None, as of a network that is evaluated, adds nothing. A metric takes the main output:

        ce = functools.partial(losses.softmax_cross_entropy, ignore_index=255)
        accuracy = lambda outputs, labels: metrics.correct(outputs[0], labels)
        steps.supervised(model.apply, losses.with_auxiliary(ce), accuracy=accuracy)

    Raises:
      ValueError: outputs that are no tuple.
    Source: Szegedy et al. (2015), arXiv:1409.4842, section 5; the weight: Zhao et al. (2017), arXiv:1612.01105, section 5.1.
    """

    def of_all(outputs, targets) -> Float[Array, "..."]:
        if not isinstance(outputs, tuple):
            raise ValueError(f"with_auxiliary: outputs must be a tuple (main, auxiliary, ...), got {type(outputs).__name__}.")
        main, *auxiliaries = outputs
        value = loss(main, targets)
        for auxiliary in auxiliaries:
            if auxiliary is not None:
                value = value + weight * loss(auxiliary, targets)
        return value

    return of_all


def with_ohem(
    loss: Callable[..., Array],
    *,
    threshold: common.Scalar = -math.log(0.7),
    min_kept: int = 1,
    ignore_index: int | None = None,
) -> Callable[..., Array]:
    """One value per example: the mean of those of its `loss` values that `ohem` keeps, ignored labels left out.

        steps.supervised(model.apply, losses.with_ohem(losses.softmax_cross_entropy, min_kept=10_000, ignore_index=255))

    The choice is made within each example, and so doesn't depend on what else is in its batch, or on its device.
    """

    def of_hard(outputs, targets: Integer[Array, " batch *space"]) -> Float[Array, " batch"]:
        values = loss(outputs, targets)
        mask = jnp.ones(targets.shape, bool) if ignore_index is None else targets.astype(int) != ignore_index

        def mean(values, mask):
            kept = segmentation.ohem(values, threshold=threshold, min_kept=min_kept, mask=mask)
            return reduction.reduce(values, mask=kept)

        return jax.vmap(mean)(values, mask)

    return of_hard
