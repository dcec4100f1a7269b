"""The exception of this project, and its most common cause."""

from collections.abc import Iterable
from difflib import get_close_matches


class WenetError(Exception):
    """A mistake in a request, or a problem that the user can solve.

    The message is one line that names the problem and the remedy; commands print it and exit with code 2.
    """


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise `WenetError` unless a value is among the choices of an option.

    >>> check_choice("form", "higway", ["highway", "plain"])
    Traceback (most recent call last):
    wenet_kernels.errors.WenetError: unknown form 'higway'; did you mean 'highway'?
    """
    choices = list(choices)
    if value not in choices:
        mend = did_you_mean(value, choices) or f"choose from {', '.join(choices)}"
        raise WenetError(f"unknown {name} {value!r}; {mend}")


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """The nearest choice as a question; empty if none is near.

    >>> did_you_mean("hiden", ["hidden", "nodes"])
    "did you mean 'hidden'?"
    """
    nearest = get_close_matches(str(value), list(choices), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else ""
