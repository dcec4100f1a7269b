"""Settings of a search."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wenet.cells import Genotype, check_activations, load_genotypes
from wenet.cells.gated import MAX_BLOCKS, MIN_BLOCKS
from wenet.data import WINDOWS
from wenet.run import Group
from wenet.run.settings import flag, option, overridden
from wenet.searching.series_settings import SeriesConfig
from wenet.tasks import TASKS
from wenet.training.settings import inherited
from wenet.words import counted
from wenet_kernels import ACTIVATIONS, MAX_NODES, WenetError, check_choice, registered_among

# A setting that is asked for counts more than another that a preset has in its place.
INSTEAD = {"hidden": "parameters", "weight_decay": "weight_decays"}
FULLY = 3  # finalists that train in full, of those that are tried in a contest
# Settings that are a number or a range: the least, the most, and an example.
RANGES = {"nodes": (1, MAX_NODES, "1-4"), "blocks": (MIN_BLOCKS, MAX_BLOCKS, "2-6"), "states": (1, 2, "1-2")}
GRIDS = ("rates", "weight_decays")  # settings that are several numbers

# Module and class of each strategy, by name. `repeated` serves --runs.
STRATEGIES = {
    "wenet": "wenet.searching.mixture:Mixture",
    "race": "wenet.searching.race:Race",
    "random": "wenet.searching.halving:Halving",
    "repeated": "wenet.searching.repeated:Repeated",
}


@dataclass(frozen=True)
class SearchConfig(SeriesConfig):
    """All settings that affect the result of a search. Defaults are the paper's (section 4.1), where it states them.

    Raises:
        WenetError: a value is out of range.
    """

    preset: str = inherited(
        "preset",
        "paper",
        "paper, quick, race or words; by default paper with a GPU, and without one race, or words for a text read by "
        "words; numbers for sequences",
    )
    pool: int = option(10_000, "cells to search in total", Group.FIRST, metavar="T", at_least=1, at_most=100_000)
    batch: int = option(
        100, "new cells in each round, or in each generation of a race", Group.FIRST, metavar="B", at_least=1
    )
    keep: int = option(
        20,
        "cells kept from each round for the next, or mutated for the next generation of a race",
        Group.MIXTURE,
        metavar="K",
        at_least=1,
    )
    epochs_per_round: float = option(
        2.0, "passes over the training data in each round, or in the first rung", Group.FIRST, metavar="F", above=0
    )
    nodes: str = option(
        "8", "nodes of a cell: a number, or with --strategy race a range such as 1-4", Group.FIRST, metavar="L"
    )
    parameters: int | None = option(
        None,
        "parameters of every model; --hidden is then chosen for each cell",
        Group.FIRST,
        metavar="N",
        at_least=1,
    )
    contest: bool = option(
        False, "end with a contest: the winner against LSTM, GRU and other cells at equal parameters", Group.RACE
    )
    runs: int = option(
        1, "separate searches, whose winners are ranked by standalone training", Group.MIXTURE, metavar="R", at_least=1
    )
    audit: int = option(
        0,
        "after the search, train N cells standalone: those kept, and some of the rejected; also with --resume",
        Group.STANDALONE,
        metavar="N",
        at_least=0,
    )
    space: str = option(
        "dag",
        "dag (nodes that each read one other), gated (programs with gates and memory, LSTM and GRU among them) or both",
        Group.CELLS,
        choices=("dag", "gated", "both"),
    )
    blocks: str = option("2-6", "products of a gated cell: a number or a range, from 2 to 8", Group.CELLS, metavar="B")
    states: str = option("1-2", "states that a gated cell carries: 1, 2 or 1-2", Group.CELLS, metavar="S")
    known: bool = option(
        True,
        "begin a gated pool with LSTM and GRU, and end it with the published cells",
        Group.CELLS,
    )
    activations: str = option(
        ",".join(ACTIVATIONS),
        "activations that nodes are drawn from (mutations of programs may have any)",
        Group.CELLS,
        metavar="NAME,NAME...",
    )
    initial_cells: str | None = option(
        None, "cells that compete in the first round: one a line, or a JSON list", Group.CELLS, metavar="FILE"
    )
    pool_seed: int | None = option(None, "seed of the pool, if it should differ from --seed", Group.CELLS, at_least=0)
    norm: str = option("batch", "batch (normalise every node) or none", Group.MIXTURE, choices=("batch", "none"))
    # The paper does not state this; it is the rate of DARTS's architecture weights.
    mix_lr: float = option(3e-3, "Adam's learning rate of the mixing weights", Group.MIXTURE, metavar="RATE", above=0)
    eval_batch: int = inherited(
        "eval_batch",
        10,
        "text streams, or sequences of numbers, side by side in validation; with --norm batch --data-batch",
    )
    # The paper: "identical to those in" Merity et al. and Yang et al., who agree: penalties of 2 and 1, word dropout of
    # 0.1, windows of random length. The defaults follow the search code of DARTS, on which the paper builds: 0, 0.001,
    # 0 and windows of --bptt steps. The two were not compared with Adam, whose rates the paper leaves open.
    windows: str = option(
        "fixed",
        "length of a search's windows: fixed (--bptt), darts (one in twenty is half as long) or merity (drawn around "
        "these); the rates go with it",
        Group.OPTIMISATION,
        choices=WINDOWS,
    )
    # Departures from the paper, none of them by default.
    cell_weights: str = option(
        "own",
        "own (each network has its own weights) or shared (nodes of the same number share theirs)",
        Group.MIXTURE,
        choices=("own", "shared"),
    )
    score: str = option(
        "weight",
        "what ranks the networks of a round: weight (in the mixture) or held-out (validation loss of its own output)",
        Group.MIXTURE,
        choices=("weight", "held-out"),
    )
    carry_embedding: bool = option(
        False,
        "start a round's embedding and decoder from the last round's; cells always start anew",
        Group.MIXTURE,
    )
    mix_dropout: float = option(
        0.0, "dropout of whole networks in the mixture", Group.MIXTURE, metavar="P", at_least=0, below=1
    )
    strategy: str = option(
        "wenet",
        "wenet (a mixture, as in the paper), race (standalone networks train side by side, and the worse leave rung by "
        "rung) or random (successive halving from new weights, for as many network-steps as wenet)",
        Group.MIXTURE,
    )
    rungs: int = option(
        4,
        "rungs of a race; at each one networks have trained twice as long as at the one before",
        Group.RACE,
        at_least=1,
        at_most=20,
    )
    falling_rates: bool = option(
        False,
        "let the rates of a race fall to zero until the end of its last rung, as those of the contest do; at a quarter "
        "of that training, if there is a rung, cells are compared by an extrapolated loss, and about a third goes on",
        Group.RACE,
    )
    networks_per_cell: int = option(
        2,
        "networks of each cell in a race; their mean loss counts",
        Group.RACE,
        metavar="N",
        at_least=1,
    )
    mutate: bool = option(
        False,
        "after the first generation of a race, race mutations of its best cells instead of cells from the pool",
        Group.RACE,
    )
    rates: str = option(
        "0.005,0.01,0.02",
        "learning rates to choose from: in a race for all DAG cells, and for each number of states; and for each "
        "contestant",
        Group.RACE,
        metavar="RATE,RATE...",
    )
    weight_decays: str | None = option(
        None,
        "weight decays to choose from for each contestant, by default that of --weight-decay alone",
        Group.RACE,
        metavar="DECAY,DECAY...",
    )
    minutes: float | None = option(
        None,
        "time for a race and its contest, from which their sizes follow",
        Group.FIRST,
        metavar="MINUTES",
        above=0,
    )
    finalists: int = option(
        1,
        "first cells of a search that are tried in the contest; the three best of them then train in full",
        Group.RACE,
        metavar="N",
        at_least=1,
    )
    contest_epochs: float = option(
        1.0, "passes over the training data by each training of the contest", Group.RACE, metavar="F", above=0
    )
    contest_seeds: int = option(3, "trainings of each contestant", Group.RACE, metavar="N", at_least=2)
    audit_epochs: float = option(
        1.0, "passes over the training data by each standalone training", Group.STANDALONE, metavar="F", above=0
    )
    # Standalone cells are not normalised, and learn best at a lower rate than a batch of normalised ones.
    standalone_lr: float | None = option(
        None,
        "Adam's learning rate in standalone training; by default --lr",
        Group.STANDALONE,
        metavar="RATE",
        above=0,
    )
    sampled_words: int = option(
        0,
        "in standalone training, sum the softmax over the window's words and N others drawn at random; 0: over all "
        "words, as validation always does",
        Group.STANDALONE,
        metavar="N",
        at_least=0,
    )

    def __post_init__(self) -> None:
        for name in (*RANGES, *GRIDS):
            object.__setattr__(self, name, _as_text(getattr(self, name), name in GRIDS))
        super().__post_init__()
        if self.strategy == "wenet" and TASKS[self.task].reads != "text":
            raise WenetError(f"--task {self.task} needs --strategy race or random: a mixture reads text alone")
        self._check_ranges()
        self._check_grids()
        check_activations(self.activations.split(","))
        if self.space == "both" and (own := registered_among(self.activations.split(","))):
            raise WenetError(
                f"--space both writes cells as programs, which lack {', '.join(own)}, registered in Python; "
                "say --space dag"
            )
        check_choice("--strategy", self.strategy, [name for name in STRATEGIES if name != "repeated"])
        if self.initial_cells is not None:
            # Store the cells in place of the file, which may be gone when the run is resumed.
            object.__setattr__(self, "initial_cells", "; ".join(map(str, self._checked_cells(self.initial_cells))))
        normalised = self.compared_rows > 0
        if normalised and self.data_batch < 2:
            raise WenetError("--data-batch must be at least 2 with --norm batch, which compares the rows of a batch")
        if normalised and self.form == "plain" and self.space != "gated":
            # At h = 0 eq. (1) gives s_0 = 0 for any input, and activations turn that into equal values in all rows.
            raise WenetError(
                "--form plain needs --norm none: its state starts at zero, and normalised over a batch it stays there"
            )
        if self.minutes is not None:
            self._check_fits_minutes()
        if self.contest and self.runs > 1:
            raise WenetError("a contest ends one search; leave out --runs, or say --no-contest")
        if 0 < self.audit < self.keep + 2:
            raise WenetError(f"--audit must be at least {self.keep + 2}: the --keep kept and two rejected cells")

    def _check_fits_minutes(self) -> None:
        if self.strategy != "race":
            raise WenetError(
                f"--minutes is for --strategy race, not {self.strategy}; say --strategy race, or leave out --minutes"
            )
        for name, given in (("runs", self.runs > 1), ("audit", self.audit > 0)):
            if given:
                raise WenetError(f"--minutes is for one race and its contest; leave out {flag(name)}, or --minutes")

    def _check_ranges(self) -> None:
        for name, (fewest, most, example) in RANGES.items():
            value = getattr(self, name)
            if not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?", value):
                raise WenetError(f"--{name} must be a number or a range such as {example}, not {value!r}")
            counts = _counts(value)
            if not counts or not fewest <= counts[0] <= counts[-1] <= most:
                raise WenetError(
                    f"--{name} {value}: a cell has {fewest} to {most} {name}, and a range the smaller first"
                )
        if self.has_programs and self.strategy == "wenet":
            self._check_mixture_of_programs()
        if self.space == "dag" and len(self.node_counts) > 1 and self.strategy == "wenet":
            raise WenetError(
                f"--nodes {self.nodes} needs --strategy race or random: mixing weights compare cells of one size"
            )

    def _check_mixture_of_programs(self) -> None:
        if len(self.state_counts) > 1:
            raise WenetError(
                f"--states {self.states} needs --strategy race or random: the cells of a mixture carry equally many; "
                f"say --states {self.state_counts[0]}"
            )
        if self.space == "both" and self.state_counts[0] > 1:
            raise WenetError("--space both needs --states 1 in a mixture: DAG cells carry one state")
        for flag_of, given in (
            ("--score held-out", self.score == "held-out"),
            ("--cell-weights shared", self.cell_weights == "shared"),
            ("--initial-cells", self.initial_cells is not None),
        ):
            if given:
                raise WenetError(f"{flag_of} is for DAG cells; leave it out, or say --space dag")

    def _check_grids(self) -> None:
        for name in GRIDS:
            text = getattr(self, name)
            try:
                numbers = [] if text is None else _numbers(text)
            except ValueError:
                numbers = [math.nan]
            if not all(0 <= number < math.inf and (number > 0 or name != "rates") for number in numbers):
                least = "above 0" if name == "rates" else "from 0 on"
                raise WenetError(f"{flag(name)} must be numbers {least} with commas between them, not {text!r}")

    @property
    def node_counts(self) -> range:
        """The numbers of nodes that cells may have."""
        return _counts(self.nodes)

    @property
    def block_counts(self) -> range:
        """The numbers of products that gated cells may have."""
        return _counts(self.blocks)

    @property
    def state_counts(self) -> range:
        """The numbers of states that gated cells may carry."""
        return _counts(self.states)

    @property
    def seed_of_pool(self) -> int:
        return self.seed if self.pool_seed is None else self.pool_seed

    @property
    def has_programs(self) -> bool:
        return self.space in ("gated", "both")

    @property
    def compared_rows(self) -> int:
        return self.data_batch if self.norm == "batch" and self.strategy == "wenet" else 0  # no other one normalises

    @property
    def most_nodes(self) -> int:
        return self.node_counts[-1]

    @property
    def rate_grid(self) -> list[float]:
        """Learning rates to choose from, the smallest first."""
        return _numbers(self.rates)

    @property
    def decay_grid(self) -> list[float]:
        """Weight decays that a contestant chooses from, the smallest first."""
        if self.weight_decays is None:
            return [self.weight_decay]
        return _numbers(self.weight_decays)

    def _checked_cells(self, source: str) -> list[Genotype]:
        cells = load_genotypes(source)
        if len(cells) > self.keep:
            raise WenetError(f"--initial-cells has {len(cells)} cells, more than the {self.keep} that --keep allows")
        for number, cell in enumerate(cells, start=1):
            if cell.nodes not in self.node_counts:
                nodes = counted(cell.nodes, "node")
                raise WenetError(f"--initial-cells, cell {number}: {nodes}, but --nodes is {self.nodes}")
            if cell in cells[: number - 1]:
                raise WenetError(f"--initial-cells, cell {number}: {cell} comes twice")
        return cells

    @property
    def initial_cells_given(self) -> list[Genotype]:
        """Cells that compete in the first round besides the new ones."""
        return [] if self.initial_cells is None else load_genotypes(self.initial_cells)

    @property
    def activation_names(self) -> tuple[str, ...]:
        initial = (name for genotype in self.initial_cells_given for name in genotype.activations)
        return tuple(dict.fromkeys([*self.activations.split(","), *initial]))

    @property
    def rounds(self) -> int:
        return -(-self.pool // self.batch)

    @property
    def valid_rows(self) -> int:
        """Text streams side by side in the validation of a mixture. With batch normalisation as many as in training,
        because the statistics depend on the number of rows."""
        return self.data_batch if self.norm == "batch" else self.eval_batch

    @property
    def networks(self) -> int:
        """The largest number of networks that train together."""
        return min(self.batch, self.pool) + (self.keep if self.rounds > 1 else len(self.initial_cells_given))

    @property
    def fewest_networks(self) -> int:
        """The smallest number that train together: the first round has no kept cells, the last perhaps few new ones."""
        if self.rounds == 1:
            return self.pool
        return min(self.batch, self.pool - (self.rounds - 1) * self.batch + min(self.keep, self.batch))


def _numbers(text: str) -> list[float]:
    """Those with commas between them, the smallest first."""
    return sorted({float(number) for number in text.split(",")})


def _as_text(value: Any, several: bool) -> Any:
    """A number, or where there may be several a list of them, as on the command line; anything else as it is."""
    if several and isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value) if type(value) is int or (several and type(value) is float) else value


def _counts(text: str) -> range:
    """The numbers that a number or a range stands for."""
    fewest, _, most = text.partition("-")
    return range(int(fewest), int(most or fewest) + 1)


# A regime in which small models learn within a few hundred windows, and cells differ: measured in
# docs/search-quality.md. With the paper's dropouts hardly anything is learned in so short a time, and normalised
# cells come in another order than the cells that are trained afterwards.
SHORT: dict[str, Any] = {
    "norm": "none",
    "clip": 1.0,
    "init_range": 0.1,
    "decoder_bias": "frequencies",
    "weight_decay": 0.0,
    "dropout_embedding": 0.0,
    "dropout_x": 0.0,
    "dropout_h": 0.0,
    "dropout_output": 0.0,
    "temporal_activation_reg": 0.0,
    "eval_batch": 64,
}

# Departures of the presets from the paper: searches of a few minutes on two processor cores.
# Characters, on which a rate that learns costs minutes.
RACE: dict[str, Any] = {
    **SHORT,
    "level": "characters",
    "strategy": "race",
    "nodes": "1-4",
    "parameters": 80_000,
    "pool": 54,
    "batch": 18,
    "keep": 4,
    "rungs": 3,
    "falling_rates": True,
    "mutate": True,
    "networks_per_cell": 1,
    "epochs_per_round": 0.08,
    "rates": "0.01,0.02,0.04",
    "data_batch": 32,
    "bptt": 50,
    "lr": 1e-2,
    "contest": True,
    "finalists": 4,
    "contest_epochs": 0.32,
    "audit_epochs": 0.32,
}
PARAMETERS_OF_A_WORD = 32  # which a race by words adds: hidden sizes are near 38 with 10,000 words, larger with fewer
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Algorithm 2 at a small scale.
    "quick": {
        **SHORT,
        "pool": 80,
        "batch": 16,
        "keep": 4,
        "epochs_per_round": 0.4,
        "hidden": 64,
        "lr": 5e-3,
        "mix_lr": 5e-3,
        "audit_epochs": 0.25,
    },
    "race": RACE,
    # A fifth as many words as there are characters, each of which costs more. The parameters are those for 10,000.
    "words": {
        **RACE,
        "level": "words",
        "space": "both",
        "parameters": RACE["parameters"] + 10_000 * PARAMETERS_OF_A_WORD,
        "sampled_words": 2000,
        "pool": 24,
        "batch": 24,
        "rungs": 3,
        "falling_rates": False,
        "mutate": False,
        "networks_per_cell": 2,
        "epochs_per_round": 0.1,
        "finalists": 2,  # and LSTM and GRU, which race
        "contest_epochs": 0.4,
        "audit_epochs": 0.4,
    },
    # Hidden sizes of 20 to 40, in which a hundred networks learn at the rate of one dense product.
    "numbers": {
        "task": "classify",
        "space": "both",
        "strategy": "race",
        "nodes": "1-4",
        "parameters": 5_000,
        "pool": 48,
        "batch": 48,
        "keep": 4,
        "rungs": 3,
        "epochs_per_round": 5.0,
        "rates": "0.005,0.015,0.045",
        "weight_decays": "0,0.001",
        "data_batch": 32,
        "eval_batch": 256,
        "lr": 1e-2,
        "clip": 1.0,
        "weight_decay": 0.0,
        "dropout_embedding": 0.0,
        "dropout_x": 0.0,
        "dropout_h": 0.0,
        "dropout_output": 0.0,
        "temporal_activation_reg": 0.0,
        "norm": "none",
        "contest": True,
        "finalists": 4,
        "contest_epochs": 40.0,
        "audit_epochs": 20.0,
    },
}


def resolve_config(preset: str, *layers: Mapping[str, Any]) -> SearchConfig:
    """Resolve the settings of a search: a preset, overridden by each layer in turn.

    Raises:
        WenetError: a preset or setting is unknown, or a value has the wrong type or is out of range.
    """
    check_choice("preset", preset, PRESETS)
    values = overridden(SearchConfig, PRESETS[preset], *layers)
    asked = overridden(SearchConfig, *layers)
    _check_fits(preset, values.get("task", SearchConfig.task))
    if preset == "words" and values["level"] != "words":
        raise WenetError(f"--preset words does not fit --level {values['level']}; say --preset race")
    for name, other in INSTEAD.items():
        if name in asked and other not in asked:
            values[other] = None
    return SearchConfig(**{**values, "preset": preset})


def _check_fits(preset: str, task: str) -> None:
    """Refuse a preset for other data than the task reads.

    Raises:
        WenetError: as above, or there is no such task.
    """
    check_choice("--task", task, TASKS)
    reads = TASKS[task].reads
    if (preset == "numbers") is not (reads == "numbers"):
        mend = "leave it out" if reads == "numbers" else f"say --task {', '.join(OF_NUMBERS)}"
        raise WenetError(f"--preset {preset} does not fit --task {task}, which reads {reads}; {mend}")


def usual_preset(given: Mapping[str, Any], usual: str) -> str:
    """The preset of a search whose settings name none; `usual` is that of a text as it comes."""
    if given.get("task") in OF_NUMBERS:
        return "numbers"
    return "words" if usual == "race" and given.get("level") == "words" else usual


OF_NUMBERS = [name for name, task in TASKS.items() if task.reads == "numbers"]
