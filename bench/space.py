"""A table of the space of cells, and strategies replayed on it: what a search of hours would choose, in seconds.

`python -m bench.space` replays races and random search at equal cost on many pools drawn from the table in the
repository, or from another that `bench.space_table` made. A strategy sees one training of each cell, and its choice is
judged by the other. First all pools are of one size; then all races cost as much, so those of more rungs have larger
pools.

Example:
    >>> from bench.space import Table, race
    >>> import numpy as np
    >>> curves = np.array([[[3.0, 1.0]] * 2, [[3.1, 1.5]] * 2])  # [cells, trainings, points]
    >>> table = Table({}, ["tanh0", "relu0"], curves[:, :, -1], curves)
    >>> race(table, [0, 1], rungs=2)
    Choice(cell=0, cost=1.5)
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from wenet.words import counted

TABLE = Path(__file__).parent / "tables" / "ptb-characters.jsonl.xz"
POOLS = 500
POOL = 64


class Choice(NamedTuple):
    """What a strategy chose, and its cost in whole trainings of one cell."""

    cell: int
    cost: float


@dataclass(frozen=True)
class Table:
    """Every cell's trainings.

    Attributes:
        settings: what the table was made with.
        cells: as text.
        values: the metric on the validation part at the end, `[cells, trainings]`; infinite where training diverged.
        curves: mean training losses between points at equal distances, `[cells, trainings, points]`.
    """

    settings: dict[str, Any]
    cells: list[str]
    values: np.ndarray
    curves: np.ndarray

    @classmethod
    def load(cls, path: Path = TABLE) -> Table:
        """Read what `bench.space_table` wrote; by default the table in the repository."""
        made_with, *rows = [json.loads(line) for line in lzma.decompress(path.read_bytes()).decode().splitlines()]
        cells = list(dict.fromkeys(row["cell"] for row in rows))
        of_cell = {cell: [row for row in rows if row["cell"] == cell] for cell in cells}
        number = {None: np.inf}
        values = np.array([[number.get(row["value"], row["value"]) for row in of_cell[cell]] for cell in cells])
        curves = np.array(
            [[[number.get(loss, loss) for loss in row["curve"]] for row in of_cell[cell]] for cell in cells]
        )
        return cls(made_with, cells, values, curves)

    def of_nodes(self, most: int) -> Table:
        """The cells of at most so many nodes."""
        own = [number for number, cell in enumerate(self.cells) if len(cell.split()) <= most]
        return Table(self.settings, [self.cells[number] for number in own], self.values[own], self.curves[own])

    @property
    def truth(self) -> np.ndarray:
        """The mean of each cell's trainings."""
        return self.values.mean(1)

    def ceiling(self) -> float:
        """How well two trainings of the same cells agree, Kendall's tau."""
        return float(stats.kendalltau(self.values[:, 0], self.values[:, 1]).statistic)

    def agreement(self) -> list[float]:
        """Kendall's tau of one training's loss at each point of its curve with the other one's end."""
        ends = self.values[:, ::-1]  # of the other training
        return [
            float(np.mean([stats.kendalltau(self.curves[:, own, point], ends[:, own]).statistic for own in (0, 1)]))
            for point in range(self.curves.shape[2])
        ]


def race(table: Table, pool: Sequence[int], training: int = 0, rungs: int = 3) -> Choice:
    """Halve the pool at every rung by the loss so far; a rung's windows double, and the last one decides by values."""
    points = table.curves.shape[2]
    left, cost, done = list(pool), 0.0, 0
    for rung in range(rungs - 1):
        until = max(1, round(points / 2 ** (rungs - 1 - rung)))
        cost += len(left) * (until - done) / points
        done = until
        left.sort(key=lambda cell: table.curves[cell, training, done - 1])
        left = left[: -(-len(left) // 2)]
    return Choice(min(left, key=lambda cell: table.values[cell, training]), cost + len(left) * (points - done) / points)


def random_search(table: Table, pool: Sequence[int], training: int = 0, cost: float = 1.0) -> Choice:
    """Train as many cells to the end as the cost allows, and take the best."""
    tried = list(pool)[: max(1, round(cost))]
    return Choice(min(tried, key=lambda cell: table.values[cell, training]), float(len(tried)))


def pools(table: Table, size: int, seed: int = 0) -> Iterator[tuple[list[int], int]]:
    """Random pools of cells, each once with either training as the one that a strategy sees."""
    generator = np.random.default_rng(seed)
    for _ in range(POOLS):
        cells = generator.choice(len(table.cells), size, replace=False).tolist()
        yield cells, 0
        yield cells, 1


def regrets(table: Table, choose: Callable[[list[int], int], Choice], size: int) -> tuple[np.ndarray, float]:
    """How much worse the chosen cell of each pool is than its best by the training not seen, and the mean cost.

    A training that diverged counts as the worst that did not.
    """
    found, cost = chosen(table, choose, size)
    values = finite_values(table)
    best = np.array([values[cells, 1 - training].min() for cells, training in pools(table, size)])
    return found - best, cost


def chosen(table: Table, choose: Callable[[list[int], int], Choice], size: int) -> tuple[np.ndarray, float]:
    """The value of each pool's chosen cell in the training not seen, and the mean cost."""
    values = finite_values(table)
    choices = [(choose(cells, training), training) for cells, training in pools(table, size)]
    found = np.array([values[choice.cell, 1 - training] for choice, training in choices])
    return found, float(np.mean([choice.cost for choice, _ in choices]))


def finite_values(table: Table) -> np.ndarray:
    """A training that diverged has the value of the worst that did not."""
    return np.minimum(table.values, table.values[np.isfinite(table.values)].max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, nargs="?", default=TABLE, help="default: %(default)s")
    parser.add_argument("--pool", type=int, default=POOL, metavar="N", help="cells of each pool (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=4, metavar="N", help="at equal cost (default: %(default)s)")
    parser.add_argument("--cost", type=int, default=24, metavar="N", help="in trainings (default: %(default)s)")
    options = parser.parse_args()
    table = Table.load(options.table)
    print(f"{len(table.cells)} cells, two trainings agree with tau {table.ceiling():.2f}")
    print("one training's loss on the way against the other's end:", " ".join(f"{t:.2f}" for t in table.agreement()))
    print(replays(table, options.pool))
    few = table.of_nodes(options.nodes)
    if options.cost > len(few.cells):
        parser.error(f"--cost {options.cost} is more than the {len(few.cells)} cells of --nodes {options.nodes}")
    print(
        f"\n{len(few.cells)} cells of at most {counted(options.nodes, 'node')}, at the cost of {options.cost} trainings"
    )
    print(at_equal_cost(few, options.cost))


def replays(table: Table, size: int) -> str:
    """Regrets of races and of random search at equal cost, as Markdown."""
    lines = [
        "| strategy | cost, trainings | regret | regret of random search | difference (95 %) |",
        "|---|---|---|---|---|",
    ]
    for rungs in range(1, 6):
        lost, cost = regrets(table, partial(race, table, rungs=rungs), size)
        equal, _ = regrets(table, partial(random_search, table, cost=cost), size)
        low, high = _interval(lost - equal)
        means = f"{cost:.1f} | {lost.mean():.4f} | {equal.mean():.4f}"
        lines.append(f"| race, {counted(rungs, 'rung')} | {means} | {low:.4f} to {high:.4f} |")
    return "\n".join(lines)


def at_equal_cost(table: Table, cost: int) -> str:
    """What races of several sizes find, as far as the table has so many cells, and by how much that is better than what
    a random search among the same cells finds, as Markdown."""
    lines = ["| strategy | pool | cost, trainings | finds | better than random search by (95 %) |"]
    lines.append("|---|---|---|---|---|")
    for rungs in range(1, 7):
        size = round(cost * 2**rungs / (rungs + 1))
        if size > len(table.cells):
            break
        raced, spent = chosen(table, partial(race, table, rungs=rungs), size)
        drawn, _ = chosen(table, partial(random_search, table, cost=cost), size)
        low, high = _interval(drawn - raced)
        spread = f"{raced.mean():.4f} ± {raced.std():.4f}"
        lines.append(f"| race, {counted(rungs, 'rung')} | {size} | {spent:.1f} | {spread} | {low:.4f} to {high:.4f} |")
    return "\n".join(lines)


def _interval(differences: np.ndarray) -> tuple[float, float]:
    """Of the mean over pools, each of which was replayed with either training."""
    values = differences.reshape(POOLS, 2).mean(1)
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


if __name__ == "__main__":
    main()
