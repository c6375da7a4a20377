"""Recurrent networks: cells as pure functions, one layer for all of them, and models made of it."""

from jaxnets.models.rnn.cells import GRU, LSTM, Cell, Elman, LSTMState
from jaxnets.models.rnn.classifier import Classifier
from jaxnets.models.rnn.diagnostics import input_gradients, state_gradients
from jaxnets.models.rnn.language import LanguageModel, Written, sample
from jaxnets.models.rnn.layer import Recurrent
from jaxnets.models.rnn.recurrence import Conditions, products
from jaxnets.models.rnn.sequence_to_sequence import Memory, SequenceToSequence, greedy
from jaxnets.models.rnn.state_space import LRU, S5, MinGRU

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "S5",
    "Cell",
    "Classifier",
    "Conditions",
    "Elman",
    "LSTMState",
    "LanguageModel",
    "Memory",
    "MinGRU",
    "Recurrent",
    "SequenceToSequence",
    "Written",
    "greedy",
    "input_gradients",
    "products",
    "sample",
    "state_gradients",
]
