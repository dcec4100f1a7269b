"""From sequences to examples in three parts."""

from __future__ import annotations

from wenet.data.series.examples import SeriesData
from wenet.data.series.forecasts import forecasts
from wenet.data.series.preparation import Preparation
from wenet.data.series.scaling import check_values
from wenet.data.series.series import Series
from wenet.data.series.targets import targeted


def prepare(series: Series, how: Preparation) -> SeriesData:
    """Divide, standardise and check sequences.

    Raises:
        WenetError: values are missing or infinite, there is one class only, a feature is constant, or a part is empty.
    """
    check_values(series, how)
    return forecasts(series, how) if how.kind == "forecast" else targeted(series, how)
