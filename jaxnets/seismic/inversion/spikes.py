"""Sparse-spike deconvolution: `trace = wavelet * reflectivity + noise`, few reflections."""

from jaxnets.proximal import linear, prox
from jaxnets.seismic.inversion import problem
from jaxnets.types import Array, Float


def spikes(
    traces: Float[Array, "*trace time"],
    wavelet: Float[Array, "... samples"],
    *,
    term: prox.Term | None = None,
) -> problem.Problem:
    """`minimize 1/2 |w * r - traces|^2 + weight |r|_1` over the reflectivity `r`; `term` replaces `|r|_1`.

    Time zero of the wavelet is its middle sample; `wavelets.check_interval` says whether it is sampled as the data are. Several
    traces make one problem with one weight; `jax.vmap` over traces makes each its own, which stops on its own.

    Raises:
      ValueError: a wavelet of even length, or neither one nor one per trace.
      InputError: NaN in the traces.
    Source: Taylor, Banks & McCoy (1979), Deconvolution with the l1 norm, Geophysics 44(1), doi:10.1190/1.1440921.
    """
    problem.check_traces(traces, "spikes")
    return problem.Problem(traces, linear.convolution(wavelet, traces), prox.l1(1.0) if term is None else term)


def multichannel_spikes(traces: Float[Array, "trace time"], wavelet: Float[Array, "... samples"]) -> problem.Problem:
    """`spikes` whose traces share their reflection times: `weight Σ_t |r[:, t]|_2`, one norm across the traces at each time.

    For neighbors along a flat (or flattened) horizon; amplitudes and signs are free. Take few traces at a time where it dips.
    """
    return spikes(traces, wavelet, term=prox.group_l21(1.0, axis=0))
