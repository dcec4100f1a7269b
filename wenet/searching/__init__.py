"""Searching: strategies, and measurements of their results."""

from wenet.searching.added import added_settings
from wenet.searching.audit import correlation_in_words, final_ranking, spread_in_words, usual_audit
from wenet.searching.settings import OF_NUMBERS, PRESETS, SearchConfig, resolve_config, usual_preset
from wenet.searching.strategy import Best, Strategy, read_best, strategy_of, unfinished_part
from wenet.searching.tournament import hold_tournament
from wenet.searching.work import SEARCH, NextSteps, SearchOutcome, run_search

__all__ = [
    "OF_NUMBERS",
    "PRESETS",
    "SEARCH",
    "Best",
    "NextSteps",
    "SearchConfig",
    "SearchOutcome",
    "Strategy",
    "added_settings",
    "correlation_in_words",
    "final_ranking",
    "hold_tournament",
    "read_best",
    "resolve_config",
    "run_search",
    "spread_in_words",
    "strategy_of",
    "unfinished_part",
    "usual_audit",
    "usual_preset",
]
