"""Recurrent networks: a character language model that writes, sequences classified at any length, and tests of memory.

Measured 2026-11-23, 2 CPU cores, jax 0.10.2, seed 0: tinyshakespeare (`--preset shakespeare`), last tenth held out: 1.452 nats
per character, order-5 Kneser-Ney counts 1.523; 43 minutes beside other work, 16.5 at the quiet machine's 3.0 steps a second.
Standard library: 1.363 after 3 epochs, counts 1.445, gzip 1.532, but lzma 1.201, as code repeats itself. JapaneseVowels test:
98.3 % ± 0.3 over 5 seeds. Adding over 200 steps: mean squared error of the LSTM 0.0013, of the GRU 0.0001, of the Elman network
0.143, where always guessing 1 has 0.167.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

from experiments.harness import checks
from experiments.harness.run import Run
from experiments.sequence import classify, language, memory

OWN: dict[str, dict[str, Any]] = {  # what each task takes where nothing is said; an option that is not here it has no use for
    "language": {
        "data": None,
        "separator": None,
        "characters": None,
        "validate": False,
        "cell": "lstm",
        "width": 256,
        "layers": 2,
        "embedding": 64,
        "dropout": 0.1,
        "batch": 32,
        "time": 64,
        "epochs": 3,
        "lr": 4e-3,
        "weight_decay": 0.0,
        "gradient_steps": 400,
        "written": 900,
    },
    "classify": {
        "data": None,
        "validate": False,
        "cell": "lstm",
        "width": 128,
        "layers": 1,
        "pooling": "mean",
        "dropout": 0.5,
        "batch": 27,
        "epochs": 60,
        "lr": 5e-3,
        "weight_decay": 0.01,
        "members": 5,
    },
    "adding": {"width": 64, "batch": 64, "time": 200, "steps": 3000, "lr": 3e-3, "weight_decay": 0.0},
    "copying": {"width": 128, "batch": 64, "time": 50, "steps": 3000, "lr": 3e-3, "weight_decay": 0.0},
}
ASKS = {"of_run": False}  # what to do with a trained model: no part of the run


@dataclasses.dataclass(frozen=True)
class Config:
    task: Literal["language", "classify", "adding", "copying"] = "language"  # what to learn
    # Of language: a UTF-8 text, None for the sources of Python's standard library; of classify: a .ts file, or its folder.
    data: str | None = None
    separator: str | None = None  # the line between documents, at which the state starts anew; terminal colors are removed
    characters: int | None = None  # at most so many of the text; None: all of a file, 2 million of the standard library
    cell: Literal["lstm", "gru", "elman"] | None = None  # of language and classify; the memory tasks compare all three
    width: int | None = None  # units in a layer (None, here and below: the task's own)
    layers: int | None = None
    embedding: int | None = None  # width of the vectors that stand for characters
    dropout: float | None = None  # probability that a unit is zeroed
    batch: int | None = None  # streams of text, or sequences per step
    time: int | None = None  # steps of a window of text; of a sequence to add; the longest lag to copy over
    epochs: int | None = None  # of language and classify
    steps: int | None = None  # of adding and copying
    lr: float | None = None  # peak learning rate of AdamW: warm-up, then cosine to 0
    weight_decay: float | None = None  # decoupled, on matrices only
    pooling: Literal["last", "mean", "max"] | None = None  # of classify: the output at the end, or of all steps
    members: int | None = None  # of classify: networks trained at once, each from its own seed
    gradient_steps: int | None = None  # of the small cells whose gradients are shown against the lag
    written: int | None = None  # characters of each sample on the sample page
    validate: bool = False  # measure on a part of the training data instead of the test data, to choose by
    seed: int = 0  # of initialization, dropout, order and drawn data
    # To write with a trained model: --sample 500 --out RUN, and no other options.
    sample: int = dataclasses.field(default=0, metadata=ASKS)  # characters to write, without training
    prompt: str = dataclasses.field(default="", metadata=ASKS)  # what the text begins with
    temperature: float = dataclasses.field(default=0.8, metadata=ASKS)  # 0: always the likeliest; 1: as the model has it
    top_k: int | None = dataclasses.field(default=None, metadata=ASKS)  # only from so many likeliest symbols
    nucleus: float | None = dataclasses.field(default=None, metadata=ASKS)  # only from the likeliest of this probability
    sample_seed: int = dataclasses.field(default=0, metadata=ASKS)  # another number, another text

    def __post_init__(self):
        counts = ("characters", "width", "layers", "embedding", "batch", "time", "epochs", "steps", "members")
        checks.positive(self, *counts, "lr", "gradient_steps", "written", "top_k", "nucleus")
        checks.within(self, 0, math.inf, "sample", "temperature")
        for name, limit in (("dropout", 1), ("weight_decay", math.inf)):
            if getattr(self, name) is not None:
                checks.within(self, 0, limit, name)
        if self.nucleus is not None and self.nucleus > 1:
            raise ValueError(f"--nucleus must be at most 1, got {self.nucleus}")
        # What would do nothing is refused.
        for name in {name for own in OWN.values() for name in own} - set(OWN[self.task]):
            if getattr(self, name) not in (None, False):
                raise ValueError(f"--{name.replace('_', '-')} is not for --task {self.task}")
        for field in dataclasses.fields(self):
            if field.metadata == ASKS and getattr(self, field.name) != field.default and not self.sample:
                raise ValueError(f"--{field.name.replace('_', '-')} goes with --sample, to write with a trained model")


PRESETS = {
    "default": Config(),
    "classify": Config(task="classify"),
    "adding": Config(task="adding"),
    "copying": Config(task="copying"),
    "shakespeare": Config(width=320, embedding=64, dropout=0.25, batch=64, time=64, epochs=12, lr=4e-3),
    "smoke": Config(characters=6000, width=8, batch=8, time=8, epochs=1, gradient_steps=2, written=20),
}

TASKS: dict[str, Callable[[Any, Run], dict[str, float]]] = {
    "language": language.main,
    "classify": classify.main,
    "adding": memory.main,
    "copying": memory.main,
}


def main(config: Config, run: Run) -> dict[str, float] | None:
    own = {name: value for name, value in OWN[config.task].items() if getattr(config, name) is None}
    config = dataclasses.replace(config, **own)
    return language.go_on(config, run) if config.sample else TASKS[config.task](config, run)
