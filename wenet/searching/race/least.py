"""The least time that a race and its contest take, so that a shorter --minutes is told before they begin."""

from __future__ import annotations

from wenet.run import Session
from wenet.run.budget import LEAST_AFTERWARDS
from wenet.searching.contest import kept_for_measuring, networks_in
from wenet.searching.race.fitting import FEWEST_CELLS, FEWEST_WINDOWS
from wenet.searching.race.rates import tries_rates, typical
from wenet.searching.race.rungs import extrapolates, held_out_windows, networks_of_entrant
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import config_for
from wenet.searching.space import draw_pool
from wenet.training import kind_of, seconds_of_measured, seconds_per_window

CALL = 0.2  # seconds in which a training is set up and written down
PROBED = 6  # networks whose training window is timed


def least_seconds(session: Session[SearchConfig]) -> float:
    """An estimate for the fewest cells and windows that a race and its contest have in any case, with all that they are
    measured on, by a window or two of training."""
    config, task, data = session.config, session.task, session.data
    cells = draw_pool(config)[: config.batch]
    kinds = list(dict.fromkeys(map(kind_of, cells)))
    tried = [cell for kind in kinds for cell in typical(kind, cells)]
    cell = tried[0]
    shaped, probed = config_for(cell, config, task, data), [cell] * PROBED
    of_window = seconds_per_window(shaped, probed, task, data) / PROBED
    of_measured = seconds_of_measured(shaped, probed, task, data) / PROBED
    networks = _networks_of_race(config, len(cells), len(tried))
    halfway = extrapolates(config, 0)  # where networks of the first rung are measured once more
    measured = networks + halfway * min(FEWEST_CELLS, len(cells)) * config.networks_per_cell
    seconds = networks * FEWEST_WINDOWS * of_window
    seconds += measured * held_out_windows(config, task, data, FEWEST_WINDOWS) * of_measured
    calls = len(kinds) * (1 + config.rungs + halfway)
    if config.contest:
        seconds += sum(networks_in(config)) * of_window + kept_for_measuring(session)
        calls += 2 * (len(kinds) + len(task.rivals))
    return seconds + calls * CALL + LEAST_AFTERWARDS


def _networks_of_race(config: SearchConfig, cells: int, tried: int) -> float:
    """Networks, each counted as often as it trains for the windows of the first rung."""
    of_rates = tried * len(config.rate_grid) if tries_rates(config) else 0
    return of_rates + min(FEWEST_CELLS, cells) * networks_of_entrant(config)
