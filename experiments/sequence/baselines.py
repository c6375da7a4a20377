"""What a language model must beat: general compressors, and counts of the symbols that follow each context."""

import bz2
import gzip
import lzma
import math
from collections.abc import Callable

import numpy as np

from jaxnets.types import Float, Int

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, preset=9),
}


def compressed(train: str, held_out: str) -> dict[str, float]:
    """Nats per character of `held_out` (UTF-8) after `train`: what the compressed text grows by when it is appended.

    gzip remembers 32 KiB, bzip2 900 kB in blocks, lzma all: the first two hardly profit from `train`.
    """
    before, whole = train.encode(), (train + held_out).encode()
    nats = 8 * math.log(2) / len(held_out)
    return {name: nats * (len(pack(whole)) - len(pack(before))) for name, pack in COMPRESSORS.items()}


def counted(
    train: Int[np.ndarray, " train"], held_out: Int[np.ndarray, " held_out"], symbols: int, *, order: int = 5
) -> Float[np.ndarray, " held_out"]:
    """Log-probability (nats) of each id of `held_out` from counts in `train`: modified Kneser-Ney, interpolated.

    `p_k(s | h) = (c(h s) - D(c(h s)) + p_{k-1}(s | h') sum_s D(c(h s))) / sum_s c(h s)`, h being the k symbols before s and h'
    the last k - 1 of them; p_{-1} is uniform over `symbols`. c is the count where k = `order`, below it the number of
    different symbols before `h s`. Held-out symbols are predicted from those before them, but never counted.

    Source: Chen & Goodman (1999), eq. 25-27, doi:10.1006/csla.1999.0128.
    """
    ids, seen = np.concatenate([train, held_out]).astype(np.int64), len(train)
    levels, context = [], np.zeros(len(ids), np.int64)
    for _ in range(order + 1):
        keys, gram = np.unique(context * symbols + ids, return_inverse=True)  # grams numbered 0, 1, ...
        levels.append((context, keys // symbols, gram))
        context = np.append(len(keys), gram[:-1])  # the grams before each symbol; nothing before the first is one of its own
    probability = np.full(len(held_out), 1 / symbols)
    for k, (context, context_of, gram) in enumerate(levels):
        # Below the highest order a gram counts once for each longer one that ends in it.
        places = np.arange(seen) if k == order else np.unique(levels[k + 1][2][:seen], return_index=True)[1]
        times = np.bincount(gram[places], minlength=len(context_of))
        total = np.bincount(context[places], minlength=context.max() + 1)
        discount = _discounts(times)[np.minimum(times, 3)]
        freed = np.bincount(context_of, discount, len(total))
        now, next_ = context[seen:], gram[seen:]
        known = total[now] > 0
        mixed = (times[next_] - discount[next_] + freed[now] * probability) / np.where(known, total[now], 1)
        probability = np.where(known, mixed, probability)
    return np.log(probability)


def _discounts(times: Int[np.ndarray, " gram"]) -> Float[np.ndarray, "4"]:
    """What is taken off a count of 0, 1, 2, and 3 or more; never nothing, so that no symbol is impossible."""
    n = np.array([np.sum(times == count) for count in range(1, 5)])
    once = n[0] / max(n[0] + 2 * n[1], 1)
    i = np.arange(1, 4)
    return np.append(0, np.clip(i - (i + 1) * once * n[1:] / np.maximum(n[:-1], 1), 0.1, i))
