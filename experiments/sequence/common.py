"""What the tasks share: cells by name, and the optimizer."""

import optax

from jaxnets import optimizers
from jaxnets.models import rnn
from jaxnets.models.rnn import Cell

CELLS: dict[str, type[Cell]] = {"lstm": rnn.LSTM, "gru": rnn.GRU, "elman": rnn.Elman}
CLIP = 1.0  # bound of the gradient's norm


def adam(lr: float, total: int, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """AdamW on matrices: 5 % of the steps to warm up, then half a cosine to 0."""
    schedule = optimizers.warmup_cosine(lr, epochs=total, steps_per_epoch=1, warmup_epochs=total // 20)
    return optax.adamw(schedule, weight_decay=weight_decay, mask=optimizers.decay_mask())


def cuts(total: int, parts: int) -> tuple[int, int]:
    """`total` rounded down to a multiple of an interval, about `parts` of it, and the interval: one length, one program."""
    interval = max(1, total // parts)
    return total - total % interval, interval
