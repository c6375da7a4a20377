"""Forward models: impedance to traces, reflection against angle, time and depth, a synthetic earth and its noise.

A reflection belongs to the sample above its interface: `r[i]` lies between samples `i` and `i + 1`, and the last one is 0. So
everything keeps the length of the logs, and agrees with `linear.difference`.

    earth = modelling.layered_earth(key, traces=60, samples=2000, interval=0.0005, layers=40)   # finer than the data
    data = modelling.convolutional_model(modelling.reflectivity(earth.impedance), wavelet)[:, ::8]
    data = modelling.add_noise(noise_key, data, 10)
"""

from jaxnets.seismic.modelling.avo import (
    aki_richards,
    aki_richards_weights,
    avo_operator,
    fatti,
    fatti_weights,
)
from jaxnets.seismic.modelling.earth import Elastic, add_noise, coarsen_spikes, layered_earth
from jaxnets.seismic.modelling.poststack import (
    convolutional_model,
    impedance,
    log_reflectivity,
    poststack_operator,
    reflectivity,
)
from jaxnets.seismic.modelling.time_depth import depth, depth_to_time, nmo, time_to_depth, two_way_time
from jaxnets.seismic.modelling.zoeppritz import Scattering, zoeppritz, zoeppritz_pp

__all__ = [
    "Elastic",
    "Scattering",
    "add_noise",
    "aki_richards",
    "aki_richards_weights",
    "avo_operator",
    "coarsen_spikes",
    "convolutional_model",
    "depth",
    "depth_to_time",
    "fatti",
    "fatti_weights",
    "impedance",
    "layered_earth",
    "log_reflectivity",
    "nmo",
    "poststack_operator",
    "reflectivity",
    "time_to_depth",
    "two_way_time",
    "zoeppritz",
    "zoeppritz_pp",
]
