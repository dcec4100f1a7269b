"""The contest that ends a search: its winner against other cells and PyTorch's layers, on equal terms."""

from wenet.searching.contest.contestants import WINNER
from wenet.searching.contest.hold import contest_withdrawn, hold_contest
from wenet.searching.contest.length import estimate_contest, kept_for_measuring, networks_at_once, networks_in
from wenet.searching.contest.model import RESULT, read_winner, winners_model
from wenet.searching.contest.trials import CHECKS, FOLDER
from wenet.searching.contest.verdict import (
    cautions,
    contestant_name,
    describe_contest,
    diverged_in,
    not_diverged,
    parameters_of_all,
    published_name,
    reached,
    verdict,
    windows_of_all,
)

__all__ = [
    "CHECKS",
    "FOLDER",
    "RESULT",
    "WINNER",
    "cautions",
    "contest_withdrawn",
    "contestant_name",
    "describe_contest",
    "diverged_in",
    "estimate_contest",
    "hold_contest",
    "kept_for_measuring",
    "networks_at_once",
    "networks_in",
    "not_diverged",
    "parameters_of_all",
    "published_name",
    "reached",
    "read_winner",
    "verdict",
    "windows_of_all",
    "winners_model",
]
