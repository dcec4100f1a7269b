"""The contest that ends a search: its winner against other cells and PyTorch's layers, on equal terms."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wenet.cells import Cell, load_genotype
from wenet.files import written_whole
from wenet.nn import split_row
from wenet.run import DTYPES, RunFolder, Session, counted, figure
from wenet.run.budget import Budget
from wenet.run.folder import write_tensors
from wenet.searching.audit import final_ranking, welch
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import config_for, shape_name
from wenet.searching.space import space_of
from wenet.searching.strategy import RECORDS, strategy_of
from wenet.tasks import Metric, Task
from wenet.training import (
    LAYERS,
    READING,
    Architecture,
    Plan,
    StandaloneResult,
    build_cell,
    build_standalone,
    networks_left,
    parameter_count,
    seconds_per_network,
    train_standalone,
    training_windows,
)
from wenet_kernels import Program

FOLDER, RESULT, MODEL = "contest", "contest.json", "winner.safetensors"
WINNER = "winner"
ROW = "rnn.weights"  # where `StandaloneCellRNN` has the parameters of networks
RATE_SHARE = 2  # rates are tried for one in this many of the windows
CONTESTANTS = 6  # at most
TRIALS_SHARE = 0.3  # of the time for a contest, where that is limited
AFTERWARDS, LEAST_AFTERWARDS = 0.05, 5.0  # of the whole time, and in seconds, kept for the report
CHECKS = 20  # of a training on sequences of numbers, whose best weights count
TIMED_STEPS = 200


@dataclass(frozen=True)
class Contestant:
    """A participant, and the settings of its size."""

    name: str
    architecture: Architecture
    config: SearchConfig

    @property
    def group(self) -> str:
        """Contestants of equal groups train at once."""
        return shape_name(self.architecture, self.config)


def hold_contest(session: Session[SearchConfig]) -> dict[str, Any]:
    """Train the winner of a finished search beside its rivals; returns the contents of `contest.json`.

    All have as many parameters as the settings name, or as the winner has; PyTorch's layers have a few more rather than
    fewer. Each trains at its best rate of the settings' grid, chosen after half of the windows with a seed that is not
    used again. The test part is read once, after the last training.

    Raises:
        WenetError: as in `train_standalone`; also if a contest with other settings was begun in this folder.
        Stopped: a signal came; the same call resumes the contest.
    """
    config, task, data = session.config, session.task, session.data
    contestants = _contestants(session)
    groups = list(_groups(contestants))
    of_trials = _windows_of_trials(session, contestants)
    trials = [_choose_rates(session, group, of_trials) for group in groups]
    windows = _windows_of_trainings(session, of_trials, sum(trial.seconds for _, trial in trials))
    session.console.say(
        f"contest: {counted(len(contestants), 'contestant')}, {counted(config.contest_seeds, 'training')} each, "
        f"{counted(windows, 'window')}"
    )
    trainings = [
        _train_group(session, group, [rates[entrant.name] for entrant in group], windows)
        for group, (rates, _) in zip(groups, trials, strict=True)
    ]
    result: dict[str, Any] = session.ranks.on_first(
        lambda: {
            "windows": windows,
            "seeds": config.contest_seeds,
            "rates": config.rate_grid,
            "parameters": parameter_count(contestants[0].config, contestants[0].architecture, task, data),
            **_cost([trial for _, trial in trials] + trainings),
            "contestants": _table(session, groups, [rates for rates, _ in trials], trainings),
        }
    )
    session.folder.write_json(RESULT, result)
    return result


def _cost(results: Sequence[StandaloneResult]) -> dict[str, Any]:
    return {
        "network_windows": sum(each.network_windows for each in results),
        "seconds": round(sum(each.seconds for each in results), 3),
    }


def _table(
    session: Session[SearchConfig],
    groups: Sequence[Sequence[Contestant]],
    rates: Sequence[Mapping[str, float]],
    trainings: Sequence[StandaloneResult],
) -> list[dict[str, Any]]:
    """A row for each contestant, the best first; the winner's model is saved on the way."""
    found = []
    for group, chosen, training in zip(groups, rates, trainings, strict=True):
        for place, entrant in enumerate(group):
            found.append(_measured(session, entrant, chosen[entrant.name], training, place))
            if entrant.name == WINNER:
                _save_winner(session, group, place, training)
    metric = session.task.metric
    order = sorted(found, key=lambda row: math.inf if row["mean"] is None else metric.order(row["mean"]))
    winner = next(row for row in found if row["name"] == WINNER)
    return [{**row, "p": None if row is winner else welch(winner["test"], row["test"])} for row in order]


def _contestants(session: Session[SearchConfig]) -> list[Contestant]:
    """The winner first, then the runner-up, the median cell, and the task's rivals."""
    config, task, data = session.config, session.task, session.data
    ranking = final_ranking(session.folder.records(RECORDS), config.keep, strategy_of(config))
    cells = [cell.genotype for cell in ranking]
    named: dict[str, Architecture] = {WINNER: cells[0]}
    if len(cells) > 1:
        named["runner-up"] = cells[1]
    if len(cells) > 4:
        named["median cell"] = cells[len(cells) // 2]
    named |= {rival: rival if rival in LAYERS else load_genotype(rival) for rival in task.rivals}
    first = config_for(cells[0], config, task, data)
    wanted = config.parameters or parameter_count(first, cells[0], task, data)
    return [
        Contestant(name, architecture, config_for(architecture, config, task, data, wanted))
        for name, architecture in named.items()
    ]


def _windows_of_trials(session: Session[SearchConfig], contestants: Sequence[Contestant]) -> int:
    """Windows with which rates are tried. Within a budget this takes a part of the time left, if a window takes as long
    as it did in the search."""
    config, budget = session.config, session.budget
    if budget is None:
        return max(1, training_windows(session, config.contest_epochs) // RATE_SHARE)
    trained = [json.loads(path.read_text(encoding="utf-8")) for path in session.folder.path.glob("rungs/*/result.json")]
    each = sum(result["seconds"] for result in trained) / sum(result["network_windows"] for result in trained)
    networks = len(contestants) * len(config.rate_grid)
    time_for_them = TRIALS_SHARE * _time_to_train(budget)
    planned: int = budget.planned("windows_of_trials", lambda: max(1, int(time_for_them / (each * networks))))
    return planned


def _windows_of_trainings(session: Session[SearchConfig], of_trials: int, seconds: float) -> int:
    """Windows of each training; within a budget as many as the seconds that all trials took leave time for."""
    config, budget = session.config, session.budget
    if budget is None:
        return training_windows(session, config.contest_epochs)
    of_a_window = seconds / of_trials * config.contest_seeds / len(config.rate_grid)
    fitting = int(_time_to_train(budget) / of_a_window)
    planned: int = budget.planned("windows_of_contest", lambda: max(1, fitting))
    return planned


def _time_to_train(budget: Budget) -> float:
    """Seconds until the report is to be written."""
    return budget.left - max(LEAST_AFTERWARDS, AFTERWARDS * budget.total)


def _groups(contestants: Sequence[Contestant]) -> Iterator[list[Contestant]]:
    for group in dict.fromkeys(entrant.group for entrant in contestants):
        yield [entrant for entrant in contestants if entrant.group == group]


def _choose_rates(
    session: Session[SearchConfig], group: Sequence[Contestant], windows: int
) -> tuple[dict[str, float], StandaloneResult]:
    """The best rate of each contestant by the validation metric."""
    rates, metric = session.config.rate_grid, session.task.metric
    plan = Plan(
        [entrant.architecture for entrant in group for _ in rates],
        windows,
        session.config.seed,
        rates=rates * len(group),
        decay=True,
        checks=_checks(session),
    )
    trials = train_standalone(*_place(session, group, "rates"), plan, f"rates, {_names(group)}")
    chosen = {}
    for place, entrant in enumerate(group):
        own = trials.outcomes[place * len(rates) : (place + 1) * len(rates)]
        chosen[entrant.name] = min(zip(rates, own, strict=True), key=lambda pair: pair[1].order(metric))[0]
    return chosen, trials


def _train_group(
    session: Session[SearchConfig], group: Sequence[Contestant], rates: Sequence[float], windows: int
) -> StandaloneResult:
    """Run all trainings of all contestants in a group, at once."""
    seeds = session.config.contest_seeds
    plan = Plan(
        [entrant.architecture for entrant in group for _ in range(seeds)],
        windows,
        session.config.seed + 1,
        rates=[rate for rate in rates for _ in range(seeds)],
        decay=True,
        leave=any(entrant.name == WINNER for entrant in group),
        test=True,
        checks=_checks(session),
    )
    own, path = _place(session, group, "training")
    return train_standalone(own, path, plan, f"contest, {_names(group)}")


def _checks(session: Session[SearchConfig]) -> int:
    """A text is read too few times for a model to overfit."""
    return 0 if session.task.reads == "text" else CHECKS


def _place(
    session: Session[SearchConfig], group: Sequence[Contestant], what: str
) -> tuple[Session[SearchConfig], Path]:
    own = replace(session, config=group[0].config)
    return own, session.folder.path / FOLDER / f"{what}-{group[0].group}"


def _names(group: Sequence[Contestant]) -> str:
    return " and ".join(entrant.name for entrant in group)


def _measured(
    session: Session[SearchConfig], entrant: Contestant, rate: float, training: StandaloneResult, place: int
) -> dict[str, Any]:
    """A contestant's row of the table."""
    seeds = session.config.contest_seeds
    outcomes = training.outcomes[place * seeds : (place + 1) * seeds]
    test = [outcome.test for outcome in outcomes if outcome.test is not None and math.isfinite(outcome.test)]
    return {
        "name": entrant.name,
        "genotype": str(entrant.architecture),
        "hidden": entrant.config.hidden,
        "parameters": parameter_count(entrant.config, entrant.architecture, session.task, session.data),
        "rate": rate,
        "valid": [outcome.value if math.isfinite(outcome.value) else None for outcome in outcomes],
        "test": test,
        "mean": statistics.fmean(test) if test else None,
        "sd": statistics.stdev(test) if len(test) > 1 else None,
        "microseconds": round(_microseconds_per_step(session, entrant), 2),
    }


def _microseconds_per_step(session: Session[SearchConfig], entrant: Contestant) -> float:
    """Time of the layer for one sequence without gradients, the fastest of three."""
    with torch.random.fork_rng():
        model = build_standalone(entrant.config, [entrant.architecture], session.task, session.data)
    layer = model.rnn.to(session.device).eval()
    x = torch.zeros(1, TIMED_STEPS, 1, layer.input_size).to(next(layer.parameters()))
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        with torch.no_grad():
            layer(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        seconds.append(time.perf_counter() - started)
    return 1e6 * min(seconds) / TIMED_STEPS


def _save_winner(
    session: Session[SearchConfig], group: Sequence[Contestant], place: int, training: StandaloneResult
) -> None:
    """Keep the winner's model with the best validation metric; delete the weights of all others in its group."""
    if (session.folder.path / MODEL).exists():
        return
    seeds, metric = session.config.contest_seeds, session.task.metric
    own = range(place * seeds, (place + 1) * seeds)
    best = min(own, key=lambda number: training.outcomes[number].order(metric))
    left = networks_left(*_place(session, group, "training"), len(training.outcomes))
    with closing(RunFolder.open(left[best].folder, READING)) as run:
        checkpoint = run.load_checkpoint()
        assert checkpoint is not None
    tensors = {
        name.removeprefix("model."): tensor[left[best].place]
        for name, tensor in checkpoint[1].items()
        if name.startswith("model.") and not name.endswith("_extra_state")
    }
    if ROW in tensors:
        tensors |= _split(tensors.pop(ROW), session, group[place])
    with written_whole(session.folder.path / MODEL) as partial:
        write_tensors(partial, tensors, {"genotype": str(group[place].architecture)})
    for folder in {origin.folder for origin in left}:
        with closing(RunFolder.open(folder, READING)) as run:
            run.remove_checkpoints()


def _split(row: Tensor, session: Session[SearchConfig], entrant: Contestant) -> dict[str, Tensor]:
    """A program's parameters by their names in a model of its own, from their row beside other networks."""
    assert isinstance(entrant.architecture, Program)
    with torch.device("meta"):
        layer = _single(entrant.config, entrant.architecture, session.task, session.data).rnn
    shapes = {f"rnn.{name}": tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    return {name: tensor.clone() for name, tensor in split_row(row, shapes).items()}


def winners_model(config: SearchConfig, cell: Cell, task: Task, data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The model of `winner.safetensors`: a single one around the cell."""
    model = _single(config_for(cell, config, task, data), cell, task, data)
    weights = {name.replace("embedding", "embedding.weight"): tensor for name, tensor in tensors.items()}
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def _single(config: SearchConfig, cell: Cell, task: Task, data: Any) -> Any:
    return task.model(build_cell(config, cell, task.inputs(data, config)), config, data).to(DTYPES[config.precision])


def estimate_contest(session: Session[SearchConfig]) -> float:
    """Seconds of the contest, as if all contestants were like the largest cell of the search."""
    config, task, data = session.config, session.task, session.data
    cell = space_of(config).largest(config)
    sized = config_for(cell, config, task, data)
    held_out = sum(task.positions(data, part) for part in ("valid", "test")) / 3 / task.positions(data, "train")
    epochs = config.contest_epochs * (config.contest_seeds + len(config.rate_grid) / RATE_SHARE)
    return CONTESTANTS * seconds_per_network(sized, cell, epochs + config.contest_seeds * held_out, task, data)


def describe_contest(result: Mapping[str, Any], metric: Metric) -> list[str]:
    """Describe the contest: a line for each contestant, the best first, and a verdict on the winner."""
    seeds, places = result["seeds"], metric.final_places
    lines = [
        f"contest   test {metric.name} of {counted(seeds, 'training')} each, {result['parameters']:,} parameters, "
        f"{counted(result['windows'], 'window')}:"
    ]
    for row in result["contestants"]:
        spread = "" if row["sd"] is None else f" ± {row['sd']:.{places}f}"
        p = "" if row["p"] is None else f"p = {row['p']:.2g}"
        lines.append(
            f"          {figure(row['mean'], places, 'diverged')}{spread}  {row['name']:<11}  {p:<11}  "
            f"rate {row['rate']:g}, hidden {row['hidden']}, {row['parameters']:,} parameters, "
            f"{row['microseconds']:.0f} µs a step"
        )
    return [*lines, f"          {verdict(result, metric)}"]


def verdict(result: Mapping[str, Any], metric: Metric, layers: Sequence[str] = tuple(LAYERS)) -> str:
    """A sentence that compares the winner with PyTorch's layers, and claims only what the trainings show."""
    winner = next(row for row in result["contestants"] if row["name"] == WINNER)
    parts = []
    for row in result["contestants"]:
        if row["name"] not in layers:
            continue
        if row["p"] is None or winner["mean"] is None:
            parts.append(f"cannot be compared with {row['name']}")
        elif row["p"] >= 0.05:
            parts.append(f"is not shown to differ from {row['name']}")
        else:
            better = metric.order(winner["mean"]) < metric.order(row["mean"])
            parts.append(f"is {'better' if better else 'worse'} than {row['name']}")
    return f"the winner {' and '.join(parts)} (p < 0.05, Welch's t-test)"
