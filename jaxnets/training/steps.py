"""Training and evaluation steps: `(state, batch) -> (state, metrics)`, pure and not jitted.

A loss function returns sums, `loss_fn(params, carry, batch, key) -> (loss_sum, (weight_sum, metric_sums, carry))`, and the
step divides once: masks, uneven batches, accumulated microbatches and shards are then exact. `key` None means evaluation.

    step = steps.make_train_step(steps.supervised(model.apply, losses.softmax_cross_entropy), optimizer)
    jax.jit(step, donate_argnums=0)      # one step
    jax.vmap(step, in_axes=(0, None))    # an ensemble on shared batches
    jax.lax.scan(step, state, batches)   # an epoch
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from jaxnets import losses
from jaxnets.training import averaging
from jaxnets.training.state import TrainState
from jaxnets.types import Array, Batch, Float, Int, LossFn, Step


def supervised(
    apply: Callable,
    loss: Callable,
    *,
    weights: Callable | None = None,
    inputs: Sequence[str] = (),
    **metrics: Callable,
) -> LossFn:
    """Loss of a Flax model on a batch with fields `x`, `y` and, optionally, `weight` (per example).

    `loss(outputs, y)` and each of `metrics(outputs, y)` give one value per element; `weights(y)` weighs the elements
    (`functools.partial(losses.target_weights, ignore_index=255)`). The model takes `train=True` and a "dropout" key, and as
    keywords the fields of the batch that `inputs` names: ("lengths",) of sequences.

        steps.supervised(model.apply, losses.softmax_cross_entropy, accuracy=metrics.correct)

    The step divides by the number of values. A loss that sums over an image's pixels has one for each image, and is what FCN's
    "heavy learning" takes (batches of one image, Shelhamer, Long & Darrell 2017, arXiv:1605.06211):

        heavy = lambda logits, labels: losses.softmax_cross_entropy(logits, labels, ignore_index=255).sum((1, 2))
        sgd = optax.chain(optax.add_decayed_weights(5e-4, mask=optimizers.decay_mask()), optax.sgd(1e-10, momentum=0.99))
        step = steps.make_train_step(steps.supervised(model.apply, heavy), optax.chain(sgd, optimizers.groups({"bias": 2})))
    """

    def loss_fn(params, carry, batch, key):
        batch = jax.tree.map(jnp.asarray, batch)  # of NumPy's arrays, where nothing was jitted
        variables = {"params": params, **carry}
        more = {name: getattr(batch, name) for name in inputs}
        if key is None:
            outputs = apply(variables, batch.x, **more, train=False)
        else:
            outputs, carry = apply(variables, batch.x, **more, train=True, rngs={"dropout": key}, mutable=list(carry))
        return _sums(outputs, batch, loss, weights, metrics, carry)

    return loss_fn


def truncated_bptt(
    apply: Callable, loss: Callable = losses.softmax_cross_entropy, *, weights: Callable | None = None, **metrics: Callable
) -> LossFn:
    """Loss of a recurrent model on one window of a sequence, whose state travels in the carry from window to window.

    `apply(variables, x, initial=, reset=, train=) -> (outputs, final state)`; the batch has `x`, `y` `[batch, time, ...]` and,
    optionally, `reset [batch, time]` (True where the state starts anew, as at the first step of a document) and `weight`. The
    gradient ends where the window begins: it is exact where the window covers the sequence. Start with
    `state.create(model, optimizer, key, x, carry=model.initial(batch))`. Row i of the next batch goes on where row i of
    this one ended: no shuffling, and no `accumulate`. Evaluation starts from the zero state.

    Source: Williams & Peng (1990), doi:10.1162/neco.1990.2.4.490.
    """

    def loss_fn(params, carry, batch, key):
        batch = jax.tree.map(jnp.asarray, batch)
        reset = getattr(batch, "reset", None)
        if key is None:
            outputs, _ = apply({"params": params}, batch.x, reset=reset, train=False)
        else:
            start = jax.lax.stop_gradient(carry)  # also where a caller differentiates through several steps
            dropout = {"dropout": key}
            outputs, carry = apply({"params": params}, batch.x, initial=start, reset=reset, train=True, rngs=dropout)
        return _sums(outputs, batch, loss, weights, metrics, carry)

    return loss_fn


def plain(loss: Callable) -> LossFn:
    """Adapts `loss(params, batch, key) -> scalar`, a mean over the batch's leading axis."""

    def loss_fn(params, carry, batch, key):
        size = jax.tree.leaves(batch)[0].shape[0]
        return loss(params, batch, key) * size, (jnp.float32(size), {}, carry)

    return loss_fn


def augmented(loss_fn: LossFn, augment: Callable) -> LossFn:
    """The same loss on `augment(key, batch)` while training; evaluation sees the batch as it is."""

    def augmented_loss(params, carry, batch, key):
        if key is None:
            return loss_fn(params, carry, batch, key)
        augment_key, key = jax.random.split(key)
        return loss_fn(params, carry, augment(augment_key, batch), key)

    return augmented_loss


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    ema: float | Callable[[Int[Array, "..."]], Float[Array, "..."]] | averaging.Average | None = None,
) -> Step:
    """Returns `step(state, batch) -> (state, metrics)`.

    `accumulate` splits the batch into that many microbatches, one after the other: the same gradient in less memory.
    `clip` bounds the gradient's global norm. `ema` is the decay of `state.ema` (a number, or a function of the step),
    or `averaging.power(widths)`, with which the state was created.
    Mixed precision is a property of the model: `supervised(precision.mixed(model.apply), ...)`.

    A non-finite loss or gradient norm leaves the whole state untouched and counts in `state.skipped`, where
    `optax.apply_if_finite` gives in after its limit and knows nothing of batch statistics or averages.
    Metrics: `loss`, `grad_norm` (before clipping), `skipped_in_row`, and what `loss_fn` adds; means over the weights.

    Raises:
      ValueError: `accumulate < 1`, `clip <= 0`, `ema` outside [0, 1); at the call, a batch that `accumulate` doesn't divide,
        or `ema` with a state that holds no average.
    """
    if accumulate < 1:
        raise ValueError(f"make_train_step: accumulate must be at least 1, got {accumulate}.")
    if clip is not None and clip <= 0:
        raise ValueError(f"make_train_step: clip must be positive, got {clip}.")
    if isinstance(ema, float | int) and not 0 <= ema < 1:
        raise ValueError(f"make_train_step: ema must be in [0, 1), got {ema}.")
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def sums_of(params, carry, batch, key):
        (loss, (weight, metrics, carry)), grads = gradient(params, carry, batch, key)
        return (grads, weight, {"loss": loss, **metrics}), carry

    def step(state: TrainState, batch: Batch):
        if isinstance(state.ema, averaging.PowerAverages) and not isinstance(ema, averaging.Average):
            raise ValueError("step: a state created with ema=averaging.power(...) needs make_train_step(ema=...) the same.")
        if (ema is None) != (state.ema is None):
            raise ValueError(
                "step: an average needs make_train_step(ema=decay) and a state created with ema=True, got only one of them."
            )
        key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            sums, carry = sums_of(state.params, state.carry, batch, key)
        else:
            sums, carry = _accumulated(sums_of, accumulate, state, batch, key)
        grads, weight, metrics = sums
        scale = 1 / jnp.where(weight > 0, weight, 1)  # an empty batch has zero sums: they stay so
        metrics = {name: total * scale for name, total in metrics.items()}
        norm = _norm(grads) * scale
        ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

        def update(old: TrainState) -> TrainState:
            factor = scale if clip is None else scale * clip / jnp.maximum(norm, clip)
            mean = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)  # here, where it fuses into the optimizer
            updates, opt_state = optimizer.update(mean, old.opt_state, old.params)
            params, average = optax.apply_updates(old.params, updates), old.ema
            if isinstance(ema, averaging.Average):
                average = ema.update(average, params, old.step + 1)
            elif ema is not None:
                average = optax.incremental_update(params, average, 1 - (ema(old.step) if callable(ema) else ema))
                average = jax.tree.map(lambda new, old: new.astype(old.dtype), average, old.ema)
            return dataclasses.replace(
                old,
                params=params,
                carry=carry,
                opt_state=opt_state,
                ema=average,
                step=old.step + 1,
                skipped_in_row=jnp.zeros_like(old.skipped_in_row),
            )

        def skip(old: TrainState) -> TrainState:
            return dataclasses.replace(old, skipped=old.skipped + 1, skipped_in_row=old.skipped_in_row + 1)

        state = _choose(ok, update, skip, state)
        return state, {**metrics, "grad_norm": norm, "skipped_in_row": state.skipped_in_row}

    return step


def make_eval_step(loss_fn: LossFn, *, ema: bool | float = False) -> Callable:
    """Returns `evaluate(state, batch) -> (weight_sum, sums)`, with `sums["loss"]` and the metrics.

    `ema` uses the average instead of the parameters: True the only one, a number that of this width (`averaging.power`).
    Sums over batches divide once at the end, so an uneven last batch counts exactly.
    """

    def evaluate(state: TrainState, batch: Batch):
        loss, (weight, metrics, _) = loss_fn(averaging.of_state(state, ema), state.carry, batch, None)
        return weight, {"loss": loss, **metrics}

    return evaluate


def ema_warmup(decay: float) -> Callable:
    """Decay `min(decay, (1 + n) / (10 + n))` at step n, for `make_train_step(ema=...)`: early averages forget the start."""
    return lambda step: jnp.minimum(decay, (1 + step) / (10 + step))


def _sums(outputs, batch, loss, weights, metrics, carry):
    """What a loss function returns, of the outputs for a batch."""
    values = loss(outputs, batch.y)
    values = values.astype(jnp.promote_types(values.dtype, "float32"))  # a sum in bfloat16 would have three digits
    weight = jnp.ones(values.shape, jnp.float32) if weights is None else weights(batch.y)
    if (each := getattr(batch, "weight", None)) is not None:
        weight = weight * each.reshape(each.shape + (1,) * (weight.ndim - each.ndim))
    sums = {name: losses.reduce(metric(outputs, batch.y), "sum", weights=weight) for name, metric in metrics.items()}
    return losses.reduce(values, "sum", weights=weight), (weight.sum(), sums, carry)


def _norm(tree):
    """Global Euclidean norm in float32 at least; `optax.tree.norm` keeps the sum in the leaves' dtype, bfloat16 too."""
    return jnp.sqrt(
        sum(jnp.vdot(x, x, preferred_element_type=jnp.promote_types(x.dtype, "float32")) for x in jax.tree.leaves(tree))
    )


def _choose(ok, update, skip, state):
    """`update(state)` or `skip(state)`, in the form that costs least.

    A branch is free on a CPU, where a select is one more pass over the state (6 to 15 % of an MLP's step, in noisy runs). On an
    accelerator, expected but not measured: the select fuses into the update, and a branch would wait for the host.
    """
    # Both are in the program, one with a condition that is known when it is compiled: so `update` is traced but once.
    branches = jax.lax.platform_dependent(cpu=lambda: jnp.array(True), default=lambda: jnp.array(False))
    skipped = skip(state)
    state = jax.lax.cond(ok | ~branches, update, lambda _: skipped, state)
    return jax.tree.map(functools.partial(jax.lax.select, ok | branches), state, skipped)


def _accumulated(sums_of, accumulate, state, batch, key):
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % accumulate:
        raise ValueError(f"step: accumulate={accumulate} must divide the batch, got {size} examples.")
    # Every accumulate-th example: of a batch split over devices, each microbatch then lies on all of them.
    microbatches = jax.tree.map(lambda x: jnp.reshape(x, (-1, accumulate, *x.shape[1:])).swapaxes(0, 1), batch)

    def body(totals, microbatch_and_index):
        sums, carry = totals
        microbatch, index = microbatch_and_index
        more, carry = sums_of(state.params, carry, microbatch, jax.random.fold_in(key, index))
        return (jax.tree.map(jnp.add, sums, more), carry), None

    first = jax.tree.map(lambda x: x[0], microbatches)
    shapes, _ = jax.eval_shape(sums_of, state.params, state.carry, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    totals, _ = jax.lax.scan(body, (zeros, state.carry), (microbatches, jnp.arange(accumulate)))
    return totals
