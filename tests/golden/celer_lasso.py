"""Makes celer_lasso.npz: what celer answers to the four problems of tests/proximal/test_fista_bars.py.

Run: `python tests/golden/celer_lasso.py`, with the extras `test` and `bench`. Made 2026-11-22 with celer 0.7.4.
For each problem the indices and the values of the non-zeros, float64.
"""

import pathlib
import sys

import celer
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "proximal"))
from test_fista_bars import DATA, PROBLEMS

HERE = pathlib.Path(__file__).parent


def solve(matrix, y, lam):
    """`min 1/2 |A x - y|^2 + lam |x|_1`; celer divides the first term by the number of rows."""
    model = celer.Lasso(alpha=lam / len(y), fit_intercept=False, tol=1e-15, max_iter=200, max_epochs=200_000)
    return model.fit(np.asfortranarray(matrix), y).coef_


if __name__ == "__main__":
    arrays = {}
    for name, fraction in PROBLEMS:
        matrix, y, _ = DATA[name]
        x = solve(matrix, y, fraction * np.abs(matrix.T @ y).max())
        (support,) = np.nonzero(x)
        arrays |= {f"{name}_{fraction}_support": support.astype(np.int16), f"{name}_{fraction}_values": x[support]}
    np.savez_compressed(HERE / "celer_lasso.npz", **arrays)
