"""Recurrent layers made of searched cells, and the language models around them."""

from wenet.nn.cell_rnn import CellRNN
from wenet.nn.cross_entropy import CHUNK
from wenet.nn.divided import DividedDagRNN
from wenet.nn.dropout import draw_rows
from wenet.nn.language import LanguageModel, StandaloneLanguageModels
from wenet.nn.losses import LOSSES, OWN, forget_loss, is_loss, named_loss
from wenet.nn.lstm import LAYERS, StackedLSTM, StandaloneRNN
from wenet.nn.mixing import Mixing
from wenet.nn.program_parameters import split_row
from wenet.nn.rnn import DagRNN
from wenet.nn.sequence import READOUTS, SequenceModel, StandaloneSequenceModels
from wenet.nn.softmaxes import MIXTURE_ROWS, MixtureOfSoftmaxes
from wenet.nn.standalone_cells import StandaloneCellRNN
from wenet.nn.weighted import WeightedDagRNN
from wenet.nn.weighted_cells import WeightedCellRNN

__all__ = [
    "CHUNK",
    "LAYERS",
    "LOSSES",
    "MIXTURE_ROWS",
    "OWN",
    "READOUTS",
    "CellRNN",
    "DagRNN",
    "DividedDagRNN",
    "LanguageModel",
    "Mixing",
    "MixtureOfSoftmaxes",
    "SequenceModel",
    "StackedLSTM",
    "StandaloneCellRNN",
    "StandaloneLanguageModels",
    "StandaloneRNN",
    "StandaloneSequenceModels",
    "WeightedCellRNN",
    "WeightedDagRNN",
    "draw_rows",
    "forget_loss",
    "is_loss",
    "named_loss",
    "split_row",
]
