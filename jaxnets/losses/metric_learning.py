"""Losses of distances and angles between embeddings, whose gradients are finite where embeddings coincide or are zero."""

import jax.numpy as jnp
from jax import lax

from jaxnets.losses import classification, common
from jaxnets.types import Array, Bool, Float, Integer


def cosine_similarity(
    first: Float[Array, "*batch features"], second: Float[Array, "*batch features"]
) -> Float[Array, "*batch"]:
    """Cosine of the angle between vectors, `a·b / (|a| |b|)` in [-1, 1]; 0, with a finite gradient, if either is zero.

    Right at every scale: optax gives 0 for vectors of length 1e20 in float32, and NaN or slopes of 1/ε at zero.
    """
    common.check_same_shape("cosine_similarity", first=first, second=second)
    first, second = common.observed_rows(first, second), common.observed_rows(second, first)
    return (_unit(first) * _unit(second)).sum(axis=-1).astype(first.dtype)


def cosine_distance(
    prediction: Float[Array, "*batch features"], target: Float[Array, "*batch features"]
) -> Float[Array, "*batch"]:
    """`1 - cosine_similarity` in [0, 2]; 1 if either vector is zero."""
    common.check_same_shape("cosine_distance", prediction=prediction, target=target)
    return (1 - cosine_similarity(common.wide(prediction), common.wide(target))).astype(prediction.dtype)


def contrastive(
    first: Float[Array, "*batch features"],
    second: Float[Array, "*batch features"],
    same: Bool[Array, "*batch"],
    *,
    margin: common.Scalar = 1.0,
) -> Float[Array, "*batch"]:
    """`d²/2` for a pair that is the `same`, else `max(0, margin - d)²/2`, with the Euclidean distance `d`.

    Raises:
      ValueError: `margin <= 0`; shapes that differ.
    Source: Hadsell et al. (2006), doi:10.1109/CVPR.2006.100, eq. 4.
    """
    common.check_option("contrastive", "margin", margin, margin > 0, "be positive")
    common.check_same_shape("contrastive", first=first, second=second)
    distance = _distance(first, second)
    common.check_same_shape("contrastive", pairs=distance, same=same)
    return (jnp.where(same, distance, jnp.maximum(margin - distance, 0)) ** 2 / 2).astype(first.dtype)


def triplet(
    anchor: Float[Array, "*batch features"],
    positive: Float[Array, "*batch features"],
    negative: Float[Array, "*batch features"],
    *,
    margin: common.Scalar = 1.0,
) -> Float[Array, "*batch"]:
    """`max(0, |a - p| - |a - n| + margin)`: the positive nearer than the negative by the margin.

    Raises:
      ValueError: `margin <= 0`; shapes that differ.
    Source: Schroff et al. (2015), arXiv:1503.03832, eq. 2 (there with squares).
    """
    common.check_option("triplet", "margin", margin, margin > 0, "be positive")
    common.check_same_shape("triplet", anchor=anchor, positive=positive, negative=negative)
    values = jnp.maximum(_distance(anchor, positive) - _distance(anchor, negative) + margin, 0)
    return values.astype(anchor.dtype)


def info_nce(
    queries: Float[Array, "batch features"],
    keys: Float[Array, "batch features"],
    *,
    temperature: common.Scalar = 0.07,
) -> Float[Array, " batch"]:
    """Cross entropy of picking each query's own key among all keys, by cosine similarity over `temperature`.

    CLIP's symmetric loss is the mean of `info_nce(a, b)` and `info_nce(b, a)`. The temperature may be learned.

    Raises:
      ValueError: `temperature <= 0`; shapes that differ.
    Source: van den Oord et al. (2018), arXiv:1807.03748, eq. 4.
    """
    common.check_option("info_nce", "temperature", temperature, temperature > 0, "be positive")
    common.check_same_shape("info_nce", queries=queries, keys=keys)
    similarity = _unit(queries) @ _unit(keys).T / temperature
    return classification.softmax_cross_entropy(similarity, jnp.arange(len(queries))).astype(queries.dtype)


def supervised_contrastive(
    embeddings: Float[Array, "batch features"],
    labels: Integer[Array, " batch"],
    *,
    temperature: common.Scalar = 0.1,
) -> Float[Array, " batch"]:
    """`-1/|P(i)| Σ_{p in P(i)} log softmax_{a ≠ i}(cos(z_i, z_a)/τ)_p`, `P(i)` the others with the label of `i`.

    An example without such others has value 0 (`optax.losses.ntxent`: NaN if none has any).

    Raises:
      ValueError: `temperature <= 0`; shapes that differ.
    Source: Khosla et al. (2020), arXiv:2004.11362, eq. 2.
    """
    common.check_option("supervised_contrastive", "temperature", temperature, temperature > 0, "be positive")
    common.check_same_shape("supervised_contrastive", examples=embeddings[:, 0], labels=labels)
    unit, itself = _unit(embeddings), jnp.eye(len(embeddings), dtype=bool)
    log_p = common.log_softmax(jnp.where(itself, -jnp.inf, unit @ unit.T / temperature))
    positive = (labels[:, None] == labels[None, :]) & ~itself
    values = -jnp.where(positive, log_p, 0).sum(axis=-1) / jnp.maximum(positive.sum(axis=-1), 1)
    return values.astype(embeddings.dtype)


def _unit(x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
    """`x / |x|`, wide; zero stays zero."""
    x = common.wide(x)
    x = x / _scale(x)
    square = (x**2).sum(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square == 0, 1, square))


def _distance(first: Float[Array, "*batch features"], second: Float[Array, "*batch features"]) -> Float[Array, "*batch"]:
    """Euclidean distance, wide, with gradient 0 where it is 0 or not finite."""
    difference = common.wide(first) - common.wide(second)
    difference = common.observed_rows(difference, difference)
    scale = _scale(difference)
    square = ((difference / scale) ** 2).sum(axis=-1)
    return scale.squeeze(-1) * jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _scale(x: Float[Array, "*batch features"]) -> Float[Array, "*batch 1"]:
    """The largest size in a row: taken out before squares overflow, and a constant, for neither result depends on it."""
    peak = lax.stop_gradient(jnp.abs(x).max(axis=-1, keepdims=True))
    return jnp.where((peak >= jnp.finfo(x.dtype).tiny) & (peak < jnp.inf), peak, 1)
