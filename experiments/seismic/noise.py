"""Deconvolution against noise: least squares, FISTA, and a network whose layers are FISTA's steps (LISTA)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.seismic import survey as surveys
from jaxnets import losses
from jaxnets.data.batches import Dataset
from jaxnets.models import lista
from jaxnets.proximal import fista, linear, prox
from jaxnets.seismic import metrics
from jaxnets.training import loop, state, steps
from jaxnets.types import Array, Params

LEVELS = (20.0, 15.0, 10.0, 5.0)  # dB, signal to noise ratio of the traces
SHARES = (0.3, 0.1, 0.03, 0.01, 0.003)  # weights to choose from, of the largest one (l1) or of |A|² (l2)

CONVERGED = 200  # steps at most


def traces(*, count: int, samples: int, seed: int) -> Dataset:
    """`count` traces over as many earths: x `[trace, level, time]` at each noise level, y `[trace, time]` the reflectivity."""

    def make(seed):
        earth_key, noise_key = jax.random.split(jax.random.key(seed))
        earths = jax.vmap(lambda key: surveys.earth(key, 1, samples)[0])(jax.random.split(earth_key, count))
        at_level = jax.vmap(lambda key, snr: surveys.modelled(earths, key, snr)["traces"], out_axes=1)
        x = at_level(jax.random.split(noise_key, len(LEVELS)), jnp.array(LEVELS))
        return Dataset(x, surveys.modelled(earths, noise_key, LEVELS[0])["reflectivity"])

    return jax.jit(make)(seed)


def compare(
    wavelet: Array,
    train: Dataset,
    test: Dataset,
    *,
    layers: int,
    training_steps: int,
    batch: int,
    lr: float,
    seed: int,
    callback: Callable,
) -> dict[str, np.ndarray]:
    """SNR (dB) of the reflectivity of the test traces at each noise level; all choices are made on the training traces.

    One network per level, each begun as `layers` steps of FISTA at a fraction of the best weight, all trained as one program.
    """
    solvers = {
        "least squares (l2)": (prox.squared_l2, fista.gradient(), CONVERGED),
        "FISTA, converged": (prox.l1, fista.gradient(), CONVERGED),
        f"FISTA, {layers} steps": (prox.l1, fista.never(), layers),
    }
    found, levels, weights = {}, np.arange(len(LEVELS)), np.zeros(0)
    for name, (term, restart, limit) in solvers.items():
        solve = jax.jit(functools.partial(sweep, wavelet, term=term, restart=restart, max_steps=limit))
        quality, tried = (np.asarray(values) for values in solve(train[: len(test)]))
        best = quality.argmax(axis=1)
        weights = tried[levels, best] / 4  # the networks start at the last ones: below the best weight they learn more
        found[name] = np.asarray(solve(test)[0])[levels, best]
    model = lista.ConvolutionalLista(wavelet=wavelet, layers=layers, penalty=1.0, momentum=True)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, training_steps)))
    loss = steps.supervised(model.apply, losses.squared)
    each = (0, Dataset(1, None, None))  # a network and its noise level; the same reflectivity

    def create(key, weight):
        params: Params = dict(model.init(key, train.x[0, 0]))["params"]
        params = {**params, "log_threshold": params["log_threshold"] + jnp.log(weight)}
        return state.from_params(params, optimizer, key)

    members = jax.vmap(create)(jax.random.split(jax.random.key(seed), len(LEVELS)), jnp.asarray(weights, wavelet.dtype))
    fitted = loop.fit(
        jax.vmap(steps.make_train_step(loss, optimizer), in_axes=each),
        members,
        train,
        batch=batch,
        steps=training_steps,
        log_every=max(1, training_steps // 20),
        evaluate_every=max(1, training_steps // 20),
        seed=seed,
        scan=True,
        evaluate=jax.vmap(steps.make_eval_step(loss), in_axes=each),
        test=test,
        callback=callback,
    )
    estimate = jax.jit(jax.vmap(lambda params, x: model.apply({"params": params}, x), in_axes=(0, 1)))(
        fitted.state.params, test.x
    )
    found[f"LISTA, {layers} layers"] = np.array([metrics.snr_db(x, test.y) for x in estimate])
    return found


def sweep(wavelet: Array, data: Dataset, **options) -> tuple[Array, Array]:
    """SNR (dB) of the reflectivity and the weight itself, `[level, share]`, for each noise level and each of `SHARES`."""

    def one(x, share):
        estimate, weight = deconvolve(wavelet, x, share, **options)
        return metrics.snr_db(estimate, data.y), weight

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(1, None))(data.x, jnp.array(SHARES))


def deconvolve(wavelet, traces, share, *, term, restart, max_steps):
    """Reflectivity of all traces, and the weight: a share of lambda_max, of l2 that of the operator's largest squared gain."""
    operator = linear.convolution(wavelet, traces.shape)
    problem = fista.least_squares(operator, traces)
    if term is prox.l1:
        weight = share * fista.lam_max(problem, term(1.0))
    else:
        weight = share * jnp.max(jnp.abs(jnp.fft.rfft(wavelet, 512))) ** 2
    options = {"restart": restart, "stop": fista.residual(1e-3), "max_steps": max_steps}
    return fista.fista(problem, term(weight), jnp.zeros_like(traces), **options).x, weight
