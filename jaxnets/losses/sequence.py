"""Connectionist temporal classification: a sequence of labels without its alignment to the frames."""

import jax.numpy as jnp
from jax import lax

from jaxnets.losses import common
from jaxnets.types import Array, Bool, Float, Integer


# optax.losses.ctc_loss is negative on confident paths and finite (1e5) where no alignment fits.
def ctc(
    logits: Float[Array, "batch time classes"],
    labels: Integer[Array, "batch length"],
    *,
    logit_lengths: Integer[Array, " batch"] | None = None,
    label_lengths: Integer[Array, " batch"] | None = None,
    blank: int = 0,
    zero_infinity: bool = False,
) -> Float[Array, " batch"]:
    """`-log Σ_π Π_t softmax(logits_t)[π_t]` over the alignments `π` that spell the labels: merge repeats, then drop blanks.

    Never negative. Labels that don't fit into the frames (equal neighbors need a blank between them) give inf, or 0 with
    `zero_infinity`, and gradient 0 either way. All frames count without `logit_lengths`; without `label_lengths` the labels
    end at the first negative one. What stands in the padding reaches neither the value nor the gradient, NaN included.
    A label that is the blank or no class gives NaN.

    Raises:
      ValueError: ranks or batch sizes that don't match; `blank` that is no class.
    Source: Graves et al. (2006), doi:10.1145/1143844.1143891, eq. 6-8 (in logarithms).
    """
    _check(logits, labels, logit_lengths, label_lengths, blank)
    (batch, time, classes), length, labels = logits.shape, labels.shape[1], labels.astype(int)
    if logit_lengths is None:
        logit_lengths = jnp.full(batch, time)
    if label_lengths is None:
        label_lengths = jnp.cumprod(labels >= 0, axis=1).sum(axis=1)
    live, counted = _before(logit_lengths, time), _before(label_lengths, length)
    log_p = common.log_softmax(logits)

    # States: blank, label 1, blank, label 2, ..., blank. A path stays, advances, or skips a blank between unequal labels.
    known = common.in_range(labels, classes) & (labels != blank)
    padded = jnp.where(counted & known, labels, blank)
    states = lax.pad(padded, blank, ((0, 0, 0), (1, 1, 1)))[:, : 2 * length + 1]
    skips = states != _shift(states, 2, blank)
    emissions = jnp.take_along_axis(log_p, states[:, None, :], axis=2)

    def advance(log_alpha, frame):
        emission, is_live = frame
        skipped = jnp.where(skips, _shift(log_alpha, 2, -jnp.inf), -jnp.inf)
        moved = _log_sum(jnp.stack([log_alpha, _shift(log_alpha, 1, -jnp.inf), skipped])) + emission
        return jnp.where(is_live[:, None], moved, log_alpha), None

    place = lax.broadcasted_iota(int, states.shape, 1)
    start = jnp.where(place == 0, 0, -jnp.inf).astype(log_p.dtype)  # before the first frame, at the first blank
    log_alpha, _ = lax.scan(advance, start, (emissions.swapaxes(0, 1), live.T))
    last = 2 * label_lengths[:, None].astype(int)
    log_likelihood = _log_sum(jnp.where((place == last) | (place == last - 1), log_alpha, -jnp.inf).T)

    impossible = log_likelihood == -jnp.inf
    values = jnp.where(impossible, 0 if zero_infinity else jnp.inf, jnp.maximum(-log_likelihood, 0))
    return jnp.where((counted & ~known).any(axis=1), jnp.nan, values).astype(logits.dtype)


def _log_sum(x: Float[Array, " terms *shape"]) -> Float[Array, "*shape"]:
    """`log Σ exp` over axis 0; of nothing but -inf it is -inf with gradient 0, where `logsumexp` has NaN."""
    peak = lax.stop_gradient(x.max(axis=0))
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    total = jnp.exp(x - peak[None]).sum(axis=0)
    return jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1, total)) + peak)


def _shift(x, steps: int, fill):
    return jnp.pad(x, ((0, 0), (steps, 0)), constant_values=fill)[:, : x.shape[1]]


def _before(lengths: Integer[Array, " batch"], size: int) -> Bool[Array, "batch {size}"]:
    return lax.broadcasted_iota(int, (lengths.shape[0], size), 1) < lengths[:, None]


def _check(logits, labels, logit_lengths, label_lengths, blank):
    if logits.ndim != 3 or labels.ndim != 2 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            f"ctc: logits must be [batch, time, classes] and labels [batch, length], got {logits.shape} and {labels.shape}."
        )
    for name, lengths in (("logit_lengths", logit_lengths), ("label_lengths", label_lengths)):
        if lengths is not None and lengths.shape != logits.shape[:1]:
            raise ValueError(f"ctc: {name} must have shape {logits.shape[:1]}, got {lengths.shape}.")
    if not 0 <= blank < logits.shape[-1]:
        raise ValueError(f"ctc: blank must be one of the {logits.shape[-1]} classes, got {blank}.")
