"""What every run has, whatever it does: settings, machine, folder, console, checkpoints, and requests to stop."""

from wenet.run.console import Console, counted, duration, figure, size
from wenet.run.folder import RunFolder
from wenet.run.interrupt import Interrupt, Stopped, wait_until
from wenet.run.session import Session, Surroundings, Work
from wenet.run.settings import Config, flag

__all__ = [
    "Config",
    "Console",
    "Interrupt",
    "RunFolder",
    "Session",
    "Stopped",
    "Surroundings",
    "Work",
    "counted",
    "duration",
    "figure",
    "flag",
    "size",
    "wait_until",
]
