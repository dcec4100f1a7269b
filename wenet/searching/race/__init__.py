"""A race: standalone networks train side by side, and cells that fall behind leave it, rung by rung."""

from wenet.searching.race.best import RaceBest
from wenet.searching.race.least import least_seconds
from wenet.searching.race.losses import extrapolated, losses_of
from wenet.searching.race.race import FOLDER, Race
from wenet.searching.race.rungs import held_out_windows

__all__ = ["FOLDER", "Race", "RaceBest", "extrapolated", "held_out_windows", "least_seconds", "losses_of"]
