"""`wenet-rank`: cells on equal terms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wenet.api import rank_cells
from wenet.cli.common import Parser, reporting
from wenet.report.run import read_run
from wenet.run import Console
from wenet.searching.tournament import describe_ranking


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-rank`."""
    return reporting("wenet-rank", _rank, arguments)


def _rank(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="wenet-rank",
        description="Train cells standalone on equal terms over several seeds, and test whether they differ.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "cells", nargs="+", metavar="CELL", help="folders of searches, cells, or lstm; the first must be a search"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings a cell (default: %(default)s)")
    parser.add_argument("--epochs", type=float, metavar="F", help="default: --audit-epochs of the search")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="look for ptb and wikitext-2 here first")
    parser.add_argument("--quiet", action="store_true", help="plain lines instead of a progress bar")
    options = vars(parser.parse_args(arguments))
    console = Console(quiet=options.pop("quiet"))
    result = rank_cells(**options, console=console)
    console.say(describe_ranking(result, read_run(Path(options["cells"][0])).metric))
