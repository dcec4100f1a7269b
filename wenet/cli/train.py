"""`wenet-train`: train one cell."""

from __future__ import annotations

from collections.abc import Sequence

from wenet.api import resume_train, train
from wenet.cli.common import begin_or_resume, reporting, run_parser
from wenet.run import default_preset
from wenet.training import TRAIN, resolve_train_config


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-train`."""
    return reporting("wenet-train", _train, arguments)


def _train(arguments: Sequence[str] | None) -> None:
    parser = run_parser(
        "wenet-train",
        "Train one recurrent cell as a language model, and test it.",
        resolve_train_config,
        default_preset(TRAIN.preset_without_gpu),
        at_end_of="epoch",
    )
    console, result = begin_or_resume(parser, arguments, train, resume_train)
    console.say(f"\n{result}")
