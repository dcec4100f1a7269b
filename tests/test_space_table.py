"""The table of the space: made on a tiny text, read again, and replayed."""

from functools import partial

import numpy as np
import pytest

from bench.space import Choice, Table, at_equal_cost, main, race, random_search, regrets, replays
from bench.space_table import main as make
from bench.space_table import pool
from wenet.cells import load_genotype

from .wenet.helpers import write_text


@pytest.fixture
def table():
    """Eight cells; what a training shows early is right, but for the best, which is a slow one."""
    ends = np.arange(8.0)
    early = np.array([4.5, *range(1, 8)]) + 10
    curves = np.stack([np.stack([early, ends], 1)] * 2, 1)  # [8, 2, 2]
    return Table({}, [f"cell {n}" for n in range(8)], np.stack([ends, ends], 1), curves)


def test_a_table_is_made_and_read(tmp_path, monkeypatch, capsys):
    text = write_text(tmp_path / "text")
    flags = ["--cells", "12", "--windows", "60", "--parameters", "700", "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second reads what the first has trained
        monkeypatch.setattr("sys.argv", ["space_table", str(text), *flags, "--table", str(tmp_path / "table.xz")])
        make()
    found = Table.load(tmp_path / "table.xz")
    assert found.cells == [str(cell) for cell in pool(12)] and found.settings["windows"] == 60
    assert found.values.shape == (12, 2) and found.curves.shape == (12, 2, 20)
    assert len({len(cell.split()) for cell in found.cells}) > 3
    assert (found.curves[:, :, 0] > found.curves[:, :, -1] + 0.2).all() and (
        found.values[:, 0] != found.values[:, 1]
    ).all()
    monkeypatch.setattr("sys.argv", ["space", str(tmp_path / "table.xz"), "--pool", "8", "--cost", "2"])
    main()
    assert "| race, 3 rungs |" in capsys.readouterr().out


def test_the_table_in_the_repository():
    table = Table.load()
    assert len(table.cells) == 512 and table.values.shape == (512, 2) and table.curves.shape == (512, 2, 20)
    assert {len(cell.split()) for cell in table.cells} == set(range(1, 9)) and table.ceiling() > 0.7
    assert str(load_genotype("darts-v2")) in table.cells


def test_strategies_are_replayed(table):
    everything = range(8)
    assert race(table, everything, rungs=1) == (0, 8.0)
    assert race(table, everything, rungs=2) == (1, 8 / 2 + 4 / 2)  # the slow one leaves at the first rung
    assert random_search(table, [5, 3, 0], cost=2.1) == (3, 2.0)
    lost, cost = regrets(table, partial(race, table, rungs=2), 8)
    assert set(lost) == {1.0} and cost == 6.0
    assert "| race, 1 rung | 4.0 | 0.0000 | 0.0000 | 0.0000 to 0.0000 |" in replays(table, 4)
    at_cost = at_equal_cost(table, 3)  # the best of eight leaves at the first rung, and three drawn have it at times
    assert "| race, 1 rung | 3 | 3.0 |" in at_cost and "| race, 2 rungs | 4 | 3.0 |" in at_cost
    assert "| race, 3 rungs | 6 |" in at_cost
    assert "4 rungs" not in at_cost and "| 0.0000 to 0.0000 |" in at_cost
    assert table.of_nodes(1).cells == [] and table.of_nodes(2).values.shape == (8, 2)
    assert table.ceiling() == pytest.approx(1.0) and table.agreement()[0] < table.agreement()[1] == pytest.approx(1.0)


def test_a_choice_is_judged_by_the_training_not_seen(table):
    table.values[:, 1] = [1, 0, *range(2, 8)]
    lost, _ = regrets(table, partial(race, table, rungs=1), 8)
    assert set(lost) == {1.0}
    table.values[0] = np.inf
    lost, _ = regrets(table, lambda cells, training: Choice(0, 1.0), 8)
    assert set(lost) == {6.0, 7.0}
