"""Derivatives of a minimizer by its fixed point `x = prox(x - s grad f(x), s)`, not through the steps that found it.

Let `M = I - s H` with `H` the Hessian of `f`, `D` the Jacobian of the prox at `v = x - s grad f(x)`, `w` the change of the prox
by its own parameters and `u` that of `v` by those of `f`. The minimizer moves by `dx`, `(I - D M) dx = D u + w`. As `D` is
symmetric with eigenvalues in [0, 1] (a prox is the gradient of a convex function, and nonexpansive), `dx = D q + w` makes it
symmetric and positive:

    (D - D M D) q = D (u + M w),

which conjugate gradients solve without a matrix. For the l1 norm `D` selects the support: what is solved is `A_S^H A_S`. Where
a denoiser stands in for a prox, `D` is not symmetric; GMRES solves the first system.
Source: implicit function theorem; Bertrand et al. (2022), JMLR 23(149); Bolte et al. (2021), arXiv:2106.04350.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse import linalg

from jaxnets.proximal import tree
from jaxnets.types import PyTree

MAX_STEPS = 1000  # of the conjugate gradients


@jax.custom_jvp
def attach(x: PyTree, problem, term, step_size) -> PyTree:
    """`x`, a minimizer of `problem + term` found somehow, with the derivatives that a minimizer has.

    In both modes, of any order, with respect to every array inside `problem` and `term`; `x` and the step size (any near
    `1 / L`) count as constants. The tangent is solved to 1e-6 in float32 and 1e-12 in float64, relative to its right-hand side,
    in at most 1000 iterations of one `A` and one `A^H` each. Where the minimizer isn't unique the derivative is one of many.
    """
    return x


@attach.defjvp
def _attach_jvp(primals, tangents):
    x, problem, term, step_size = primals
    _, problem_dot, term_dot, _ = tangents
    x = attach(x, problem, term, step_size)  # so that this rule has derivatives too

    def forward(problem, x):
        return _like(tree.add_scaled(x, -step_size, problem.gradient(x)), x)

    v, u = jax.jvp(lambda problem: forward(problem, x), (problem,), (problem_dot,))
    _, w = jax.jvp(lambda term: term.prox(v, step_size), (term,), (term_dot,))

    def M(q):
        return jax.jvp(lambda x: forward(problem, x), (x,), (q,))[1]

    def D(q):
        return jax.jvp(lambda v: term.prox(v, step_size), (v,), (q,))[1]

    tolerance = 1e-6 if jnp.finfo(tree.real_dtype(x)).eps > 1e-10 else 1e-12

    if not term.kind.symmetric:

        def system(dx):
            dx = tree.from_real(dx, x)
            return tree.to_real(tree.subtract(dx, D(M(dx))))

        def solve(system, b):
            return linalg.gmres(system, b, tol=tolerance, maxiter=MAX_STEPS // 20)[0]  # each of 20 steps

        b = tree.to_real(tree.add(D(u), w))
        return x, tree.from_real(lax.custom_linear_solve(system, b, solve, transpose_solve=solve), x)

    def system(q):
        q = D(tree.from_real(q, x))
        return tree.to_real(tree.subtract(q, D(M(q))))

    def solve(system, b):
        return linalg.cg(system, b, tol=tolerance, maxiter=MAX_STEPS)[0]

    b = tree.to_real(D(tree.add(u, M(w))))
    q = lax.custom_linear_solve(system, b, solve, symmetric=True)
    return x, tree.add(D(tree.from_real(q, x)), w)


def _like(a, b):
    return jax.tree.map(lambda a, b: a.astype(b.dtype), a, b)
