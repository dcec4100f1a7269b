"""Public sequences of numbers that come with packages, and two that are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CHAOS_STEPS, CHAOS_EVERY = 3000, 12  # of a trajectory, and integration steps of 0.01 between two of them


@dataclass(frozen=True)
class Set:
    """What to search on.

    Attributes:
        given: makes the path or arrays that `wenet.search` takes.
        settings: those that do not follow from the data.
    """

    given: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)


def of_package(package: str, *parts: str) -> Path:
    """A file that a package brings, without importing the package."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"these data come with {package}; pip install {package}")
    return Path(spec.submodule_search_locations[0], *parts)


def archive(name: str) -> Callable[[], str]:
    """A set of the UCR and UEA archives, whose test part lies beside it."""
    return lambda: str(of_package("aeon", "datasets", "data", name, f"{name}_TRAIN.ts"))


def digits() -> tuple[Array, Array]:
    """Scans of digits, read row by row: 1,797 sequences of 8 steps and 8 features."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images.astype(float), found.target


def statistics_column(name: str) -> Array:
    """The last column of a table of statsmodels; what is missing lies on a line between its neighbours."""
    path = of_package("statsmodels", "datasets", name, f"{name}.csv")
    values = np.genfromtxt(path, delimiter=",", skip_header=1)[:, -1]
    known = ~np.isnan(values)
    return np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])


def lorenz() -> Array:
    """The Lorenz system (10, 28, 8/3) by Runge-Kutta of order 4, `[T, 3]`."""

    def slope(point: Array) -> Array:
        x, y, z = point
        return np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    return _trajectory(slope, np.array([1.0, 1.0, 1.0]))


def rossler() -> Array:
    """The Rössler system (0.2, 0.2, 5.7), five times as far apart as Lorenz's steps, `[T, 3]`."""

    def slope(point: Array) -> Array:
        x, y, z = point
        return 5 * np.array([-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)])

    return _trajectory(slope, np.array([1.0, 1.0, 1.0]))


def halvorsen() -> Array:
    """Halvorsen's system (1.89), half as far apart as Lorenz's steps, `[T, 3]`."""

    def slope(point: Array) -> Array:
        x, y, z = point
        turned = np.array([y, z, x]), np.array([z, x, y])
        return 0.5 * (-1.89 * point - 4 * turned[0] - 4 * turned[1] - turned[0] ** 2)

    return _trajectory(slope, np.array([-5.0, 0.0, 0.0]))


def thomas() -> Array:
    """Thomas's cyclically symmetric system (0.19), ten times as far apart as Lorenz's steps, `[T, 3]`."""

    def slope(point: Array) -> Array:
        return 10 * (np.sin(np.roll(point, -1)) - 0.19 * point)

    return _trajectory(slope, np.array([0.1, 1.1, 0.0]))


def _trajectory(slope: Callable[[Array], Array], point: Array, step: float = 0.01) -> Array:
    """Points at equal distances, without the first tenth."""
    found = []
    for number in range(CHAOS_STEPS * CHAOS_EVERY * 10 // 9):
        first = slope(point)
        second = slope(point + step / 2 * first)
        third = slope(point + step / 2 * second)
        fourth = slope(point + step * third)
        point = point + step / 6 * (first + 2 * second + 2 * third + fourth)
        if number % CHAOS_EVERY == 0:
            found.append(point)
    return np.array(found[-CHAOS_STEPS:])


def waves(steps: int = 6000, noise: float = 0.1) -> Array:
    """A sum of three waves of different period, and noise, whose deviation no forecast can do without, `[T]`."""
    time = np.arange(steps)
    clean = sum(np.sin(2 * np.pi * time / period) for period in (12, 31, 87))
    return np.asarray(clean + noise * np.random.default_rng(1).standard_normal(steps))


def adding(steps: int, count: int = 4000) -> tuple[Array, Array]:
    """The adding problem (Hochreiter and Schmidhuber 1997): the sum of two marked numbers, one in each half."""
    generator = np.random.default_rng(steps)
    values = generator.random((count, steps))
    marks = np.zeros((count, steps))
    rows, half = np.arange(count), steps // 2
    first, second = generator.integers(half, size=count), half + generator.integers(steps - half, size=count)
    marks[rows, first] = marks[rows, second] = 1
    return np.stack([values, marks], 2), values[rows, first] + values[rows, second]


def forecast(window: int, horizon: int) -> dict[str, Any]:
    return {"task": "forecast", "window": window, "horizon": horizon, "metric": "mase"}


SETS = {
    "digits": Set(digits, {"task": "classify", "constant": "keep"}),
    "japanese-vowels": Set(archive("JapaneseVowels"), {"task": "classify"}),
    "basic-motions": Set(archive("BasicMotions"), {"task": "classify"}),
    "italy-power-demand": Set(archive("ItalyPowerDemand"), {"task": "classify"}),
    "sunspots": Set(lambda: statistics_column("sunspots"), forecast(24, 3)),
    "co2": Set(lambda: statistics_column("co2"), forecast(52, 8)),
    "lorenz": Set(lorenz, forecast(16, 4)),
    "rossler": Set(rossler, forecast(16, 4)),
    "adding-40": Set(lambda: adding(40), {"task": "regress"}),
    "adding-200": Set(lambda: adding(200), {"task": "regress"}),
    "gun-point": Set(archive("GunPoint"), {"task": "classify"}),
    "covid-deaths": Set(archive("Covid3Month"), {"task": "regress"}),
    "halvorsen": Set(halvorsen, forecast(16, 4)),
    "thomas": Set(thomas, forecast(16, 4)),
}
WAVES = Set(waves, {"task": "forecast", "window": 48, "horizon": 1})  # of bench.gated_cells, and not among the sets
# Settings were chosen on these.
TUNED_ON = ("digits", "japanese-vowels", "basic-motions", "italy-power-demand")
