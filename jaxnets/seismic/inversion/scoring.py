"""How good a result is, when the truth is known."""

import jax

from jaxnets.proximal import tree
from jaxnets.seismic import metrics
from jaxnets.seismic.checks import Scalar
from jaxnets.seismic.inversion.problem import Result
from jaxnets.types import Array, Float, PyTree


def scores(result: Result, truth: PyTree, *, baseline: PyTree = None) -> dict[str, PyTree]:
    """`snr_db` and `correlation` of the model, `gain_db` over a `baseline`'s SNR (what came in), `misfit = |d - F m| / |d|`.

    A model of several arrays (Vp, Vs, density) gives each score in the same structure.
    """
    found = {
        "snr_db": jax.tree.map(metrics.snr_db, result.model, truth),
        "correlation": jax.tree.map(metrics.correlation, result.model, truth),
        "misfit": tree.norm(result.residual) / tree.norm(tree.add(result.predicted, result.residual)),
    }
    if baseline is not None:
        found["gain_db"] = tree.subtract(found["snr_db"], jax.tree.map(metrics.snr_db, baseline, truth))
    return found


def spike_scores(
    result: Result, truth: Float[Array, "*trace time"], *, tolerance: int = 1, threshold: Scalar = 0.0
) -> dict[str, Array]:
    """`scores` of reflectivity, and its spikes': `f1` of the support within `tolerance` samples, the `bias` of amplitudes.

    `threshold` is the size from which a sample counts as a spike, in estimate and truth.
    """
    options = {"tolerance": tolerance, "threshold": threshold}
    return scores(result, truth) | {
        "f1": metrics.support_f1(result.model, truth, **options),
        "bias": metrics.amplitude_bias(result.model, truth, **options),
    }
