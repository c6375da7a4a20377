"""Seismic inversion: each a problem as data, solved by FISTA at a weight that is given or chosen, and scored.

    problem = inversion.spikes(traces, wavelet)                       # a Problem: look inside, replace a field, vmap it
    result = inversion.solve(problem, inversion.discrepancy(0.1))     # or a number, relative(0.1), tuned(held_out(keep))
    result.model, result.solution.status, inversion.scores(result, truth)

Each trace its own problem, its own weight, stopping on its own, debiased:

    def one(trace):
        return inversion.solve(inversion.spikes(trace, wavelet), inversion.relative(0.1), debias=20)

    result = jax.jit(jax.vmap(one))(traces)
"""

from jaxnets.seismic.inversion.impedance import blocky, damped, poststack, prestack, sparse_steps
from jaxnets.seismic.inversion.problem import Prior, Problem, Result, check_traces, debiased, solve
from jaxnets.seismic.inversion.processing import blending, deblending, demultiple, interpolation, patched_fk
from jaxnets.seismic.inversion.scoring import scores, spike_scores
from jaxnets.seismic.inversion.spikes import multichannel_spikes, spikes
from jaxnets.seismic.inversion.weights import discrepancy, held_out, relative, sure, tuned

__all__ = [
    "Prior",
    "Problem",
    "Result",
    "blending",
    "blocky",
    "check_traces",
    "damped",
    "debiased",
    "deblending",
    "demultiple",
    "discrepancy",
    "held_out",
    "interpolation",
    "multichannel_spikes",
    "patched_fk",
    "poststack",
    "prestack",
    "relative",
    "scores",
    "solve",
    "sparse_steps",
    "spike_scores",
    "spikes",
    "sure",
    "tuned",
]
