"""Tasks: data, the model around a recurrent layer, the loss, and the metric."""

from typing import Any

from wenet.tasks.language import CharacterModelling, LanguageModelling, perplexity
from wenet.tasks.numbers import Classification, Forecasting, Labelling, Numbers, Regression, fitting_batch
from wenet.tasks.task import Baseline, CarryingTask, Measurement, Metric, Task, failure_to_learn

# By the names of the setting `task`. To add a task, write a class with the members of `Task` and list it here.
TASKS: dict[str, type[Task]] = {
    "language": LanguageModelling,
    "classify": Classification,
    "regress": Regression,
    "forecast": Forecasting,
    "label": Labelling,
}

# Tasks for texts that are read by characters; tasks not listed here have no such level.
TASKS_BY_CHARACTERS: dict[str, type[Task]] = {"language": CharacterModelling}


def task_of(config: Any) -> Task:
    """The task named in the settings of a run."""
    by_level = {**TASKS, **TASKS_BY_CHARACTERS} if config.level == "characters" else TASKS
    return by_level[config.task].of(config)


__all__ = [
    "TASKS",
    "TASKS_BY_CHARACTERS",
    "Baseline",
    "CarryingTask",
    "CharacterModelling",
    "Classification",
    "Forecasting",
    "Labelling",
    "LanguageModelling",
    "Measurement",
    "Metric",
    "Numbers",
    "Regression",
    "Task",
    "failure_to_learn",
    "fitting_batch",
    "perplexity",
    "task_of",
]
