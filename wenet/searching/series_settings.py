"""Settings of searches on sequences of numbers."""

from __future__ import annotations

from dataclasses import dataclass

from wenet.data import LAYOUTS
from wenet.nn import LOSSES, READOUTS, is_loss
from wenet.run import Group
from wenet.run.settings import option
from wenet.tasks.measures import METRICS
from wenet.training.settings import LearningConfig
from wenet_kernels import WenetError, check_choice


@dataclass(frozen=True)
class SeriesConfig(LearningConfig):
    """Settings that only tasks on sequences of numbers read.

    Raises:
        WenetError: a value is out of range.
    """

    target: str | None = option(
        None,
        "column of the label; by default the last, or in a table without names and with a row for each sequence the "
        "first. For forecasts the columns to predict, separated by commas; by default all",
        Group.NUMBERS,
        metavar="COLUMN",
    )
    sequence: str | None = option(
        None,
        "in a table with a row for each step, the column that tells sequences apart; by default there is only one",
        Group.NUMBERS,
        metavar="COLUMN",
    )
    window: int = option(48, "steps that a forecast sees", Group.NUMBERS, metavar="W", at_least=1)
    horizon: int = option(1, "steps that a forecast predicts", Group.NUMBERS, metavar="h", at_least=1)
    layout: str = option(
        "ntf",
        "order of an array's axes: ntf (sequences, time, features) or nft, as in aeon",
        Group.NUMBERS,
        choices=LAYOUTS,
    )
    missing: str = option(
        "error", "missing values: error, or mask (added features mark them)", Group.NUMBERS, choices=("error", "mask")
    )
    constant: str = option(
        "error",
        "features that do not vary in the training part: error, or keep",
        Group.NUMBERS,
        choices=("error", "keep"),
    )
    split: str = option(
        "70,15,15", "percent of training, validation and test, unless these are given", Group.NUMBERS, metavar="A,B,C"
    )
    loss: str | None = option(
        None, "ce of classes, mse or mae of numbers; by default ce or mse", Group.NUMBERS, metavar="{ce,mse,mae}"
    )
    metric: str | None = option(
        None,
        "accuracy or f1 of classes, rmse or mae of numbers, mase of forecasts; by default accuracy or rmse",
        Group.NUMBERS,
        metavar="NAME",
    )
    readout: str = option(
        "last",
        "predict from the last state of a sequence, or from the mean of all",
        Group.NUMBERS,
        choices=[name for name in READOUTS if name != "steps"],
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is not None and not is_loss(self.loss):
            check_choice("--loss", self.loss, LOSSES)
        if self.metric is not None:
            check_choice("--metric", self.metric, METRICS)
        try:
            usable = all(share > 0 for share in self.shares)
        except (ValueError, ZeroDivisionError):
            usable = False
        if not usable:
            raise WenetError(f"--split must be three numbers above 0 with commas between them, not {self.split!r}")

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of training, validation and test, which sum to one."""
        train, valid, test = (float(part) for part in self.split.split(","))
        total = train + valid + test
        return train / total, valid / total, test / total
