"""Which settings a search does not read, as its other settings are."""

from __future__ import annotations

from wenet.data import ARRAYS, READERS, TABLES, ending_of
from wenet.run.unread import Unread, of_choice
from wenet.searching.settings import STRATEGIES, SearchConfig
from wenet.searching.space import SPACES
from wenet.searching.strategy import strategy_named
from wenet.tasks import TASKS
from wenet.words import counted

DECIDED = ("epochs_per_round", "contest_epochs")  # by --minutes
OF_STANDALONE = ("audit_epochs", "standalone_lr")
OF_CONTESTS = ("finalists", "contest_epochs", "contest_seeds", "weight_decays")


def unread_by_search(config: SearchConfig) -> list[Unread]:
    """All that does not matter to a search with these settings."""
    tasks = {name: task.unread for name, task in TASKS.items()}
    spaces = {name: space.unread for name, space in SPACES.items()}
    strategies = {name: strategy_named(name).unread for name in STRATEGIES if name != "repeated"}
    return [
        *of_choice("task", config.task, tasks),
        *_of_data(config),
        *of_choice("space", config.space, spaces),
        *of_choice("strategy", config.strategy, strategies),
        *_of_numbers(config),
        *_of_parts(config),
    ]


def _of_data(config: SearchConfig) -> list[Unread]:
    """Settings of sequences that come otherwise than these."""
    if TASKS[config.task].reads != "numbers":
        return []
    ending, found = ending_of(config.dataset), []
    if ending not in TABLES:
        names = ("sequence",) if config.task == "forecast" else ("sequence", "target")
        found.append(Unread(names, f"is for tables, {' and '.join(TABLES)}; leave it out"))
    if ending in READERS and ending not in ARRAYS:
        found.append(Unread(("layout",), f"is for arrays, {' and '.join(ARRAYS)}; leave it out"))
    return found


def _of_numbers(config: SearchConfig) -> list[Unread]:
    """Settings in whose place others decide."""
    found = []
    cells = config.pool + len(config.initial_cells_given)
    if config.keep > cells:
        found.append(Unread(("keep",), f"is above the {counted(cells, 'cell')} of --pool; lower it"))
    if config.rounds == 1:
        why = "has no meaning where all cells race at once; leave it out, or make --batch smaller than --pool"
        found.append(Unread(("mutate",), why))
    for name, text, grid in (
        ("rates", config.rates, config.rate_grid),
        ("weight_decays", config.weight_decays, config.decay_grid),
    ):
        if text is not None and len(grid) < len(text.split(",")):
            found.append(Unread((name,), "has a number twice; name each once"))
    if config.space == "gated" and not (config.contest and TASKS[config.task].reads == "text"):
        # In the contest on a text gated cells meet a DAG cell.
        found.append(Unread(("form",), "has no meaning for --space gated; leave it out, or say --space dag"))
    if config.strategy == "race" and not (_ranks_standalone(config) and config.standalone_lr is None):
        why = f"has no meaning for --strategy race, which chooses among --rates; say --rates {config.lr:g}"
        found.append(Unread(("lr",), why))
    if config.parameters is not None:
        found.append(Unread(("hidden",), "has no meaning with --parameters, from which it follows; leave out one"))
    if config.minutes is not None:
        found.append(
            Unread(DECIDED, "has no meaning with --minutes, which decides for how long to train; leave out one")
        )
    return found


def _of_parts(config: SearchConfig) -> list[Unread]:
    """Settings of an audit or contest that there may still be."""
    found = []
    if not _ranks_standalone(config):
        found.append(Unread(OF_STANDALONE, "is for --audit or --runs", later=("audit",)))
    if config.strategy == "wenet" and config.runs == 1 and not (config.audit or config.contest):
        why = "is for standalone networks, as of --audit, --contest, --runs or --strategy race"
        found.append(Unread(("sampled_words",), why, later=("audit", "contest")))
    if not config.contest:
        found.append(Unread(OF_CONTESTS, "is for --contest", later=("contest",)))
        if config.strategy != "race":
            found.append(Unread(("rates",), "is for --contest or --strategy race", later=("contest",)))
    return found


def _ranks_standalone(config: SearchConfig) -> bool:
    """Whether an audit or the winners of several runs train standalone."""
    return bool(config.audit) or config.runs > 1
