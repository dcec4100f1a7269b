"""What a network learns: data, the model around a recurrent layer, the loss, and the metric."""

from typing import Any

from wenet.tasks.language import CharacterModelling, LanguageModelling, perplexity
from wenet.tasks.task import Baseline, Measurement, Metric, Task, failure_to_learn

# By name, as `task` among the settings names it. To add one, write a class with the members of `Task` and name it here.
TASKS: dict[str, type[Task]] = {"language": LanguageModelling}

# The same by characters, where a text is read so; other tasks have no level.
TASKS_BY_CHARACTERS: dict[str, type[Task]] = {"language": CharacterModelling}


def task_of(config: Any) -> Task:
    """The task that the settings of a run name."""
    by_level = {**TASKS, **TASKS_BY_CHARACTERS} if config.level == "characters" else TASKS
    return by_level[config.task]()


__all__ = [
    "TASKS",
    "TASKS_BY_CHARACTERS",
    "Baseline",
    "CharacterModelling",
    "LanguageModelling",
    "Measurement",
    "Metric",
    "Task",
    "failure_to_learn",
    "perplexity",
    "task_of",
]
