"""Proximal operators as plain data: `term.value(x)`, `term.prox(v, step)`, `term.conjugate(z)`."""

from jaxnets.proximal.prox.compose import dilate, orthogonal, plug_and_play, scale, tilt, translate, tree
from jaxnets.proximal.prox.nonconvex import l0, l_half
from jaxnets.proximal.prox.norms import elastic_net, group_l21, huber, l1, l2, squared_l2, zero
from jaxnets.proximal.prox.nuclear import nuclear
from jaxnets.proximal.prox.sets import box, l1_ball, l2_ball, linf_ball, nonnegative, simplex
from jaxnets.proximal.prox.term import Kind, Static, Term
from jaxnets.proximal.prox.variation import total_variation, total_variation_2d

__all__ = [
    "Kind",
    "Static",
    "Term",
    "box",
    "dilate",
    "elastic_net",
    "group_l21",
    "huber",
    "l0",
    "l1",
    "l1_ball",
    "l2",
    "l2_ball",
    "l_half",
    "linf_ball",
    "nonnegative",
    "nuclear",
    "orthogonal",
    "plug_and_play",
    "scale",
    "simplex",
    "squared_l2",
    "tilt",
    "total_variation",
    "total_variation_2d",
    "translate",
    "tree",
    "zero",
]
