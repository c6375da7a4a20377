"""The problems of `proximal.py` as the peers state them: each in its fastest form found, options that cost time switched off.

Each function is a case of `compare`, or makes one. pylops computes its objective at every step, one more pass over A, unasked.
"""

import functools

import numpy as np

from experiments.benchmarks import proximal_problems as problems


def _float32(problem):
    return problem.data.astype(np.float32), problem.y.astype(np.float32)


# --- pylops and pyproximal ---


def _pylops_operator(problem):
    import pylops

    data, _ = _float32(problem)
    if problem.kind == "dense":
        return pylops.MatrixMult(data, dtype="float32")
    if problem.kind == "convolution":
        dims = problem.shape if problem.shape[0] > 1 else problem.shape[1]
        return pylops.signalprocessing.Convolve1D(dims, data, offset=data.size // 2, dtype="float32")
    transform = pylops.signalprocessing.DCT(problem.shape, dtype="float32")
    mask = data.ravel()  # not Diagonal @ DCT.H: its answers have two dimensions, which pyproximal can't take
    return pylops.FunctionOperator(
        lambda x: mask * transform.rmatvec(x), lambda y: transform.matvec(mask * y), mask.size, mask.size, dtype="float32"
    )


def pylops(problem, L):
    from pylops.optimization.cls_sparsity import FISTA

    if problem.group:
        raise ImportError("pylops: its FISTA has no group norm")
    operator, y = _pylops_operator(problem), problem.y.astype(np.float32).ravel()
    # It thresholds at eps * alpha / 2.
    options = {"eps": float(2 * problem.weight), "alpha": 1 / L, "tol": 0.0, "preallocate": True}

    def run(steps):
        return lambda: FISTA(operator).solve(y, x0=np.zeros(operator.shape[1], np.float32), niter=steps, **options)[0]

    def iterates():
        solver = FISTA(operator)
        x = solver.setup(y, x0=np.zeros(operator.shape[1], np.float32), niter=problems.MAX_STEPS, **options)
        z = x.copy()
        for _ in range(problems.MAX_STEPS):
            x, z, _ = solver.step(x, z)
            yield x

    return problems.Solver(run, iterates)


def pyproximal(problem, L):
    from pyproximal.optimization.cls_primal import ProximalGradient
    from pyproximal.proximal import L1, L2, L21

    operator, y = _pylops_operator(problem), problem.y.astype(np.float32).ravel()
    smooth = L2(Op=operator, b=y)
    nonsmooth = L21(ndim=problem.shape[0], sigma=problem.weight) if problem.group else L1(sigma=problem.weight)

    def options():
        # Its momentum "fista" is a numpy scalar that turns everything into float64; this one has the same rate.
        x0 = np.zeros(operator.shape[1], np.float32)
        return {"proxf": smooth, "proxg": nonsmooth, "x0": x0, "tau": 1 / L, "acceleration": "vandenberghe"}

    def run(steps):
        return lambda: ProximalGradient().solve(**options(), niter=steps)[0]

    def iterates():
        solver = ProximalGradient()
        x, y = solver.setup(**options(), niter=problems.MAX_STEPS)
        for _ in range(problems.MAX_STEPS):
            x, y = solver.step(x, y)
            yield x

    return problems.Solver(run, iterates)


# --- jaxopt and scico ---


def _jax_forward(kind, fft):
    """`forward(data, x)`; convolutions by `jnp.convolve`, or by FFT."""
    import jax
    import jax.numpy as jnp

    def by_fft(wavelet, x):
        size, first = x.shape[-1] + wavelet.size, wavelet.size // 2
        size += -size % 128
        return jnp.fft.irfft(jnp.fft.rfft(wavelet, size) * jnp.fft.rfft(x, size), size)[:, first : first + x.shape[-1]]

    def directly(wavelet, x):
        return jax.vmap(lambda trace: jnp.convolve(trace, wavelet, mode="same"))(x)

    return {
        "dense": lambda a, x: a @ x,
        "convolution": by_fft if fft else directly,
        "dct": lambda mask, x: mask * jax.scipy.fft.idctn(x, norm="ortho"),
    }[kind]


def jaxopt(problem, L, fft=False, jit=True):
    import jax
    import jax.numpy as jnp
    from jaxopt import ProximalGradient, prox

    forward = _jax_forward(problem.kind, fft)
    data, y = map(jnp.asarray, _float32(problem))
    weight, x0 = jnp.asarray(problem.weight, jnp.float32), jnp.zeros(problem.shape)

    def smooth(x, data, y):
        return 0.5 * jnp.sum((forward(data, x) - y) ** 2)

    def groups(x, weight, scaling=1.0):
        return jax.vmap(prox.prox_group_lasso, (1, None, None), 1)(x, weight, scaling)

    def solver(steps):
        nonsmooth = groups if problem.group else prox.prox_lasso
        return ProximalGradient(smooth, nonsmooth, stepsize=1 / L, maxiter=steps, tol=0.0, implicit_diff=False)

    def run(steps):
        method = solver(steps)
        solve = method.run if not jit else jax.jit(method.run)
        return lambda: solve(x0, weight, data, y).params.block_until_ready()

    def iterates():
        one = solver(1)
        update, x, state = jax.jit(one.update), x0, one.init_state(x0, weight, data, y)
        for _ in range(problems.MAX_STEPS):
            x, state = update(x, state, weight, data, y)
            yield x

    return problems.Solver(run, iterates)


def jaxopt_run(problem, L):
    return jaxopt(problem, L, jit=False)


def jaxopt_fft(problem, L):
    return jaxopt(problem, L, fft=True)


def scico(problem, L, fft=False):
    import jax.numpy as jnp
    from scico import functional, linop, loss
    from scico.optimize import AcceleratedPGM

    forward = _jax_forward(problem.kind, fft)
    data, y = map(jnp.asarray, _float32(problem))
    if problem.kind == "dense":
        operator = linop.MatrixOperator(data)
    else:
        operator = linop.LinearOperator(
            problem.shape, y.shape, eval_fn=lambda x: forward(data, x), input_dtype=jnp.float32, jit=True
        )
    smooth = loss.SquaredL2Loss(y, operator)
    nonsmooth = float(problem.weight) * (functional.L21Norm(l2_axis=0) if problem.group else functional.L1Norm())
    quiet = {"fields": {"Iter": "%d"}, "itstat_func": lambda solver: (solver.itnum,)}

    def solver(steps):
        return AcceleratedPGM(smooth, nonsmooth, L0=L, x0=jnp.zeros(problem.shape), maxiter=steps, itstat_options=quiet)

    def run(steps):
        return lambda: solver(steps).solve().block_until_ready()

    def iterates():
        one = solver(problems.MAX_STEPS)
        for _ in range(problems.MAX_STEPS):
            one.step()
            yield one.x

    return problems.Solver(run, iterates)


def scico_fft(problem, L):
    return scico(problem, L, fft=True)


def pylops_profile(arguments):
    return problems.prepare(pylops, arguments)


def pyproximal_profile(arguments):
    return problems.prepare(pyproximal, arguments)


def jaxopt_profile(arguments):
    return problems.prepare(jaxopt, arguments)


def jaxopt_run_profile(arguments):
    return problems.prepare(jaxopt_run, arguments)


def jaxopt_fft_profile(arguments):
    return problems.prepare(jaxopt_fft, arguments)


def scico_profile(arguments):
    return problems.prepare(scico, arguments)


def scico_fft_profile(arguments):
    return problems.prepare(scico_fft, arguments)


# --- coordinate descent ---


def _coefficients(model, a, y):
    return model.fit(a, y).coef_


def _to_gap(name, Lasso, gap, **options):
    """The loosest tolerance, three to a decade, with which a Lasso reaches the gap."""
    problem = problems.PROBLEMS[name]()
    data, y = _float32(problem)
    a, rows = np.asfortranarray(data), len(y)
    for tolerance in 10.0 ** -np.arange(1, 10, 1 / 3):
        model = Lasso(alpha=problem.weight / rows, fit_intercept=False, tol=tolerance, **options)
        reached = problem.gap(_coefficients(model, a, y))
        if reached <= gap:
            return functools.partial(_coefficients, model, a, y), {"tolerance": tolerance, "gap": reached}
    return problems.nothing, {"gap": None}


def scikit_learn(name, gap):
    from sklearn.linear_model import Lasso

    return _to_gap(name, Lasso, float(gap), copy_X=False)


def celer(name, gap):
    from celer import Lasso

    return _to_gap(name, Lasso, float(gap))


def skglm(name, gap):
    from skglm import Lasso

    return _to_gap(name, Lasso, float(gap))


# --- many small problems ---


def _all_coefficients(models, a, y):
    return np.stack([_coefficients(*case) for case in zip(models, a, y, strict=True)])


def scikit_learn_loop(gap):
    from sklearn.linear_model import Lasso

    a, y, weight = problems.small_problems()
    a = [np.asfortranarray(matrix) for matrix in a]
    for tolerance in 10.0 ** -np.arange(1, 8, 1 / 3):
        models = [Lasso(alpha=w / 50, fit_intercept=False, tol=tolerance, copy_X=False) for w in weight]

        run = functools.partial(_all_coefficients, models, a, y)
        reached = problems.small_gaps(run()).max()
        if reached <= float(gap):
            return run, {"tolerance": tolerance, "gap": reached}
    return problems.nothing, {"gap": None}


def pylops_loop(gap, oracle=False):
    """One number of steps for all problems, the fewest that brings each to the gap; with an oracle, each problem its own."""
    import pylops
    from pylops.optimization.cls_sparsity import FISTA

    a, y, weight = problems.small_problems()
    operators = [pylops.MatrixMult(matrix, dtype="float32") for matrix in a]
    step_sizes = 1 / (1.02 * np.linalg.norm(a, 2, (1, 2)) ** 2)
    options = [
        {"eps": float(2 * w), "alpha": float(s), "tol": 0.0, "preallocate": True}
        for w, s in zip(weight, step_sizes, strict=True)
    ]
    solvers = [FISTA(operator) for operator in operators]
    x = [s.setup(v, x0=np.zeros(100, np.float32), niter=1000, **o) for s, v, o in zip(solvers, y, options, strict=True)]
    z, steps, answers = [v.copy() for v in x], np.zeros(len(a), int), np.zeros((len(a), 100))
    for k in range(1, 1000):
        unfinished = np.flatnonzero(steps == 0)
        if not unfinished.size:
            break
        for i in unfinished:
            x[i], z[i], _ = solvers[i].step(x[i], z[i])
            answers[i] = x[i]
        steps[unfinished] = np.where(problems.small_gaps(answers)[unfinished] <= float(gap), k, 0)
    if not oracle:
        steps[:] = steps.max()

    def run():
        return np.stack(
            [
                FISTA(operator).solve(data, x0=np.zeros(100, np.float32), niter=int(n), **option)[0]
                for operator, data, option, n in zip(operators, y, options, steps, strict=True)
            ]
        )

    return run, {"steps": float(steps.mean()), "gap": float(problems.small_gaps(run()).max())}


def pylops_loop_oracle(gap):
    return pylops_loop(gap, oracle=True)
