"""Texts for language modelling, as streams of word indices read in windows."""

from wenet.data.corpus import UNKNOWN, Corpus, batchify, encode_held_out, load_corpus
from wenet.data.windows import LONGER_AT_MOST, WINDOWS, mean_window, window, window_at, window_length, windows_per_pass

__all__ = [
    "LONGER_AT_MOST",
    "UNKNOWN",
    "WINDOWS",
    "Corpus",
    "batchify",
    "encode_held_out",
    "load_corpus",
    "mean_window",
    "window",
    "window_at",
    "window_length",
    "windows_per_pass",
]
