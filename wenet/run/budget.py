"""The time that a run may take, and what was decided in view of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wenet.files import read_json
from wenet.run.folder import RunFolder

FILE = "budget.json"
# Of the whole time: after how much trainings end at their next window, so that what follows them is still done within
# it; how much is kept for that, which takes at least some seconds; and how much may have passed in the end.
GRACE, AFTERWARDS, LATE = 1.05, 0.05, 1.1
LEAST_AFTERWARDS = 5.0


class Budget:
    """A time budget over all sessions that work on a run.

    What is planned from measured times is written down where it is planned, so a resumed run goes on with it.

    Args:
        folder: of the run.
        minutes: for all of it.
        started: when this session began, by `time.monotonic`.
    """

    def __init__(self, folder: RunFolder, minutes: float, started: float) -> None:
        self.folder, self.total, self.started = folder, 60 * minutes, started
        known = _read(folder.path)
        self.earlier: float = known.get("seconds", 0.0)
        self.plans: dict[str, Any] = known.get("plans", {})
        self.until = math.inf  # an earlier end of the trainings at work, in seconds spent

    @property
    def spent(self) -> float:
        """Seconds in all sessions."""
        return self.earlier + time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds; below 0 behind the end."""
        return self.total - self.spent

    @property
    def afterwards(self) -> float:
        """Seconds kept for what follows all trainings: the table of the contest, and the report."""
        return max(LEAST_AFTERWARDS, AFTERWARDS * self.total)

    @property
    def for_training(self) -> float:
        """Seconds that are left for trainings."""
        return self.left - self.afterwards

    @property
    def last_moment(self) -> float:
        """Seconds after which trainings have to end, as where the machine has become slower."""
        return min(GRACE * self.total - self.afterwards, self.until)

    @property
    def is_over(self) -> bool:
        """Whether trainings have to end."""
        return self.spent > self.last_moment

    @contextmanager
    def ending(self, until: float) -> Iterator[None]:
        """A context in which trainings end at so many seconds spent, if not before."""
        self.until = until
        try:
            yield
        finally:
            self.until = math.inf

    def planned(self, name: str, plan: Callable[[], Any]) -> Any:
        """What was planned under a name, by `plan` if nothing was; JSON must be able to hold it."""
        if name not in self.plans:
            self.plans[name] = plan()
            self.keep()
        return self.plans[name]

    def keep(self) -> None:
        """Write down the time spent so far."""
        self.folder.write_json(FILE, {"minutes": self.total / 60, "seconds": round(self.spent, 3), "plans": self.plans})


@dataclass(frozen=True)
class Spent:
    """The time of a run that had a budget.

    Attributes:
        minutes: of the budget.
        seconds: that the run took; None before its end.
    """

    minutes: float
    seconds: float | None

    @property
    def is_late(self) -> bool:
        """Whether it took clearly longer than was allowed."""
        return self.seconds is not None and self.seconds > LATE * 60 * self.minutes


def spent_in(folder: Path) -> Spent | None:
    """The time of the run in a folder; None if it had no budget."""
    known = _read(folder)
    return Spent(known["minutes"], known["plans"].get("spent")) if known else None


def _read(folder: Path) -> dict[str, Any]:
    """What a run has written down; empty if it has no budget."""
    path, mend = folder / FILE, "delete it, and --minutes counts from now on"
    return read_json(path, mend, "minutes", "seconds", "plans") if path.exists() else {}
