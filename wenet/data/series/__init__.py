"""Sequences of numbers: from arrays and files to batches of standardised examples."""

from wenet.data.series.arrays import (
    LAYOUTS,
    check_counts,
    column_names,
    inputs_of,
    is_list,
    is_missing,
    sequences_alone,
    series_of,
)
from wenet.data.series.examples import Batches, Examples, SeriesData, first_values
from wenet.data.series.files import ARRAYS, READERS, TABLES, Reading, ending_of, is_file_of_series, read_series
from wenet.data.series.preparation import Preparation
from wenet.data.series.prepare import prepare
from wenet.data.series.scaling import Scaling
from wenet.data.series.series import KEPT, Series, check_columns, load_series
from wenet.data.series.targets import MOST_CLASS

__all__ = [
    "ARRAYS",
    "KEPT",
    "LAYOUTS",
    "MOST_CLASS",
    "READERS",
    "TABLES",
    "Batches",
    "Examples",
    "Preparation",
    "Reading",
    "Scaling",
    "Series",
    "SeriesData",
    "check_columns",
    "check_counts",
    "column_names",
    "ending_of",
    "first_values",
    "inputs_of",
    "is_file_of_series",
    "is_list",
    "is_missing",
    "load_series",
    "prepare",
    "read_series",
    "sequences_alone",
    "series_of",
]
