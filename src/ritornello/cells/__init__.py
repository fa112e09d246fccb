"""Cells: a cell a file, each reads like the paper's equations."""

from ritornello.cells.adapt import Adapted
from ritornello.cells.additive import AdditiveMemory
from ritornello.cells.catalogue import CELLS, TREE_CELLS, find, is_foreign
from ritornello.cells.cell import Cell, meaning_of_total, over_predecessors, total
from ritornello.cells.coupled import CoupledLSTM
from ritornello.cells.deep import DeepTransition
from ritornello.cells.elman import Elman
from ritornello.cells.groups import GroupedRNN
from ritornello.cells.gru import GRU
from ritornello.cells.highway import RecurrentHighway
from ritornello.cells.initialise import chrono_, forget_bias_, identity_, orthogonal_
from ritornello.cells.irnn import IRNN
from ritornello.cells.jordan import ElmanJordan, Jordan, TeacherForced
from ritornello.cells.layer_norm import LayerNormLSTM
from ritornello.cells.leaky import Leaky
from ritornello.cells.lru import LRU, RGLRU
from ritornello.cells.lstm import LSTM
from ritornello.cells.lstm_1997 import LSTM1997
from ritornello.cells.minimal import MinimalGatedUnit
from ritornello.cells.minimal_linear import MinGRU, MinLSTM
from ritornello.cells.multiplicative import MultiplicativeLSTM, MultiplicativeRNN, TensorRNN
from ritornello.cells.peephole import PeepholeLSTM
from ritornello.cells.projected import ProjectedLSTM
from ritornello.cells.qrnn import QRNN
from ritornello.cells.recursive import RecursiveNet, RecursiveTensorNet
from ritornello.cells.slstm import SLSTM
from ritornello.cells.sru import SRU
from ritornello.cells.tree_gru import TreeGRU
from ritornello.cells.tree_lstm import TreeLSTM

__all__ = [
    "CELLS",
    "GRU",
    "IRNN",
    "LRU",
    "LSTM",
    "LSTM1997",
    "QRNN",
    "RGLRU",
    "SLSTM",
    "SRU",
    "TREE_CELLS",
    "Adapted",
    "AdditiveMemory",
    "Cell",
    "CoupledLSTM",
    "DeepTransition",
    "Elman",
    "ElmanJordan",
    "GroupedRNN",
    "Jordan",
    "LayerNormLSTM",
    "Leaky",
    "MinGRU",
    "MinLSTM",
    "MinimalGatedUnit",
    "MultiplicativeLSTM",
    "MultiplicativeRNN",
    "PeepholeLSTM",
    "ProjectedLSTM",
    "RecurrentHighway",
    "RecursiveNet",
    "RecursiveTensorNet",
    "TeacherForced",
    "TensorRNN",
    "TreeGRU",
    "TreeLSTM",
    "chrono_",
    "find",
    "forget_bias_",
    "identity_",
    "is_foreign",
    "meaning_of_total",
    "orthogonal_",
    "over_predecessors",
    "total",
]
