"""The model that the contest of a search has trained."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wenet.cells import cell_from_dict
from wenet.run import RunFolder, stored_config, stored_data, stored_kind
from wenet.searching import SEARCH
from wenet.searching.contest import FOLDER, RESULT, WINNER, read_winner, winners_model
from wenet.tasks import TASKS, Metric, task_of


@dataclass(frozen=True)
class TrainedWinner:
    """A search's winner as its contest trained it.

    Attributes:
        model: on the CPU, for evaluation.
        data: what the search read.
        metric: of its weights, by names such as "valid_perplexity".
    """

    model: Any
    data: Any
    metric: dict[str, float]


def has_trained_winner(folder: Path) -> bool:
    """Whether a folder is of a search whose model is to be taken: one with a contest, or on numbers."""
    stored = stored_kind(folder)
    if stored is None or stored[0] != SEARCH.kind:
        return False
    return TASKS[stored[1]].reads == "numbers" or any((folder / name).exists() for name in (FOLDER, RESULT))


def trained_winner(folder: Path, data_dir: Path | None = None) -> TrainedWinner:
    """The winner's trained model of a search.

    Raises:
        WenetError: there was no contest, or it has not ended; or the data are gone.
    """
    with closing(RunFolder.open(folder, to_read=True)) as run:
        config = stored_config(run, SEARCH)
        task = task_of(config)
        data = stored_data(run, config, task, data_dir)
        cell = cell_from_dict(run.read_json("best.json", "genotype")["genotype"])
        tensors = read_winner(folder, cell)
        result = run.read_json(RESULT, "contestants")
    model = winners_model(config, cell, task, data, tensors).to("cpu").eval()
    return TrainedWinner(model, data, _metric_of(result, task.metric))


def _metric_of(result: dict[str, Any], metric: Metric) -> dict[str, float]:
    """What the training of a contest's winner that was kept reached."""
    row = next(row for row in result["contestants"] if row["name"] == WINNER)
    found = {f"{part}_{metric.key}": row[part][row["kept"]] for part in ("valid", "test")}
    return {name: value for name, value in found.items() if value is not None}
