"""Baselines of the language models: probabilities that add up, and figures that can be computed another way."""

import collections
import gzip
import math

import numpy as np
import pytest

from experiments.sequence import baselines


def markov(length, rng):
    """A binary source whose next symbol is the exclusive or of the two before it, flipped with probability 0.1."""
    flips, ids = rng.random(length) < 0.1, [0, 1]
    for flip in flips[2:]:
        ids.append(ids[-1] ^ ids[-2] ^ int(flip))
    return np.array(ids)


@pytest.mark.parametrize("order", [0, 1, 5])
@pytest.mark.parametrize("held_out", [[], [3], [4, 0, 1]], ids=["seen", "unseen context", "longer context"])
def test_the_probabilities_of_all_symbols_sum_to_one(order, held_out):
    """Symbols 0..3 occur, 4 and 5 do not."""
    train = np.append(np.random.default_rng(0).choice(4, 200, p=[0.6, 0.3, 0.09, 0.01]), [0, 1, 0, 2])
    each = [baselines.counted(train, np.array([*held_out, s]), 6, order=order)[-1] for s in range(6)]
    np.testing.assert_allclose(np.exp(each).sum(), 1, rtol=1e-12)
    assert np.isfinite(each).all()


def test_counts_of_the_right_order_approach_the_entropy_of_a_source():
    ids = markov(20_000, np.random.default_rng(0))
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    costs = [-baselines.counted(ids[:15_000], ids[15_000:], 2, order=order).mean() for order in (0, 1, 2, 5)]
    # The held-out mean has standard error log(9) 0.3 / sqrt(5000) = 0.0093; orders 0 and 1 know nothing.
    np.testing.assert_allclose(costs[:2], math.log(2), atol=0.01)
    np.testing.assert_allclose(costs[2:], entropy, atol=0.03)


def test_a_small_example_by_hand():
    """0 1 0 1 1: after each symbol, what is left of its counts, and what is freed times the probability without context.

    Pairs (nothing 0), (1 0), (1 1) come once, (0 1) twice: n_1 = 3, n_2 = 1, Y = 3/5, D_1 = 1 - 2 Y n_2 / n_1 = 0.6, D_2 = 2.
    Without context both symbols count twice, 0 after nothing and 1, 1 after 0 and 1: Y = 0, D_2 = 2 frees all, p_0 = 1/2.
    """
    after_1, after_0 = np.exp(baselines.counted(np.array([0, 1, 0, 1, 1]), np.array([0, 0]), 2, order=1))
    np.testing.assert_allclose(after_1, (1 - 0.6 + (0.6 + 0.6) * 0.5) / 2)
    np.testing.assert_allclose(after_0, (0 + 2 * 0.5) / 2)


def by_dictionary(train, symbol, symbols, order):
    """The same formula, one gram at a time, with the counts in dictionaries."""
    padded = [None] * order + train.tolist()
    counts = collections.Counter(tuple(padded[i : i + order + 1]) for i in range(len(train)))
    levels = [counts] + [counts := collections.Counter(gram[1:] for gram in counts) for _ in range(order)]
    probability = 1 / symbols
    for k, counts in enumerate(reversed(levels)):
        n = [sum(count == times for count in counts.values()) for times in range(5)]
        y = n[1] / max(n[1] + 2 * n[2], 1)
        taken = [0] + [min(max(i - (i + 1) * y * n[i + 1] / max(n[i], 1), 0.1), i) for i in (1, 2, 3)]
        history = tuple(padded[len(padded) - k :])
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == history}
        if after:
            freed = sum(taken[min(count, 3)] for count in after.values())
            kept = after.get(symbol, 0) - taken[min(after.get(symbol, 0), 3)]
            probability = (kept + freed * probability) / sum(after.values())
    return probability


@pytest.mark.parametrize("order", [0, 2, 4])
def test_sorting_counts_as_dictionaries_do(order):
    train = np.random.default_rng(0).choice(3, 300, p=[0.7, 0.2, 0.1])
    for symbol in range(3):
        (cost,) = baselines.counted(train, np.array([symbol]), 3, order=order)
        np.testing.assert_allclose(np.exp(cost), by_dictionary(train, symbol, 3, order), rtol=1e-12)


def test_held_out_symbols_are_not_learned_from():
    train = np.random.default_rng(0).choice(3, 100)
    ahead = baselines.counted(train, np.array([2, 1, 2, 2, 0]), 3)
    for stop in range(1, 5):
        np.testing.assert_allclose(baselines.counted(train, np.array([2, 1, 2, 2, 0])[:stop], 3), ahead[:stop])


def test_compressed_figures_are_what_the_held_out_text_adds():
    rng = np.random.default_rng(0)
    train, held_out = ("".join(rng.choice(list("abcde"), size)) for size in (20_000, 5_000))
    nats = baselines.compressed(train, held_out)
    grown = len(gzip.compress((train + held_out).encode())) - len(gzip.compress(train.encode()))
    assert nats["gzip"] == pytest.approx(grown * 8 * math.log(2) / 5_000)
    assert all(math.log(5) * 0.99 < each < math.log(5) * 1.3 for each in nats.values())  # nothing beats the entropy
    assert baselines.compressed(held_out, held_out)["gzip"] < 0.2  # within the 32 KiB that it remembers
