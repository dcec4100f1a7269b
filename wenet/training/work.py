"""The training of one cell as a run: checks, messages, cost and result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from wenet.cells import Cell, Genotype, cell_from_dict, cell_to_dict, load_cell
from wenet.parallel import Ranks
from wenet.run import Session, Work
from wenet.run.unread import Unread, of_choice
from wenet.tasks import Baseline, Metric, failure_to_learn, task_of
from wenet.training.estimate import estimate_training, estimate_training_memory
from wenet.training.nt_asgd import EvaluationTraining
from wenet.training.settings import LSTMS, TrainConfig, resolve_train_config
from wenet.words import counted, duration, figure, size
from wenet_kernels import WenetError


def unread_by_training(config: Any, cell: Cell | None) -> list[Unread]:
    """All settings that do not matter to the training of a cell, or of an LSTM if there is none."""
    found = of_choice("softmax", config.softmax, {"tied": ("experts", "dropout_latent"), "mos": ()})
    if cell is not None:
        why = f"has no meaning for --cell {config.cell}; leave it out, or say --cell {' or '.join(LSTMS)}"
        found.append(Unread(("layers", "last_hidden"), why))
    if not isinstance(cell, Genotype):
        found.append(Unread(("form",), f"has no meaning for --cell {config.cell}, which has no nodes; leave it out"))
    return found


@dataclass(frozen=True, repr=False)
class TrainOutcome:
    """The result of a training: the metric on both held-out parts, `best.json`, and the run folder."""

    valid: float
    test: float | None  # None before the end
    best: dict[str, Any]
    folder: Path
    metric: Metric
    baseline: Baseline | None = None

    @classmethod
    def of(cls, best: dict[str, Any], folder: Path, metric: Metric, baseline: Baseline | None) -> Self:
        """Build from the contents of `best.json`."""
        return cls(best[f"valid_{metric.key}"], best[f"test_{metric.key}"], best, folder, metric, baseline)

    def __str__(self) -> str:
        return describe_training(self)

    def __repr__(self) -> str:
        places = self.metric.final_places
        values = f"{self.metric.name} valid {figure(self.valid, places)}, test {figure(self.test, places)}"
        return f"<{type(self).__name__} {self.folder}: {values}>"


class TrainWork(Work[TrainConfig]):
    """Training one cell, as a session sees it."""

    kind = "train"

    def resolve(self, preset: str, *layers: Mapping[str, Any]) -> TrainConfig:
        return resolve_train_config(preset, *layers)

    def unread(self, config: TrainConfig, cell: Cell | None) -> list[Unread]:
        return unread_by_training(config, cell)

    def cell(self, config: TrainConfig) -> Cell | None:
        return None if config.cell in LSTMS else load_cell(config.cell, besides=LSTMS)

    def streams(self, config: TrainConfig) -> dict[str, str]:
        return {"train": "data_batch", "valid": "eval_batch", "test": "test_batch"}

    def check_ranks(self, config: TrainConfig, ranks: Ranks) -> None:
        super().check_ranks(config, ranks)
        if config.data_batch < ranks.count:
            raise WenetError(
                f"--data-batch {config.data_batch} cannot be divided over {ranks.count} ranks; start fewer"
            )

    def memory(self, config: TrainConfig, cell: Cell | None, data: Any, ranks: Ranks) -> int:
        own = replace(config, data_batch=-(-config.data_batch // ranks.count))
        return estimate_training_memory(own, cell, task_of(config), data)

    def stored(self, cell: Cell | None) -> dict[str, Any]:
        """The cell itself, because its file may change."""
        return {"genotype": cell and cell_to_dict(cell)}

    def stored_cell(self, stored: Mapping[str, Any]) -> Cell | None:
        return None if stored["genotype"] is None else cell_from_dict(stored["genotype"])

    @staticmethod
    def divided_dimension(name: str, dimensions: int) -> int | None:
        """Processes divide the rows of the state `[1, M, H]`."""
        return 1 if name == "h" else None

    def announce(self, session: Session[TrainConfig], given: Mapping[str, Any]) -> None:
        """Print the cell and the estimated cost."""
        config, say, ranks = session.config, session.console.say, session.ranks
        genotype = session.cell
        same = genotype is None or str(genotype) == config.cell
        say(f"cell      {config.cell}" + ("" if same else f": {genotype}"))
        if not ranks.alone:
            memory = size(self.memory(config, genotype, session.data, ranks))
            say(f"ranks     {ranks.count}, which divide batches of {config.data_batch}: about {memory} each")
            return  # the time depends on the connection between them
        expected = estimate_training(config, genotype, session.task, session.data)
        say(
            f"{config.preset:<9} {counted(config.epochs, 'epoch')}, hidden {config.hidden}, batch {config.data_batch}: "
            f"about {duration(expected.seconds)}, {size(expected.memory)}"
        )


TRAIN = TrainWork()


def run_training(session: Session[TrainConfig]) -> TrainOutcome:
    """Run the training of a session."""
    best = EvaluationTraining(session).run()
    return TrainOutcome.of(best, session.folder.path, session.task.metric, session.baseline)


def describe_training(result: TrainOutcome) -> str:
    """The metric, the weights it belongs to, and the next steps, in lines."""
    best, folder, metric, places = result.best, result.folder, result.metric, result.metric.final_places
    averaged = "never averaged" if best["averaging_from"] is None else f"averaged from epoch {best['averaging_from']}"
    lines = [
        f"{metric.name:<11} valid {result.valid:.{places}f}, test {figure(result.test, places, 'not yet measured')}",
        f"weights     of epoch {best['epoch']} of {best['epochs']}, the best in validation; {averaged}; "
        f"{best['parameters']:,} parameters",
        f"cost        {duration(best['seconds'])}, peak memory {size(best['peak_memory_bytes'])}",
    ]
    failure = failure_to_learn("the model", result.valid, metric, result.baseline)
    if failure is not None:
        lines.append(f"caution     {failure}: raise --epochs or change --lr")
    if best["rollbacks"]:
        lines.append(f"caution     training diverged {counted(best['rollbacks'], 'time')} and went back each time")
    return "\n".join(
        [
            *lines,
            f"report      {folder}/report.html",
            f"files       {folder}/best.json (the result), train.jsonl (every epoch), config.json (settings)",
            f"next        wenet-eval {folder}",
        ]
    )
