"""Texts as streams of word or character indices that are read in windows, and sequences of numbers in batches."""

from wenet.data.corpus import Corpus, batchify, encode_held_out, load_corpus
from wenet.data.examples import Batches, Examples, Preparation, Scaling, SeriesData, first_values, prepare
from wenet.data.series import (
    KEPT,
    LAYOUTS,
    Series,
    check_columns,
    check_counts,
    inputs_of,
    is_missing,
    load_series,
    series_of,
)
from wenet.data.series_files import ARRAYS, READERS, TABLES, Reading, ending_of, is_file_of_series, read_series
from wenet.data.units import LEVELS, UNKNOWN, units_of
from wenet.data.windows import LONGER_AT_MOST, WINDOWS, mean_window, window, window_at, window_length, windows_per_pass

__all__ = [
    "ARRAYS",
    "KEPT",
    "LAYOUTS",
    "LEVELS",
    "LONGER_AT_MOST",
    "READERS",
    "TABLES",
    "UNKNOWN",
    "WINDOWS",
    "Batches",
    "Corpus",
    "Examples",
    "Preparation",
    "Reading",
    "Scaling",
    "Series",
    "SeriesData",
    "batchify",
    "check_columns",
    "check_counts",
    "encode_held_out",
    "ending_of",
    "first_values",
    "inputs_of",
    "is_file_of_series",
    "is_missing",
    "load_corpus",
    "load_series",
    "mean_window",
    "prepare",
    "read_series",
    "series_of",
    "units_of",
    "window",
    "window_at",
    "window_length",
    "windows_per_pass",
]
