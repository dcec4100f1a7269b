"""The one exception of this project, and the commonest reason to raise it."""

from collections.abc import Collection


class WenetError(Exception):
    """A mistake in what was asked for, or a condition that its user can mend.

    The message is one line that names the thing and the mend; the commands print it and exit with code 2.
    """


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise `WenetError` unless the value of an option is among its choices."""
    if value not in choices:
        raise WenetError(f"unknown {name} {value!r}; choose from {', '.join(choices)}")
