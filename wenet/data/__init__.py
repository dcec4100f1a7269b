"""Texts for language modelling, as streams of word or character indices that are read in windows."""

from wenet.data.corpus import Corpus, batchify, encode_held_out, load_corpus
from wenet.data.units import LEVELS, UNKNOWN, units_of
from wenet.data.windows import LONGER_AT_MOST, WINDOWS, mean_window, window, window_at, window_length, windows_per_pass

__all__ = [
    "LEVELS",
    "LONGER_AT_MOST",
    "UNKNOWN",
    "WINDOWS",
    "Corpus",
    "batchify",
    "encode_held_out",
    "load_corpus",
    "mean_window",
    "units_of",
    "window",
    "window_at",
    "window_length",
    "windows_per_pass",
]
