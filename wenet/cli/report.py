"""`wenet-report`: rewrite a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wenet.cli.common import Parser, reporting
from wenet.run import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-report`."""
    return reporting("wenet-report", _report, arguments)


def _report(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="wenet-report",
        description="Write the report of a search or a training, report.html in its folder, anew.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder that wenet-search or wenet-train made")
    parser.add_argument("--follow", action="store_true", help="write it again and again while the run goes on")
    options = parser.parse_args(arguments)
    from wenet.report.write import PAGE, follow_report, write_report  # matplotlib takes a second to import

    if options.follow:
        follow_report(options.run, Console())
    else:
        write_report(options.run)
        print(options.run / PAGE)
