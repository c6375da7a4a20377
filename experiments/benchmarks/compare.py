"""Timing implementations side by side: each in a process of its own, pinned to the same cores, in alternating repeats.

A case is a function that prepares its work and returns a callable to be timed; the callable returns when the result is there.
It may return a dictionary of facts beside it, such as the accuracy that was reached.
No two run at once, and neither's thread pool lives in the other's process. Figures are ratios of medians.
"""

import dataclasses
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each repeat of one case."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Worker:
    """A case, called with `arguments`, in its own process; `ready` is False when its framework is not installed.

    Workers prepare side by side; asking one whether it is ready waits for it.
    """

    def __init__(self, module: str, case: str, python: str = sys.executable, arguments: tuple[str, ...] = (), cores: int = 1):
        self.process = subprocess.Popen(
            [python, "-m", "experiments.benchmarks.compare", str(cores), module, case, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(cores), "JAX_PLATFORMS": "cpu"},
        )

    @functools.cached_property
    def facts(self) -> dict[str, Any] | None:
        """What the case says of itself; None without its framework."""
        return json.loads(self._line())

    @property
    def ready(self) -> bool:
        return self.facts is not None

    def time(self) -> float:
        """One repeat, in seconds."""
        print("go", file=self.process.stdin, flush=True)
        return float(self._line())

    def close(self) -> None:
        self.process.communicate()

    def _line(self) -> str:
        line = next(iter(self.process.stdout or ()), "").strip()
        if not line:
            raise RuntimeError("the benchmark's worker process ended; its error is above")
        return line


def alternate(workers: dict[str, Worker], repeats: int) -> dict[str, Timing]:
    """Times every available worker in turn, `repeats` times."""
    ready = {name: worker.ready for name, worker in workers.items()}
    seconds: dict[str, list[float]] = {name: [] for name, there in ready.items() if there}
    for _ in range(repeats):
        for name, values in seconds.items():
            values.append(workers[name].time())
    return {name: Timing(values) for name, values in seconds.items()}


def report(title: str, timings: dict[str, Timing], ours: str) -> None:
    """Prints medians, ranges, and the ratio of our median to each peer's (below 1: we are faster)."""
    print(f"\n{title}")
    for name, timing in timings.items():
        ratio = "" if name == ours else f"   ours / this = {timings[ours].median / timing.median:.2f}"
        low, high = min(timing.seconds) * 1e3, max(timing.seconds) * 1e3
        print(f"  {name:<28} median {timing.median * 1e3:9.2f} ms  [{low:.2f}, {high:.2f}]{ratio}")


def _work(cores: str, module: str, case: str, *arguments: str) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-int(cores) :])
    try:
        run = getattr(importlib.import_module(module), case)(*arguments)
    except ImportError as error:
        print(error, file=sys.stderr)
        print("null", flush=True)
        return
    run, facts = run if isinstance(run, tuple) else (run, {})
    start = time.perf_counter()
    for _ in range(3):
        if time.perf_counter() - start < 2:
            run()
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    _work(*sys.argv[1:])
