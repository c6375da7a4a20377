"""Recurrent networks: cells as pure functions, one layer for all of them, and models made of it."""

from jaxnets.models.rnn.cells import GRU, LSTM, Cell, Elman, LSTMState
from jaxnets.models.rnn.language import LanguageModel, Written, sample
from jaxnets.models.rnn.layer import Recurrent
from jaxnets.models.rnn.recurrence import Conditions, products
from jaxnets.models.rnn.state_space import LRU, S5, MinGRU

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "S5",
    "Cell",
    "Conditions",
    "Elman",
    "LSTMState",
    "LanguageModel",
    "MinGRU",
    "Recurrent",
    "Written",
    "products",
    "sample",
]
