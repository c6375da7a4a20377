"""Text from a model: while it learns, for the sample page, and from the checkpoint of an earlier run."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp

from experiments.harness import report
from experiments.harness import run as run_folder
from experiments.harness.run import Run
from jaxnets.data import text
from jaxnets.models import rnn
from jaxnets.training import checkpoint
from jaxnets.types import Array, InputError

VOCABULARY = "vocabulary.json"  # of a run: the symbols, and a checksum of the text
SAMPLES = "samples.txt"


class Known:
    """A model that never says the unknown symbol."""

    def __init__(self, model: rnn.LanguageModel):
        self.model = model

    def apply(self, variables: Any, tokens: Array, *, initial: Any = None):
        logits, final = self.model.apply(variables, tokens, initial=initial)
        return logits.at[..., text.UNKNOWN].set(-jnp.inf), final


class Writer:
    """Writes text; programs are compiled once for each length of text and set of options."""

    def __init__(self, model: rnn.LanguageModel, vocabulary: text.Vocabulary, opening: str):
        self.vocabulary, self.opening = vocabulary, opening
        self._sample = jax.jit(functools.partial(rnn.sample, Known(model)), static_argnames=("steps", "top_k", "nucleus"))
        self._greedy = jax.jit(functools.partial(rnn.sample, Known(model), temperature=0), static_argnames=("steps",))

    def write(self, params: Any, key: Any, *, steps: int, prompt: str = "", temperature: float = 0.8, **options: Any) -> str:
        """The `steps` characters that follow `prompt`."""
        ids = self.vocabulary.encode(prompt or self.opening)
        if temperature:
            tokens, _ = self._sample({"params": params}, key, ids, steps=steps, temperature=temperature, **options)
        else:
            tokens, _ = self._greedy({"params": params}, key, ids, steps=steps)
        return self.vocabulary.decode(tokens)


class WritingCheckpointer(checkpoint.Checkpointer):
    """Shows at each checkpoint what the model writes by now."""

    def __init__(self, run: Run, config: Any, writer: Writer):
        super().__init__(run.checkpoints, config=run_folder.identity(config))
        self.run, self.writer, self.key = run, writer, jax.random.key(config.seed)

    def save(self, step: int, state: Any) -> None:
        super().save(step, state)
        written = self.writer.write(state.params, jax.random.fold_in(self.key, step), steps=200)
        self.run.print(f"--- after {step} steps ---\n{written.strip()}\n---")


def remember(run: Run, vocabulary: text.Vocabulary, checksum: int) -> None:
    """Keeps the vocabulary in the run's folder; refuses to go on with another text."""
    path, content = run.folder / VOCABULARY, {"symbols": vocabulary.symbols, "crc32_of_text": checksum}
    if path.exists() and report.read(path) != content:
        raise InputError(f"--out {run_folder.shown(run.folder)}: that run learned from another text; choose another folder")
    run_folder.write(path, json.dumps(content).encode())


def keep(run: Run, samples: dict[float, str], step: int) -> None:
    """Appends texts, by temperature, to samples.txt."""
    with open(run.folder / SAMPLES, "a", encoding="utf-8", errors="surrogatepass") as file:
        for temperature, written in samples.items():
            file.write(f"=== temperature {temperature:g}, after {step} steps, {len(written):,} characters ===\n{written}\n\n")
