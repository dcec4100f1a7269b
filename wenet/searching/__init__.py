"""Searching: strategies, and what measures their results."""

from wenet.searching.audit import begun_audit, final_ranking
from wenet.searching.settings import PRESETS, SearchConfig, resolve_config
from wenet.searching.strategy import Best, Strategy, read_best, strategy_of
from wenet.searching.tournament import hold_tournament
from wenet.searching.work import SEARCH, SearchOutcome, run_search

__all__ = [
    "PRESETS",
    "SEARCH",
    "Best",
    "SearchConfig",
    "SearchOutcome",
    "Strategy",
    "begun_audit",
    "final_ranking",
    "hold_tournament",
    "read_best",
    "resolve_config",
    "run_search",
    "strategy_of",
]
