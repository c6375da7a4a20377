"""Weights of other libraries, host side: `torch` reads state_dicts, `recurrent` maps those of torch.nn.RNN, LSTM and GRU."""

from jaxnets.weights import recurrent, torch

__all__ = ["recurrent", "torch"]
