"""Results of searches and trainings, for programs and notebooks.

Search and training return outcomes; this module adds tables, figures and models. These are read from the run folder on
demand, so a run opened by `load` has everything that a new one has.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wenet.cells import Cell, Genotype
from wenet.nn import CellRNN, DagRNN, LanguageModel, SequenceModel
from wenet.report import words
from wenet.report.run import Run, read_run
from wenet.run import RunFolder, Work, resolve_machine, stored_config, stored_data
from wenet.run.settings import AnyConfig
from wenet.searching import SEARCH, NextSteps, SearchOutcome, final_ranking
from wenet.searching.contest import diverged_in, published_name, read_winner, winners_model
from wenet.tasks import Task, task_of
from wenet.training import TRAIN, TrainOutcome, trained_model
from wenet_kernels import WenetError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 10  # rows of a long table


class Table(list[dict[str, Any]]):
    """Rows with equal keys, ready for `pandas.DataFrame(table)`.

    Example:
        >>> Table([{"rank": 1, "cell": "tanh0"}, {"rank": 2, "cell": "relu0"}])
        rank  cell
        1     tanh0
        2     relu0
    """

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self for name in row))

    def __repr__(self) -> str:
        cells = [self.columns, *self._written()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        return "\n".join(lines + self._left_out())

    def _repr_html_(self) -> str:
        head = _row("th", self.columns)
        body = "".join(_row("td", line) for line in self._written())
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>" + "".join(map(escape, self._left_out()))

    def _written(self) -> list[list[str]]:
        return [[_figure_in_table(row.get(name)) for name in self.columns] for row in self[:SHOWN]]

    def _left_out(self) -> list[str]:
        return [f"... {len(self) - SHOWN:,} more"] if len(self) > SHOWN else []


def _row(tag: str, texts: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"


def _figure_in_table(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


class Shown:
    """The part that both kinds of result share, read from the run folder."""

    folder: Path

    @property
    def run(self) -> Run:
        """The run, read from its files now."""
        return read_run(self.folder)

    @property
    def finished(self) -> bool:
        return self.run.finished

    @property
    def table(self) -> Table:
        raise NotImplementedError

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words, or characters, of the text in the order of the model's tokens.

        Raises:
            WenetError: the run was on sequences of numbers, or its text is gone.
        """
        work: Work[Any] = SEARCH if self.run.kind == SEARCH.kind else TRAIN
        with closing(RunFolder.open(self.folder, to_read=True)) as run:
            stored = stored_config(run, work)
            task = task_of(stored)
            if task.reads != "text":
                raise WenetError(f"{self.folder} is of sequences of numbers, which have no vocabulary")
            return tuple(stored_data(run, stored, task, None).vocabulary)

    def _shown_table(self) -> Table:
        """What a notebook shows."""
        return self.table

    def layer(self, input_size: int, hidden_size: int, **options: Any) -> DagRNN | CellRNN:
        """A recurrent layer of the cell with fresh weights, called like `torch.nn.RNN`, or where it carries several
        states as `torch.nn.LSTM`.

        Args:
            input_size, hidden_size, options: as in `wenet.nn.DagRNN`, whose form defaults to that of the run, or for
                a program as in `wenet.nn.CellRNN`.

        Raises:
            WenetError: as in the layer; the run trained an LSTM.
        """
        run = self.run
        if run.genotype is None:
            raise WenetError(f"{self.folder} trained an {run.settings['cell']}, which has no cell; use torch.nn.LSTM")
        if not isinstance(run.genotype, Genotype):
            return CellRNN(input_size, hidden_size, run.genotype, **options)
        return DagRNN(input_size, hidden_size, run.genotype, **{"form": run.settings["form"], **options})

    def plot_cell(self) -> Figure:
        """A picture of the cell."""
        return self._drawing("cell")

    def plot_learning(self) -> Figure:
        """Training loss and validation metric, round by round or epoch by epoch."""
        return self._drawing("learning")

    def _drawing(self, name: str) -> Figure:
        from wenet.report.write import pictures_of  # matplotlib takes a second to import

        pictures = {picture.name: picture for picture in pictures_of(self.run)}
        if name not in pictures:
            raise WenetError(f"{self.folder} has no figure {name!r}; it has {', '.join(pictures) or 'none yet'}")
        return pictures[name].drawing

    def _repr_html_(self) -> str:
        """The summary, the cell, and the first rows of the table or the contest, for notebooks."""
        run = self.run
        paragraphs = "".join(f"<p>{escape(text)}</p>" for text in words.summary(run))
        picture = "" if run.genotype is None else _cell_image(run.genotype)
        head = f"<b>{escape(words.title(run))}</b> ({words.status(run)})"
        return f"<div>{head}{paragraphs}{picture}{self._shown_table()._repr_html_()}</div>"


def _cell_image(genotype: Cell) -> str:
    from wenet.report.cells import cell_picture

    picture = cell_picture(genotype, "The cell")
    data = base64.b64encode(picture.svg_file()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(picture.description)}">'


@dataclass(frozen=True, repr=False)
class SearchResult(Shown, SearchOutcome):
    """The result of a search.

    Attributes:
        dataset: the text that was searched on.
        genotype: the best cell.
        best: how it was found.
        folder: the run's folder.
        metric: the metric of the task.
        next_steps: commands to continue with.
        baseline: the value that a model must beat, if known.
        audit: the contents of `audit.json`, if there was an audit.
        contest: the contents of `contest.json`, if there was a contest.
        to_come: "search", "audit" or "contest", if that has not ended.

    Example:
        >>> import wenet
        >>> found = wenet.load("runs/found")
        >>> found.layer(16, 32).hidden_size
        32
    """

    @property
    def table(self) -> Table:
        """All cells, the best first, with what they were ranked by, and their standalone value if an audit measured it.
        For several runs, their winners. Figures that no cell has are left out."""
        run, metric = self.run, self.metric
        if run.best.get("runs"):
            return Table(
                {"run": one["run"], f"standalone {metric.name}": one[metric.key], "cell": one["genotype"]}
                for one in run.best["runs"]
            )
        audited = {cell["genotype"]: cell[metric.key] for cell in (run.audit or {}).get("networks", [])}
        ranking = final_ranking(run.records, run.settings["keep"], run.strategy)
        rows = [
            {
                "rank": rank,
                **run.strategy.merits(each.record, each.place, metric),
                "kept": each.kept,
                f"standalone {metric.name}": audited.get(str(each.genotype)),
                "cell": str(each.genotype),
            }
            for rank, each in enumerate(ranking, start=1)
        ]
        known = {name for row in rows for name, value in row.items() if value is not None}
        return Table({name: value for name, value in row.items() if name in known} for row in rows)

    @property
    def contestants(self) -> Table:
        """The contest: a row for each contestant, the best on the test part first; empty without a contest."""
        rows = (self.contest or {"contestants": []})["contestants"]
        test = f"test {self.metric.name}"
        return Table(
            {
                "name": row["name"],
                test: row["mean"],
                "sd": row["sd"],
                "p against the winner": row["p"],
                "diverged": diverged_in(row),
                "rate": row["rate"],
                "weight_decay": row.get("weight_decay", 0.0),
                "hidden": row["hidden"],
                "parameters": row["parameters"],
                "µs a step": row["microseconds"],
                "cell": row["genotype"],
                "published": published_name(row),
            }
            for row in rows
        )

    def _shown_table(self) -> Table:
        return self.contestants or self.table

    @property
    def model(self) -> LanguageModel | SequenceModel:
        """The winner as the contest trained it, on this machine's device and ready for evaluation.

        Raises:
            WenetError: there was no contest; a process is at work in the folder, or the text has gone or changed.
        """
        tensors = read_winner(self.folder, self.genotype)
        with closing(RunFolder.open(self.folder, to_read=True)) as run:
            config, task, data = _on_this_machine(run, SEARCH, self.genotype)
        return winners_model(config, self.genotype, task, data, tensors).to(config.device).eval()

    def predict(self, x: Any) -> Any:
        """Predictions of the winner's trained model for sequences of numbers.

        Args:
            x: sequences without targets, as arrays, a list or a data set of the forms that `search` takes.

        Returns:
            As in `wenet.nn.SequenceModel.predict`: labels, numbers, or the steps that follow.

        Raises:
            WenetError: as in `model`; the search was on text, or x does not fit.
        """
        model = self.model
        if not isinstance(model, SequenceModel):
            raise WenetError(f"{self.folder} was a search on text; call .model, which scores the words that follow")
        return model.predict(x, self.run.settings["layout"])

    def plot_weights(self) -> Figure:
        """The sorted weights of the last round (the paper's Figure 4)."""
        return self._drawing("weights")

    def plot_trajectories(self) -> Figure:
        """Weights of the kept cells, round by round."""
        return self._drawing("trajectories")

    def plot_rungs(self) -> Figure:
        """The cells in each rung of successive halving."""
        return self._drawing("rungs")

    def plot_audit(self) -> Figure:
        """The search's scores against standalone training."""
        return self._drawing("audit")


@dataclass(frozen=True, repr=False)
class TrainResult(Shown, TrainOutcome):
    """The result of a training.

    Attributes:
        valid, test: the metric on both held-out parts; `test` is None before the end.
        best: the contents of `best.json`.
        folder: the run's folder.
        metric: the metric of the task.
        baseline: the value that a model must beat, if known.

    Example:
        >>> import torch, wenet
        >>> trained = wenet.load("runs/trained")
        >>> scores, h = trained.model(torch.zeros(5, 1, dtype=torch.long))  # [T, M, V] of the words that follow
    """

    @property
    def table(self) -> Table:
        """One row per epoch."""
        return Table(self.run.records)

    @property
    def model(self) -> LanguageModel:
        """The trained model with its best weights, on this machine's device and ready for evaluation.

        Raises:
            WenetError: another process uses the folder, or the text is gone or changed.
        """
        with closing(RunFolder.open(self.folder, to_read=True)) as run:
            genotype = TRAIN.stored_cell(run.config)
            config, task, data = _on_this_machine(run, TRAIN, genotype)
            _, tensors = run.load_best()
        return trained_model(config, genotype, task, data, tensors).to(config.device).eval()


def _on_this_machine(run: RunFolder, work: Work[AnyConfig], genotype: Cell | None) -> tuple[AnyConfig, Task, Any]:
    """The settings of a run as they are best here, with its task and data.

    The backend stays open, so that a model may be moved to another device, or converted, where only others run.
    """
    stored = stored_config(run, work)
    task = task_of(stored)
    data = stored_data(run, stored, task, None)
    here = resolve_machine(replace(stored, backend="auto", device="auto"), genotype)
    return replace(here, backend="auto"), task, data


def load(folder: str | Path) -> SearchResult | TrainResult:
    """Load the result of a search or training from its folder, even of an unfinished run; the folder stays unchanged.

    Raises:
        WenetError: the folder holds no run, cannot be read, or has no finished round or epoch.

    Example:
        >>> import wenet
        >>> wenet.load("runs/found").best.networks_searched
        4
    """
    run = read_run(Path(folder))
    if not run.best:
        raise WenetError(f"{folder} has no result yet: {words.status(run)}")
    if run.kind == "train":
        return TrainResult.of(run.best, run.path, run.metric, run.baseline)
    assert run.winner is not None
    steps = NextSteps.of(run.search_config, run.path, run.config["data_dir"])
    return SearchResult(
        run.settings["dataset"],
        run.winner.genotype,
        run.winner,
        run.path,
        run.metric,
        steps,
        run.baseline,
        run.audit,
        run.contest,
        spent=run.spent,
        to_come=run.unfinished_part,
    )
