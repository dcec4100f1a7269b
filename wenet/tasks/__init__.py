"""What a network learns: data, the model around a recurrent layer, the loss, and the metric."""

from typing import Any

from wenet.tasks.language import LanguageModelling, perplexity
from wenet.tasks.task import Baseline, Metric, Task, failure_to_learn

# By name, as `task` among the settings names it. To add one, write a class with the members of `Task` and name it here.
TASKS: dict[str, type[Task]] = {"language": LanguageModelling}


def task_of(config: Any) -> Task:
    """The task that the settings of a run name."""
    return TASKS[config.task]()


__all__ = [
    "TASKS",
    "Baseline",
    "LanguageModelling",
    "Metric",
    "Task",
    "failure_to_learn",
    "perplexity",
    "task_of",
]
