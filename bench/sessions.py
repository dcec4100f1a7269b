"""What benches share that train a pool of cells, keep the trainings and go on with them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from wenet.run import Console, Interrupt, RunFolder, Session, Surroundings
from wenet.searching.settings import SearchConfig
from wenet.tasks import task_of


def pool_parser(description: str | None, dataset: str, cells: int, windows: int) -> argparse.ArgumentParser:
    """A parser with the flags of every such bench: text, number and seed of the cells, windows, and folders."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", default=dataset, help="as in wenet-search (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=cells, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--windows", type=int, default=windows, metavar="N", help="of a training (default: %(default)s)"
    )
    parser.add_argument("--pool-seed", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the trainings")
    return parser


@contextmanager
def session_in(folder: Path, config: SearchConfig, data: Any) -> Iterator[Session[SearchConfig]]:
    """A session in a folder that is made if needed, which prints plain lines.

    Raises:
        WenetError: another process uses the folder, or it holds something else.
    """
    with Interrupt() as interrupt, closing(RunFolder.open_or_create(folder, {})) as run:
        yield Session(config, None, task_of(config), data, run, interrupt, Surroundings(console=Console(quiet=True)))
