"""Proximal gradient against pylops, pyproximal, jaxopt, scico, scikit-learn, skglm and celer, in float32 on a CPU.

    python -m experiments.benchmarks.proximal [--only a,c] [--cores 2] [--repeats 15] [--scico-python PATH] [--out FOLDER]

Each solver runs in a process of its own, one at a time, and may use all of `--cores` (the default of every one of them). Every
answer is judged by the same plain numpy in float64, and every method of a, b and d gets the same step size, 1 / L.

a: dense lasso 2000x5000, 30 iterations.  b: 512 traces of 1024 samples deconvolved, 30 iterations.
c: the dense lasso to a relative duality gap of 1e-6; each peer with the loosest tolerance that reaches it.
d: six problems to `F(x) - F* <= accuracy (F(0) - F*)`, each method stopped after its fewest steps, drawn as a performance profile: how
   many problems a method solves within a factor of the fastest one's time. Source: Dolan & More (2002), doi:10.1007/s101070100263.
e: 1000 lassos of 50x100, each with its own matrix, to a gap of 1e-3: ours in one `vmap`, the others in a loop.

Measured DATE: pending.

What each peer can't do, and what is done for it:
- pylops' FISTA has no group norm. It computes its objective, one more pass over A, at every step.
- pyproximal's momentum "fista" promotes float32 to float64 under numpy 2; "vandenberghe" doesn't and is used.
- scico 0.0.7 needs jax <= 0.8: `--scico-python` names an interpreter that has both. Its statistics are switched off.
- jaxopt and scico bring no operators: convolutions by `jnp.convolve`, and once more by FFT. jaxopt's `run` is wrapped in `jax.jit`; called as in
  its documentation ("jaxopt run") it traces its loop again every time.
Peers that aren't installed are left out.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import numpy as np

from experiments.benchmarks import compare
from experiments.benchmarks import proximal_problems as problems
from experiments.harness import figures

OURS, PEERS = "experiments.benchmarks.proximal", "experiments.benchmarks.proximal_peers"
STEPS = 30
PROFILE = (
    "dense",
    "dense, correlated",
    "deconvolution, one trace",
    "deconvolution, 128 traces",
    "interpolation by DCT",
    "deconvolution by groups",
)


# --- our side ---------------------------------------------------------------------------------------------------------------------


def _stated(problem):
    """The problem and its term, as arrays of float32."""
    import jax.numpy as jnp

    from jaxnets.proximal import fista, linear, prox

    data, y = jnp.asarray(problem.data, jnp.float32), jnp.asarray(problem.y, jnp.float32)
    if problem.kind == "dense":
        operator = linear.matrix(data)
    elif problem.kind == "convolution":
        operator = linear.convolution(data, problem.shape)
    else:
        operator = linear.diagonal(data) @ linear.dct(problem.shape, axes=(0, 1)).H
    weight = jnp.asarray(problem.weight, jnp.float32)
    return fista.least_squares(operator, y), prox.group_l21(weight, axis=0) if problem.group else prox.l1(weight)


def jaxnets(problem, L, **options):
    """FISTA with gradient restart at a given step size."""
    import jax
    import jax.numpy as jnp

    from jaxnets.proximal import fista

    stated, x0 = _stated(problem), jnp.zeros(problem.shape)
    options = {"step": fista.constant(1 / L), **options}

    def run(steps):
        solve = jax.jit(lambda stated, x0: fista.fista(*stated, x0, stop=None, max_steps=steps, **options).x)
        return lambda: solve(stated, x0).block_until_ready()

    def iterates():
        state = fista.init(*stated, x0, **{name: options[name] for name in ("step", "momentum") if name in options})
        step = jax.jit(lambda stated, state: fista.step(*stated, state, **options))
        for _ in range(problems.MAX_STEPS):
            state = step(stated, state)
            yield state.x

    return problems.Solver(run, iterates)


def jaxnets_greedy(problem, L):
    """Greedy FISTA at a given step size."""
    from jaxnets.proximal import fista

    return jaxnets(problem, L, momentum=fista.greedy())


def jaxnets_profile(arguments):
    return problems.prepare(jaxnets, arguments)


def jaxnets_greedy_profile(arguments):
    return problems.prepare(jaxnets_greedy, arguments)


def jaxnets_gap(name, gap):
    """To a duality gap, nothing given: as a user writes it."""
    import jax
    import jax.numpy as jnp

    from jaxnets.proximal import fista

    problem = problems.PROBLEMS[name]()
    stated, x0 = _stated(problem), jnp.zeros(problem.shape)
    solve = jax.jit(lambda stated, x0: fista.fista(*stated, x0, momentum=fista.greedy(), stop=fista.gap(float(gap)), max_steps=2000))
    return _solved(problem, lambda: jax.block_until_ready(solve(stated, x0)))


def jaxnets_working_set(name, gap):
    import jax

    from jaxnets.proximal import fista

    problem = problems.PROBLEMS[name]()
    stated = _stated(problem)
    solve = jax.jit(lambda stated: fista.working_set(*stated, capacity=512, stop=fista.gap(float(gap))))
    return _solved(problem, lambda: jax.block_until_ready(solve(stated)))


def _solved(problem, run):
    solution = run()
    return run, {"steps": int(solution.steps), "status": int(solution.status), "gap": problem.gap(solution.x)}


def jaxnets_vmap(gap):
    import jax
    import jax.numpy as jnp

    from jaxnets.proximal import fista, linear, prox

    def lasso(a, y, weight):
        smooth, stop = fista.least_squares(linear.matrix(a), y), fista.gap(float(gap))
        return fista.fista(smooth, prox.l1(weight), jnp.zeros(a.shape[1]), momentum=fista.greedy(), stop=stop, max_steps=1000)

    data = tuple(map(jnp.asarray, problems.small_problems()))
    solve = jax.jit(jax.vmap(lasso))
    solution = solve(*data)
    facts = {"steps": float(solution.steps.mean()), "most": int(solution.steps.max()), "gap": float(problems.small_gaps(np.asarray(solution.x)).max())}
    return lambda: jax.block_until_ready(solve(*data)), facts


# --- the harness ------------------------------------------------------------------------------------------------------------------


def time_cases(title, cases, options, arguments, repeats=None):
    """Runs `cases` side by side; returns {case: {seconds of the median, lowest, highest, facts}}."""
    workers = {}
    for case in cases:
        module = OURS if case.startswith("jaxnets") else PEERS
        python = options.scico_python if case.startswith("scico") else sys.executable
        workers[case] = compare.Worker(module, case, python, arguments, options.cores)
    timings = compare.alternate(workers, repeats or options.repeats)
    facts = {case: workers[case].facts for case in timings}
    for worker in workers.values():
        worker.close()
    compare.report(title, timings, ours=cases[0])
    for case, fact in facts.items():
        print(f"    {case}: {fact}")
    return {
        case: {"median": timing.median, "low": min(timing.seconds), "high": max(timing.seconds), **facts[case]}
        for case, timing in timings.items()
    }


def _largest(problem):
    return 1.02 * problem.largest_singular_value() ** 2  # the power iteration comes from below


def fixed_steps(name, cases, options):
    problem = problems.PROBLEMS[name]()
    arguments = json.dumps({"problem": name, "L": _largest(problem), "steps": STEPS})
    return {name: time_cases(f"{name}, {STEPS} iterations", cases, options, (arguments,))}


def bar_a(options):
    return fixed_steps("dense 2000x5000", ("jaxnets_profile", "pylops_profile", "jaxopt_profile", "jaxopt_run_profile"), options)


def bar_b(options):
    return fixed_steps("deconvolution 512x1024", ("jaxnets_profile", "pylops_profile", "jaxopt_profile", "jaxopt_run_profile", "jaxopt_fft_profile"), options)


def bar_c(options):
    cases = ("jaxnets_working_set", "jaxnets_gap", "scikit_learn", "skglm", "celer")
    names = ("dense 2000x5000", "dense 2000x5000, dense answer")
    return {name: time_cases(f"{name} to a gap of 1e-6", cases, options, (name, "1e-6")) for name in names}


def bar_d(options):
    peers = ("pylops", "pyproximal", "jaxopt", "jaxopt_fft", "scico", "scico_fft")
    cases = [f"{solver}_profile" for solver in ("jaxnets_greedy", "jaxnets", *peers)]
    results = {}
    for name in PROFILE:
        problem = problems.PROBLEMS[name]()
        least, start = problem.minimum(), problem.objective(np.zeros(problem.shape))
        arguments = {"problem": name, "L": _largest(problem), "target": least + options.accuracy * (start - least)}
        fft = problem.kind == "convolution"
        title = f"{name}, accuracy {options.accuracy:g}"
        these = [case for case in cases if fft or "fft" not in case]
        results[name] = time_cases(title, these, options, (json.dumps(arguments),), repeats=min(5, options.repeats))
    return results


def bar_e(options):
    cases = ("jaxnets_vmap", "scikit_learn_loop", "pylops_loop")
    return {"1000 lassos of 50x100": time_cases("1000 lassos of 50x100 to a gap of 1e-3", cases, options, ("1e-3",), min(5, options.repeats))}


BARS = {"a": bar_a, "b": bar_b, "c": bar_c, "d": bar_d, "e": bar_e}


def profile(results):
    """Dolan & More's ratios `[library, problem]`, infinite where not solved; of a library's two forms the faster counts."""
    times = {}
    for i, cases in enumerate(results.values()):
        for case, result in cases.items():
            library = case.removesuffix("_profile").removesuffix("_fft").removesuffix("_greedy")
            row = times.setdefault(library, np.full(len(results), np.inf))
            if result["steps"] is not None:
                row[i] = min(row[i], result["median"])
    fastest = np.min(list(times.values()), axis=0)
    return {library: row / fastest for library, row in times.items()}


def draw_profile(ratios, accuracy):
    def draw(figure):
        axis = figure.add_subplot()
        end = 1.5 * max(row[np.isfinite(row)].max() for row in ratios.values())
        for library, row in ratios.items():
            solved = np.sort(row[np.isfinite(row)])
            axis.step([1, *solved, end], [0, *range(1, len(solved) + 1), len(solved)], where="post", label=library)
        axis.set_xscale("log")
        axis.set(
            xlabel="time over that of the fastest", ylabel="problems solved", title=f"{len(PROFILE)} problems to {accuracy:g} of the objective"
        )
        axis.legend(loc="lower right")

    return figures.png(draw, size=(7, 4))


def table(results):
    """The markdown table: one row per problem and case, the ratio is the case's median over ours."""
    lines = ["| problem | solver | ms (low, high) | this / ours | facts |", "|---|---|---|---|---|"]
    for cases in results.values():
        for name, timed in cases.items():
            ours = next(iter(timed.values()))["median"]
            for case, result in timed.items():
                facts = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items() if k not in ("median", "low", "high"))
                low, median, high = (1e3 * result[k] for k in ("low", "median", "high"))
                solver = case.removesuffix("_profile").replace("_", " ")
                lines.append(f"| {name} | {solver} | {median:.2f} ({low:.2f}, {high:.2f}) | {result['median'] / ours:.2f} | {facts} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="a,b,c,d,e", help="bars, by their letters")
    parser.add_argument("--cores", type=int, default=2, help="for each solver")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--accuracy", type=float, default=1e-5, help="of the objective, for d")
    parser.add_argument("--scico-python", default=sys.executable, help="interpreter that has scico")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()), help="folder for the table, JSON and PNG")
    options = parser.parse_args()
    results = {letter: BARS[letter](options) for letter in options.only.split(",")}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "proximal.json").write_text(json.dumps(results, indent=1))
    (options.out / "proximal.md").write_text(table(results))
    print("\n" + table(results))
    if "d" in results:
        ratios = profile(results["d"])
        (options.out / "proximal.png").write_bytes(draw_profile(ratios, options.accuracy))
        for library, row in ratios.items():
            print(f"{library:<12} times over the fastest: " + "  ".join(f"{ratio:.2f}" for ratio in row))
    print(f"written to {options.out}: {', '.join(sorted(path.name for path in options.out.glob('proximal.*')))}")


if __name__ == "__main__":
    main()
