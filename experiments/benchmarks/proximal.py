"""Proximal gradient against pylops, pyproximal, jaxopt, scico, scikit-learn, skglm and celer, in float32 on a CPU.

    python -m experiments.benchmarks.proximal [--only a,c] [--cores 2] [--repeats 15] [--scico-python PATH] [--out FOLDER]

Each solver runs in a process of its own, one at a time, and may use all of `--cores` (the default of every one of them). Every
answer is judged by the same plain numpy in float64, and every method of a, b and d gets the same step size, 1 / L.

a: dense lasso 2000x5000, 30 iterations.  b: 512 traces of 1024 samples deconvolved, 30 iterations.
c: the dense lasso to a relative duality gap of 1e-6; each peer with the loosest tolerance that reaches it.
d: six problems to `F(x) - F* <= accuracy (F(0) - F*)`, each method stopped after its fewest steps; a performance profile:
   how many problems a method solves within a factor of the fastest one's time (Dolan & More 2002, doi:10.1007/s101070100263).
e: 1000 lassos of 50x100, each with its own matrix, to a gap of 1e-3: ours in one `vmap`, the others in a loop.

Measured 2026-11-22, 2 shared cores (Intel Xeon), quiet, 9 repeats (d: 3), commit 52bd21e; the peer's time over ours, jax
0.10.2 / 0.12 (d: 0.10.2 only); pylops 2.8.0, jaxopt 0.8.5, scikit-learn 1.9.1, skglm 0.5, celer 0.7.4, scico 0.0.7:
  a (93 / 62 ms): pylops 1.07 / 1.29, jaxopt 1.10 / 1.55, its `run` 0.99 / 1.23.
  b (173 / 164 ms): pylops 2.7 / 2.5, jaxopt 1.7 / 7.3, by FFT 1.4 / 1.04.
  c (working set 18 / 19 ms): scikit-learn 1.6 / 1.7, skglm 3.5 / 3.8, celer 4.0 / 3.5. The denser answer (67 / 68 ms):
    0.62 / 0.63, skglm doesn't reach it, celer 1.17 / 1.13; `fista` without working set 65 / 62 ms.
  d: ahead on five problems; by groups jaxopt 0.66. Nearest otherwise: jaxopt 1.05 on one trace, pyproximal 1.17 on the DCT.
  e (294 / 256 ms): scikit-learn 2.5 / 2.5; pylops 16 / 15 with one number of steps for all, 5.4 / 4.8 with the oracle.

What each peer can't do, and what is done for it:
- pylops' FISTA has no group norm. It computes its objective, one more pass over A, at every step. In e it is told the number
  of steps, and once more ("oracle") that of each problem.
- pyproximal's momentum "fista" promotes float32 to float64 under numpy 2; "vandenberghe" doesn't and is used.
- scico 0.0.7 needs jax <= 0.8: `--scico-python` names an interpreter that has both. Its statistics are switched off.
- jaxopt and scico bring no operators: convolutions by `jnp.convolve`, and once more by FFT. jaxopt's `run` is wrapped in
  `jax.jit`; called as in its documentation ("run") it traces its loop again every time.
- skglm stops by the optimality conditions; in float32 it can stall above the gap, and is then left out.
Peers that aren't installed are left out.

Where we don't win: a against jaxopt under `jax.jit`: both read the matrix twice per step, which is all the time there is.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from experiments.benchmarks import compare
from experiments.benchmarks import proximal_problems as problems
from experiments.harness import figures

OURS, PEERS = "experiments.benchmarks.proximal", "experiments.benchmarks.proximal_peers"
STEPS = 30
CAPACITY = {"dense 2000x5000": 256, "dense 2000x5000, dense answer": 384}  # the answers have 86 and 257 non-zeros
PROFILE = (
    "dense",
    "dense, correlated",
    "deconvolution, one trace",
    "deconvolution, 128 traces",
    "interpolation by DCT",
    "deconvolution by groups",
)


# --- our side ---


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


def jaxnets(problem, L):
    """FISTA with gradient restart at a given step size."""
    import jax
    import jax.numpy as jnp

    from jaxnets.proximal import fista

    (smooth, term), x0, size = _stated(problem), jnp.zeros(problem.shape), fista.constant(1 / L)

    def run(steps):
        solve = jax.jit(lambda smooth, term, x0: fista.fista(smooth, term, x0, step=size, stop=None, max_steps=steps).x)
        return lambda: solve(smooth, term, x0).block_until_ready()

    def iterates():
        state = fista.init(smooth, term, x0, step=size)
        step = jax.jit(lambda smooth, term, state: fista.step(smooth, term, state, step=size))
        for _ in range(problems.MAX_STEPS):
            state = step(smooth, term, state)
            yield state.x

    return problems.Solver(run, iterates)


def jaxnets_profile(arguments):
    return problems.prepare(jaxnets, arguments)


def jaxnets_gap(name, gap):
    """To a duality gap, nothing given: as a user writes it."""
    import jax
    import jax.numpy as jnp

    from jaxnets.proximal import fista

    problem = problems.PROBLEMS[name]()
    (smooth, term), x0, stop = _stated(problem), jnp.zeros(problem.shape), fista.gap(float(gap))
    solve = jax.jit(lambda smooth, term, x0: fista.fista(smooth, term, x0, momentum=fista.greedy(), stop=stop, max_steps=2000))
    return _solved(problem, lambda: jax.block_until_ready(solve(smooth, term, x0)))


def jaxnets_working_set(name, gap):
    import jax

    from jaxnets.proximal import fista

    problem = problems.PROBLEMS[name]()
    smooth, term = _stated(problem)
    solve = jax.jit(lambda smooth, term: fista.working_set(smooth, term, capacity=CAPACITY[name], tolerance=float(gap)))
    return _solved(problem, lambda: jax.block_until_ready(solve(smooth, term)))


def _solved(problem, run):
    solution = run()
    return run, {"steps": int(solution.steps), "status": int(solution.status), "gap": problem.gap(solution.x)}


def jaxnets_vmap(gap):
    """The loosest tolerance, three to a decade, that the judge's gap agrees to: ours is of a better dual point."""
    import jax
    import jax.numpy as jnp

    from jaxnets.proximal import fista, linear, prox

    def lasso(tolerance, a, y, weight):
        smooth, stop = fista.least_squares(linear.matrix(a), y), fista.gap(tolerance)
        return fista.fista(smooth, prox.l1(weight), jnp.zeros(a.shape[1]), momentum=fista.greedy(), stop=stop, max_steps=1000)

    data = tuple(map(jnp.asarray, problems.small_problems()))
    solve = jax.jit(jax.vmap(lasso, in_axes=(None, 0, 0, 0)))
    for tolerance in float(gap) * 10.0 ** -np.arange(0, 3, 1 / 3):
        solution = solve(tolerance, *data)
        reached = float(problems.small_gaps(np.asarray(solution.x)).max())
        if reached <= float(gap):
            break
    facts = {"tolerance": tolerance, "steps": float(solution.steps.mean()), "most": int(solution.steps.max()), "gap": reached}
    return lambda: jax.block_until_ready(solve(tolerance, *data)), facts


# --- the harness ---


def time_cases(title, cases, options, arguments, repeats=None):
    """Runs `cases` side by side; returns {case: {seconds of the median, lowest, highest, facts}}."""
    workers = {}
    for case in cases:
        module = OURS if case.startswith("jaxnets") else PEERS
        python = options.scico_python if case.startswith("scico") else sys.executable
        workers[case] = compare.Worker(module, case, python, arguments, options.cores)
    facts: dict[str, Any] = {case: worker.facts for case, worker in workers.items()}
    able = {case: workers[case] for case, fact in facts.items() if fact is not None and fact["gap"] is not None}
    timings = compare.alternate(able, repeats or options.repeats)
    for worker in workers.values():
        worker.close()
    compare.report(title, timings, ours=cases[0])
    for case, fact in facts.items():
        print(f"    {case}: {fact or 'not installed, or the problem is beyond it'}")
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
    return fixed_steps(
        "dense 2000x5000", ("jaxnets_profile", "pylops_profile", "jaxopt_profile", "jaxopt_run_profile"), options
    )


def bar_b(options):
    return fixed_steps(
        "deconvolution 512x1024",
        ("jaxnets_profile", "pylops_profile", "jaxopt_profile", "jaxopt_run_profile", "jaxopt_fft_profile"),
        options,
    )


def bar_c(options):
    cases = ("jaxnets_working_set", "jaxnets_gap", "scikit_learn", "skglm", "celer")
    return {name: time_cases(f"{name} to a gap of 1e-6", cases, options, (name, "1e-6")) for name in CAPACITY}


def bar_d(options):
    peers = ("pylops", "pyproximal", "jaxopt", "jaxopt_fft", "scico", "scico_fft")
    cases = [f"{solver}_profile" for solver in ("jaxnets", *peers)]
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
    cases = ("jaxnets_vmap", "scikit_learn_loop", "pylops_loop", "pylops_loop_oracle")
    return {
        "1000 lassos of 50x100": time_cases(
            "1000 lassos of 50x100 to a gap of 1e-3", cases, options, ("1e-3",), min(5, options.repeats)
        )
    }


BARS = {"a": bar_a, "b": bar_b, "c": bar_c, "d": bar_d, "e": bar_e}


def profile(results):
    """Dolan & More's ratios `[library, problem]`, infinite where not solved; of a library's two forms the faster counts."""
    times = {}
    for i, cases in enumerate(results.values()):
        for case, result in cases.items():
            library = case.removesuffix("_profile").removesuffix("_fft")
            row = times.setdefault(library, np.full(len(results), np.inf))
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
            xlabel="time over that of the fastest",
            ylabel="problems solved",
            title=f"{len(PROFILE)} problems to {accuracy:g} of the objective",
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
                facts = ", ".join(
                    f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                    for k, v in result.items()
                    if k not in ("median", "low", "high")
                )
                low, median, high = (1e3 * result[k] for k in ("low", "median", "high"))
                solver = case.removesuffix("_profile").replace("_", " ")
                lines.append(
                    f"| {name} | {solver} | {median:.2f} ({low:.2f}, {high:.2f}) | {result['median'] / ours:.2f} | {facts} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="a,b,c,d,e", help="bars, by their letters")
    parser.add_argument("--cores", type=int, default=2, help="for each solver")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--accuracy", type=float, default=1e-5, help="of the objective, for d")
    parser.add_argument("--scico-python", default=sys.executable, help="interpreter that has scico")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()), help="folder for the table, JSON and PNG"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for letter in options.only.split(","):
        results[letter] = BARS[letter](options)
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
