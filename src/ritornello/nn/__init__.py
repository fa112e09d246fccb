"""Layers: compositions of unfoldings, and torch's recurrent modules."""

from ritornello.nn.bidirectional import Bidirectional
from ritornello.nn.cells import GRUCell, LSTMCell, RNNCell
from ritornello.nn.compose import Residual, Stack
from ritornello.nn.dropout import Dropout
from ritornello.nn.feedback import Fed, Feedback
from ritornello.nn.network import Context, Network
from ritornello.nn.onnx import from_onnx, to_onnx
from ritornello.nn.recurrent import GRU, LSTM, RNN
from ritornello.nn.regularise import WeightDrop, activation_regularisation, temporal_activation_regularisation
from ritornello.nn.replace import Swap, replace
from ritornello.nn.variational import VariationalDropout
from ritornello.nn.wrapped import SelfFed, Zoneout

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "Context",
    "Dropout",
    "Fed",
    "Feedback",
    "GRUCell",
    "LSTMCell",
    "Network",
    "RNNCell",
    "Residual",
    "SelfFed",
    "Stack",
    "Swap",
    "VariationalDropout",
    "WeightDrop",
    "Zoneout",
    "activation_regularisation",
    "from_onnx",
    "replace",
    "temporal_activation_regularisation",
    "to_onnx",
]
