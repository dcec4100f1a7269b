"""The contest that ends a search: its winner against other cells and PyTorch's layers, on equal terms."""

from __future__ import annotations

import itertools
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

from wenet.cells import Cell, load_genotype, read_cell
from wenet.cells.instances import GRU, LSTM
from wenet.files import written_whole
from wenet.nn import split_row
from wenet.run import DTYPES, RunFolder, Session, counted, figure
from wenet.run.budget import Budget
from wenet.run.folder import write_tensors
from wenet.searching.audit import final_ranking, welch
from wenet.searching.settings import FULLY, SearchConfig
from wenet.searching.shapes import Group, by_shape, config_for
from wenet.searching.space import identity, known_name, space_of
from wenet.searching.strategy import RECORDS, Best, strategy_of
from wenet.tasks import Metric, Task
from wenet.training import (
    LAYERS,
    READING,
    Architecture,
    Origin,
    Outcome,
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
WINNER, RUNNER_UP, MEDIAN = "winner", "runner-up", "median cell"
HEAD = "head_weight"  # of models of sequences, `[n, H, K]`
ROW = "rnn.weights"  # where `StandaloneCellRNN` has the parameters of networks
RATE_SHARE = 2  # a trial has one in this many of the windows
OTHERS = 5  # contestants that are no finalists, at most
TRIALS_SHARE = 0.5  # of the time for a contest, where that is limited
AFTERWARDS, LEAST_AFTERWARDS = 0.05, 5.0  # of the whole time, and in seconds, kept for the report
CHECKS = 20  # of a training on sequences of numbers, whose best weights count
TIMED_STEPS, TIMED_ROUNDS = 200, 20


@dataclass(frozen=True)
class Contestant:
    """A participant, and the settings of its size.

    Attributes:
        finalist: whether it may become the winner.
    """

    name: str
    architecture: Architecture
    config: SearchConfig
    finalist: bool = False


@dataclass(frozen=True)
class Trial:
    """A short training at one rate, with one weight decay."""

    rate: float
    weight_decay: float
    outcome: Outcome

    def to_dict(self, metric: Metric) -> dict[str, Any]:
        value = self.outcome.value
        return {
            "rate": self.rate,
            "weight_decay": self.weight_decay,
            metric.key: value if math.isfinite(value) else None,
        }


@dataclass(frozen=True)
class Trained:
    """The final trainings of a contestant.

    Attributes:
        trial: the best, whose rate and weight decay these have.
        outcomes, networks: one for each seed.
    """

    entrant: Contestant
    trial: Trial
    outcomes: list[Outcome]
    networks: list[Origin]

    def best(self, metric: Metric) -> int:
        """The training that was best on the validation part."""
        return min(range(len(self.outcomes)), key=lambda number: self.outcomes[number].order(metric))

    def order(self, metric: Metric) -> tuple[float, float]:
        """What to sort by, the best first: the mean metric on the validation part, and where it is equal the loss."""
        orders = [outcome.order(metric) for outcome in self.outcomes]
        return statistics.fmean(value for value, _ in orders), statistics.fmean(loss for _, loss in orders)


def hold_contest(session: Session[SearchConfig], best: Best) -> tuple[Best, dict[str, Any]]:
    """Train the finalists of a search beside their rivals; returns its winner and the contents of `contest.json`.

    Finalists are the first cells of the search, and if these are several, LSTM and GRU where they took part. All have
    as many parameters as the settings name, or as the first cell has; PyTorch's layers have a few more rather than
    fewer. Each is tried at every rate of the settings' grid, with every weight decay, for half of the windows with a
    seed that is not used again, and trains as was best; but only `FULLY` finalists do, those whose trials were the
    best. The one whose trainings are the best on the validation part is the winner. The test part decides nothing.

    Raises:
        WenetError: as in `train_standalone`; also if a contest with other settings was begun in this folder.
        Stopped: a signal came; the same call resumes the contest.
    """
    config, task, data = session.config, session.task, session.data
    contestants = _contestants(session)
    groups = _groups(session, contestants)
    of_trials = _windows_of_trials(session, groups)
    trials = [_try_all(session, group, of_trials) for group in groups]
    tried = _best_trials(session, groups, trials)
    going_on = _going_on(contestants, tried, task.metric)
    windows = _windows_of_trainings(session, groups, trials, of_trials, going_on)
    session.console.say(_announced(session, contestants, going_on, windows))
    trained: list[Trained] = []
    trainings = []
    for group in (part for group in groups if (part := group.only(going_on)) is not None):
        entrants = [contestants[place] for place in group.places]
        chosen = [tried[place] for place in group.places]
        trainings.append(_train_group(session, group, entrants, chosen, windows))
        trained += _by_contestant(session, group, entrants, chosen, trainings[-1])
    trained = _named_by_rank(trained, task.metric)
    result: dict[str, Any] = session.ranks.on_first(
        lambda: {
            "windows": windows,
            "seeds": config.contest_seeds,
            "rates": config.rate_grid,
            "weight_decays": config.decay_grid,
            "parameters": parameter_count(contestants[0].config, contestants[0].architecture, task, data),
            **_cost(trials + trainings),
            "trials": [
                {"genotype": str(each.architecture), **tried[place].to_dict(task.metric), "trained": place in going_on}
                for place, each in enumerate(contestants)
            ],
            "contestants": _table(session, trained),
        }
    )
    best = _confirmed(session, best, trained, windows, sum(entrant.finalist for entrant in contestants))
    session.folder.write_json(RESULT, result)
    return best, result


def _groups(session: Session[SearchConfig], contestants: Sequence[Contestant]) -> list[Group]:
    """Contestants that train at once."""
    architectures = [entrant.architecture for entrant in contestants]
    parameters = _parameters(session, architectures[0])
    return by_shape(architectures, session.config, session.task, session.data, parameters)


def _announced(
    session: Session[SearchConfig], contestants: Sequence[Contestant], going_on: Sequence[int], windows: int
) -> str:
    """What the trainings are, before they begin."""
    left = len(contestants) - len(going_on)
    behind = f" ({counted(left, 'finalist')} left after the trials)" if left else ""
    return (
        f"contest: {counted(len(going_on), 'contestant')}{behind}, "
        f"{counted(session.config.contest_seeds, 'training')} each, {counted(windows, 'window')}"
    )


def _confirmed(
    session: Session[SearchConfig], best: Best, trained: Sequence[Trained], windows: int, finalists: int
) -> Best:
    """The winner of the search, which several finalists may have become."""
    if finalists == 1:
        return best
    winner, metric = trained[0], session.task.metric
    values = [outcome.value for outcome in winner.outcomes]
    best = best.after_final(winner.outcomes[0].cell, values, windows, finalists)
    session.folder.write_json("best.json", best.to_dict(metric))
    return best


def _cost(results: Sequence[StandaloneResult]) -> dict[str, Any]:
    return {
        "network_windows": sum(each.network_windows for each in results),
        "seconds": round(sum(each.seconds for each in results), 3),
    }


def _table(session: Session[SearchConfig], trained: Sequence[Trained]) -> list[dict[str, Any]]:
    """A row for each contestant, the best on the test part first; the winner's model is saved on the way."""
    metric = session.task.metric
    _save_winner(session, trained)
    microseconds = _microseconds_per_step(session, [each.entrant for each in trained])
    winner, *others = [_measured(session, *each) for each in zip(trained, microseconds, strict=True)]
    rows = [{**winner, "p": None}, *({**row, "p": welch(winner["test"], row["test"])} for row in others)]
    return sorted(rows, key=lambda row: math.inf if row["mean"] is None else metric.order(row["mean"]))


def _contestants(session: Session[SearchConfig]) -> list[Contestant]:
    """The finalists, the first of the search first, then the runner-up, the median cell, and the task's rivals."""
    config, task, data = session.config, session.task, session.data
    ranking = final_ranking(session.folder.records(RECORDS), config.keep, strategy_of(config))
    cells = [cell.genotype for cell in ranking]
    finalists = cells[: config.finalists]
    if config.finalists > 1:
        known = {identity(LSTM), identity(GRU)}
        finalists += [cell for cell in cells if cell not in finalists and identity(cell) in known]
    others = [cell for cell in cells if cell not in finalists]
    named: dict[str, Architecture] = {}
    if len(finalists) == 1 and others:
        named[RUNNER_UP] = others.pop(0)
    if len(cells) > 4 and others:
        middle = len(cells) // 2
        named[MEDIAN] = min(others, key=lambda cell: abs(cells.index(cell) - middle))
    named |= {rival: rival if rival in LAYERS else load_genotype(rival) for rival in task.rivals}
    wanted = _parameters(session, cells[0])

    def sized(name: str, architecture: Architecture, finalist: bool) -> Contestant:
        return Contestant(name, architecture, config_for(architecture, config, task, data, wanted), finalist)

    first = [sized(f"finalist {place}", cell, True) for place, cell in enumerate(finalists, start=1)]
    return [*first, *(sized(name, architecture, False) for name, architecture in named.items())]


def _parameters(session: Session[SearchConfig], first: Architecture) -> int:
    """The number of parameters of each contestant."""
    config, task, data = session.config, session.task, session.data
    return config.parameters or parameter_count(config_for(first, config, task, data), first, task, data)


def _named_by_rank(trained: Sequence[Trained], metric: Metric) -> list[Trained]:
    """The winner first, as the validation part has it; then the other finalists, by their rank there."""
    finalists = sorted((each for each in trained if each.entrant.finalist), key=lambda each: each.order(metric))
    names = [WINNER, RUNNER_UP, *(f"finalist {place}" for place in range(3, 1 + len(finalists)))]
    ranked = [
        replace(each, entrant=replace(each.entrant, name=name)) for each, name in zip(finalists, names, strict=False)
    ]
    return [*ranked, *(each for each in trained if not each.entrant.finalist)]


def _windows_of_trials(session: Session[SearchConfig], groups: Sequence[Group]) -> int:
    """Windows of each trial. Within a budget they take a part of the time left, if calls take as long as those of the
    search."""
    config, budget = session.config, session.budget
    if budget is None:
        return max(1, training_windows(session, config.contest_epochs) // RATE_SHARE)
    trained = [json.loads(path.read_text(encoding="utf-8")) for path in session.folder.path.glob("rungs/*/result.json")]
    of_call, of_network = seconds_of_a_window(
        [len(result["outcomes"]) for result in trained],
        [result["seconds"] * len(result["outcomes"]) / result["network_windows"] for result in trained],
    )
    networks = len(_grid(config)) * sum(len(group.places) for group in groups)
    each = len(groups) * of_call + networks * of_network
    time_for_them = TRIALS_SHARE * _time_to_train(budget)
    planned: int = budget.planned("windows_of_trials", lambda: max(1, int(time_for_them / each)))
    return planned


def seconds_of_a_window(networks: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """What a call takes, and what each of its networks adds: the line through calls of different size, `seconds` each,
    that has the least squares. A few networks in a call of their own take nearly as long as many."""
    size, time_taken = statistics.fmean(networks), statistics.fmean(seconds)
    spread = math.fsum((count - size) ** 2 for count in networks)
    pairs = zip(networks, seconds, strict=True)
    slope = math.fsum((count - size) * (one - time_taken) for count, one in pairs) / spread if spread else 0.0
    slope = min(max(slope, 0.0), time_taken / size)
    return time_taken - slope * size, slope


def _windows_of_trainings(
    session: Session[SearchConfig],
    groups: Sequence[Group],
    trials: Sequence[StandaloneResult],
    of_trials: int,
    going_on: Sequence[int],
) -> int:
    """Windows of each training; within a budget as many as fit into the rest of it, by the time that trials took."""
    config, budget = session.config, session.budget
    if budget is None:
        return training_windows(session, config.contest_epochs)
    left = [len(set(group.places) & set(going_on)) for group in groups]
    seconds = sum(
        trial.seconds / of_trials * (count * config.contest_seeds) / (len(group.places) * len(_grid(config)))
        for group, trial, count in zip(groups, trials, left, strict=True)
    )
    planned: int = budget.planned("windows_of_contest", lambda: max(1, int(_time_to_train(budget) / seconds)))
    return planned


def _time_to_train(budget: Budget) -> float:
    """Seconds until the report is to be written."""
    return budget.left - max(LEAST_AFTERWARDS, AFTERWARDS * budget.total)


def _grid(config: SearchConfig) -> list[tuple[float, float]]:
    """Pairs of a rate and a weight decay to try."""
    return list(itertools.product(config.rate_grid, config.decay_grid))


def _where_several(config: SearchConfig, weight_decays: list[float]) -> list[float]:
    """Nothing where all have the weight decay of the settings."""
    return weight_decays if len(config.decay_grid) > 1 else []


def _try_all(session: Session[SearchConfig], group: Group, windows: int) -> StandaloneResult:
    """Train every contestant of a group at every rate with every weight decay."""
    grid = _grid(session.config)
    plan = Plan(
        [architecture for architecture in group.architectures for _ in grid],
        windows,
        session.config.seed,
        rates=[rate for rate, _ in grid] * len(group.places),
        decay=True,
        hidden=group.hidden(len(grid)),
        checks=_checks(session),
        weight_decays=_where_several(session.config, [weight_decay for _, weight_decay in grid] * len(group.places)),
    )
    return train_standalone(*_place(session, group, "trials"), plan, f"trials, {group.name}")


def _best_trials(
    session: Session[SearchConfig], groups: Sequence[Group], trials: Sequence[StandaloneResult]
) -> dict[int, Trial]:
    """The best trial of each contestant by the validation metric, by its place."""
    grid, metric = _grid(session.config), session.task.metric
    found = {}
    for group, trial in zip(groups, trials, strict=True):
        for number, place in enumerate(group.places):
            own = trial.outcomes[number * len(grid) : (number + 1) * len(grid)]
            each = (Trial(*pair, outcome) for pair, outcome in zip(grid, own, strict=True))
            found[place] = min(each, key=lambda one: one.outcome.order(metric))
    return found


def _going_on(contestants: Sequence[Contestant], tried: Mapping[int, Trial], metric: Metric) -> list[int]:
    """The places of those that train in full: the finalists with the best trials, and all that are none."""
    finalists = [place for place, entrant in enumerate(contestants) if entrant.finalist]
    best = sorted(finalists, key=lambda place: tried[place].outcome.order(metric))[:FULLY]
    return [place for place, entrant in enumerate(contestants) if place in best or not entrant.finalist]


def _train_group(
    session: Session[SearchConfig],
    group: Group,
    entrants: Sequence[Contestant],
    chosen: Sequence[Trial],
    windows: int,
) -> StandaloneResult:
    """Run all trainings of all contestants in a group, at once."""
    seeds = session.config.contest_seeds
    plan = Plan(
        [architecture for architecture in group.architectures for _ in range(seeds)],
        windows,
        session.config.seed + 1,
        rates=[trial.rate for trial in chosen for _ in range(seeds)],
        decay=True,
        leave=any(entrant.finalist for entrant in entrants),
        test=True,
        hidden=group.hidden(seeds),
        checks=_checks(session),
        weight_decays=_where_several(session.config, [trial.weight_decay for trial in chosen for _ in range(seeds)]),
    )
    own, path = _place(session, group, "training")
    names = " and ".join(entrant.name for entrant in entrants)
    return train_standalone(own, path, plan, f"contest, {names}")


def _by_contestant(
    session: Session[SearchConfig],
    group: Group,
    entrants: Sequence[Contestant],
    chosen: Sequence[Trial],
    training: StandaloneResult,
) -> Iterator[Trained]:
    seeds = session.config.contest_seeds
    left = networks_left(*_place(session, group, "training"), len(training.outcomes))
    for number, (entrant, trial) in enumerate(zip(entrants, chosen, strict=True)):
        own = slice(number * seeds, (number + 1) * seeds)
        yield Trained(entrant, trial, training.outcomes[own], left[own])


def _checks(session: Session[SearchConfig]) -> int:
    """A text is read too few times for a model to overfit."""
    return 0 if session.task.reads == "text" else CHECKS


def _place(session: Session[SearchConfig], group: Group, what: str) -> tuple[Session[SearchConfig], Path]:
    return replace(session, config=group.config), session.folder.path / FOLDER / f"{what}-{group.name}"


def _measured(session: Session[SearchConfig], trained: Trained, microseconds: float) -> dict[str, Any]:
    """A contestant's row of the table."""
    entrant, outcomes = trained.entrant, trained.outcomes
    test = [outcome.test for outcome in outcomes if outcome.test is not None and math.isfinite(outcome.test)]
    return {
        "name": entrant.name,
        "genotype": str(entrant.architecture),
        "hidden": entrant.config.hidden,
        "parameters": parameter_count(entrant.config, entrant.architecture, session.task, session.data),
        "rate": trained.trial.rate,
        "weight_decay": trained.trial.weight_decay,
        "valid": [outcome.value if math.isfinite(outcome.value) else None for outcome in outcomes],
        "test": test,
        "kept": trained.best(session.task.metric),
        "mean": statistics.fmean(test) if test else None,
        "sd": statistics.stdev(test) if len(test) > 1 else None,
        "microseconds": round(microseconds, 2),
    }


def _microseconds_per_step(session: Session[SearchConfig], entrants: Sequence[Contestant]) -> list[float]:
    """Time of each layer for one sequence without gradients, in the engine that trained it.

    Layers run in turn, so that what else the machine does meets them all, and the fastest run of each counts.
    """
    runs = []
    for entrant in entrants:
        with torch.random.fork_rng():
            model = build_standalone(entrant.config, [entrant.architecture], session.task, session.data)
        layer = model.rnn.to(session.device).eval()
        runs.append((layer, torch.zeros(TIMED_STEPS, 1, layer.input_size).to(next(layer.parameters()))))
    fastest = [math.inf] * len(runs)
    for _ in range(TIMED_ROUNDS):
        for place, (layer, x) in enumerate(runs):
            fastest[place] = min(fastest[place], _seconds(layer, x))
    return [1e6 * seconds / TIMED_STEPS for seconds in fastest]


@torch.no_grad()
def _seconds(layer: Any, x: Tensor) -> float:
    started = time.perf_counter()
    layer(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - started


def _save_winner(session: Session[SearchConfig], trained: Sequence[Trained]) -> None:
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
        assert checkpoint is not None
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
    others = OTHERS - (config.finalists > 1)  # the runner-up is one of several finalists
    tried, trained = config.finalists + others, min(config.finalists, FULLY) + others
    passes = tried * config.contest_epochs * len(_grid(config)) / RATE_SHARE
    passes += trained * config.contest_seeds * (config.contest_epochs + held_out)
    return seconds_per_network(sized, cell, passes, task, data)


def describe_contest(result: Mapping[str, Any], metric: Metric) -> list[str]:
    """Describe the contest: a line for each contestant, the best first, and a verdict on the winner."""
    seeds, places = result["seeds"], metric.final_places
    lines = [
        f"contest   test {metric.name} of {counted(seeds, 'training')} each, {result['parameters']:,} parameters, "
        f"{counted(result['windows'], 'window')}:"
    ]
    names = [_with_known_name(row) for row in result["contestants"]]
    for row, name in zip(result["contestants"], names, strict=True):
        spread = "" if row["sd"] is None else f" ± {row['sd']:.{places}f}"
        p = "" if row["p"] is None else f"p = {row['p']:.2g}"
        lines.append(
            f"          {figure(row['mean'], places, 'diverged')}{spread}  {name:<{max(map(len, names))}}  {p:<11}  "
            f"rate {row['rate']:g}, {_decay_of(row)}hidden {row['hidden']}, {row['parameters']:,} parameters, "
            f"{row['microseconds']:.0f} µs a step"
        )
    return [*lines, f"          {verdict(result, metric)}"]


def _decay_of(row: Mapping[str, Any]) -> str:
    decay = row.get("weight_decay", 0.0)  # earlier versions chose none
    return f"weight decay {decay:g}, " if decay else ""


def _with_known_name(row: Mapping[str, Any]) -> str:
    known = None if row["name"] in LAYERS else known_name(read_cell(row["genotype"]))
    return row["name"] if known is None else f"{row['name']} ({known})"


def verdict(result: Mapping[str, Any], metric: Metric, layers: Sequence[str] = tuple(LAYERS)) -> str:
    """A sentence that compares the winner with PyTorch's layers, and claims only what the trainings show."""
    winner = next(row for row in result["contestants"] if row["name"] == WINNER)
    same = known_name(read_cell(winner["genotype"]))
    found: dict[str, list[str]] = {}
    for row in result["contestants"]:
        if row["name"] in layers and row["name"] != (same or "").removesuffix("-tanh"):
            found.setdefault(_compared(winner, row, metric), []).append(row["name"])
    parts = [f"{relation} {' and '.join(names)}" for relation, names in found.items()]
    itself = [] if same is None else [f"is the published cell {same}"]
    return f"the winner {', '.join([*itself, *parts])} (p < 0.05, Welch's t-test)"


def _compared(winner: Mapping[str, Any], row: Mapping[str, Any], metric: Metric) -> str:
    if row["p"] is None or winner["mean"] is None:
        return "cannot be compared with"
    if row["p"] >= 0.05:
        return "is not shown to differ from"
    better = metric.order(winner["mean"]) < metric.order(row["mean"])
    return f"is {'better' if better else 'worse'} than"
