"""Layers: compositions of unfoldings, and torch's recurrent modules."""

from ritornello.nn.cells import GRUCell, LSTMCell, RNNCell
from ritornello.nn.compose import Bidirectional, Residual, Stack
from ritornello.nn.onnx import from_onnx, to_onnx
from ritornello.nn.recurrent import GRU, LSTM, RNN
from ritornello.nn.replace import Swap, replace

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Residual",
    "Stack",
    "Swap",
    "from_onnx",
    "replace",
    "to_onnx",
]
