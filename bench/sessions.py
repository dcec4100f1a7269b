"""A session for trainings that a bench keeps and goes on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from wenet.run import Console, Interrupt, RunFolder, Session, Surroundings
from wenet.searching.settings import SearchConfig
from wenet.tasks import task_of


@contextmanager
def session_in(folder: Path, config: SearchConfig, data: Any) -> Iterator[Session[SearchConfig]]:
    """A session in a folder that is made if needed, which prints plain lines.

    Raises:
        WenetError: another process uses the folder, or it holds something else.
    """
    with Interrupt() as interrupt, closing(RunFolder.open_or_create(folder, {})) as run:
        yield Session(config, None, task_of(config), data, run, interrupt, Surroundings(console=Console(quiet=True)))
