"""The trained winner of a contest, kept in the folder of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wenet.cells import Cell
from wenet.files import written_whole
from wenet.nn import split_row
from wenet.run import DTYPES, RunFolder, Session, read_tensors
from wenet.run.folder import write_tensors
from wenet.searching.contest.contestants import Contestant
from wenet.searching.contest.trainings import Trained
from wenet.searching.contest.trials import FOLDER as CONTEST
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import config_for
from wenet.tasks import Task
from wenet.training import READING, Origin, build_cell
from wenet_kernels import Program, WenetError

RESULT = "contest.json"
MODEL = "winner.safetensors"
HEAD = "head_weight"  # of models of sequences, `[n, H, K]`
ROW = "rnn.weights"  # where `StandaloneCellRNN` has the parameters of networks


def save_winner(session: Session[SearchConfig], trained: Sequence[Trained]) -> None:
    """Keep the winner's model with the best validation metric; delete the weights of all others."""
    if not (session.folder.path / MODEL).exists():
        winner = trained[0]
        _save_model(session, winner.entrant, winner.networks[winner.best(session.task.metric)])
    for folder in {network.folder for each in trained if each.entrant.finalist for network in each.networks}:
        with closing(RunFolder.open(folder, READING)) as run:
            run.remove_checkpoints()


def _save_model(session: Session[SearchConfig], entrant: Contestant, network: Origin) -> None:
    """Keep one network's model."""
    with closing(RunFolder.open(network.folder, READING)) as run:
        checkpoint = run.load_checkpoint()
    if checkpoint is None:
        folder = session.folder.path
        raise WenetError(f"{folder / MODEL} is gone, and its weights with it; delete {_held_again(folder)}")
    tensors = {
        name.removeprefix("model."): tensor[network.place]
        for name, tensor in checkpoint[1].items()
        if name.startswith("model.") and not name.endswith("_extra_state")
    }
    if ROW in tensors:
        tensors |= _split(tensors.pop(ROW), session, entrant)
    if HEAD in tensors:
        tensors[HEAD] = tensors[HEAD][: entrant.config.hidden].clone()  # beside larger networks it has more rows
    with written_whole(session.folder.path / MODEL) as partial:
        write_tensors(partial, tensors, {"genotype": str(entrant.architecture)})


def _split(row: Tensor, session: Session[SearchConfig], entrant: Contestant) -> dict[str, Tensor]:
    """A program's parameters by their names in a model of its own, from their row beside other networks."""
    assert isinstance(entrant.architecture, Program)
    with torch.device("meta"):
        layer = _single(entrant.config, entrant.architecture, session.task, session.data).rnn
    shapes = {f"rnn.{name}": tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    return {name: tensor.clone() for name, tensor in split_row(row, shapes).items()}


def read_winner(folder: Path, cell: Cell | None = None) -> dict[str, Tensor]:
    """The tensors of a run's `winner.safetensors`.

    Args:
        cell: the cell that they must be of, if it is known.

    Raises:
        WenetError: there are none, they are damaged, or of another cell.
    """
    path = folder / MODEL
    if not path.exists() and not (folder / CONTEST).exists():
        raise WenetError(f"{folder} has no trained model; search with --contest, or train the cell")
    if not (folder / RESULT).exists():
        raise WenetError(f"the contest of {folder} has not ended; continue with wenet-search --resume {folder}")
    if not path.exists():
        raise WenetError(f"{path} is gone; delete {_held_again(folder)}")
    mend = f"delete it and {_held_again(folder)}"
    tensors, about = read_tensors(path, mend)
    if cell is not None and about.get("genotype", str(cell)) != str(cell):
        raise WenetError(f"{path} has the weights of {about['genotype']}, not of {cell}; {mend}")
    return tensors


def _held_again(folder: Path) -> str:
    """What to delete for a new contest, and what follows then."""
    return f"{folder / CONTEST}, and --resume holds the contest again"


def winners_model(config: SearchConfig, cell: Cell, task: Task, data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The model of `winner.safetensors`: a single one around the cell."""
    # One of PyTorch's layers has a few parameters more than the settings name.
    hidden = tensors[HEAD].shape[0] if HEAD in tensors else tensors["embedding"].shape[1]
    model = _single(replace(config_for(cell, config, task, data), hidden=hidden), cell, task, data)
    weights = {name.replace("embedding", "embedding.weight"): tensor for name, tensor in tensors.items()}
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def _single(config: SearchConfig, cell: Cell, task: Task, data: Any) -> Any:
    return task.model(build_cell(config, cell, task.inputs(data, config)), config, data).to(DTYPES[config.precision])
