"""`wenet-search`: find a cell."""

from __future__ import annotations

from collections.abc import Sequence

from wenet.api import resume_search, search
from wenet.cli.common import begin_or_resume, reporting, run_parser
from wenet.run import default_preset
from wenet.searching import SEARCH, resolve_config


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-search`."""
    return reporting("wenet-search", _search, arguments)


def _search(arguments: Sequence[str] | None) -> None:
    parser = run_parser(
        "wenet-search",
        "Find a recurrent cell for a text or, with --task, for sequences of numbers. Many random cells compete, and "
        "the winner meets an LSTM and a GRU.",
        resolve_config,
        default_preset(SEARCH.preset_without_gpu),
        at_end_of="round",
    )
    added = ("audit", "audit_epochs", "contest")
    console, result = begin_or_resume(parser, arguments, search, resume_search, resumed_with=added)
    console.say(f"\n{result}")
