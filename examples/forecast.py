"""The sunspots of the next five years, with a cell that was searched for them.

python examples/forecast.py --minutes 5

Needs statsmodels for its data: pip install statsmodels. Without it a made-up series takes their place.
"""

from __future__ import annotations

import argparse
import importlib.util

import numpy as np

from wenet.estimators import Forecaster


def sunspots() -> np.ndarray:
    """Yearly numbers of sunspots from 1700 to 2008, `[T, 1]`."""
    if importlib.util.find_spec("statsmodels") is None:
        print("statsmodels is not installed; this is a made-up series")
        t = np.arange(309)
        return (60 + 50 * np.sin(t / 1.75) * (1 + 0.5 * np.sin(t / 15)))[:, None]
    from statsmodels.datasets import sunspots

    return sunspots.load_pandas().data[["SUNACTIVITY"]].to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="for search and contest (default: %(default)s)")
    parser.add_argument("--window", type=int, default=33, help="years that a forecast sees (default: %(default)s)")
    parser.add_argument("--horizon", type=int, default=5, help="years that it predicts (default: %(default)s)")
    options = parser.parse_args()

    series = sunspots()
    known, ahead = series[: -options.horizon], series[-options.horizon :]
    model = Forecaster(options.window, options.horizon, options.minutes).fit(known)
    for row in model.contest_["contestants"]:
        print(f"{row['name']:<12} RMSE {row['mean']:.2f}, {row['parameters']:,} parameters")
    print(f"cell: {model.cell_}")
    for predicted, came in zip(model.predict(known)[:, 0], ahead[:, 0], strict=True):
        print(f"predicted {predicted:6.1f}, came {came:6.1f}")


if __name__ == "__main__":
    main()
