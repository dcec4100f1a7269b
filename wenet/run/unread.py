"""Settings that a run would not read, as its other settings are: to give one is an error, and no report lists it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wenet.run.settings import as_flag
from wenet_kernels import WenetError


@dataclass(frozen=True)
class Unread:
    """Some settings that do not matter to a run.

    Attributes:
        why: says so, and what to do instead; behind the flag, in an error.
        later: settings of work that may be added once the run has ended, and reads them. They may be given, unless
            that work is refused as well.
    """

    names: tuple[str, ...]
    why: str
    later: tuple[str, ...] = ()


def of_choice(setting: str, chosen: str, unread: Mapping[str, tuple[str, ...]]) -> list[Unread]:
    """What a choice leaves out, with the choices that do not.

    Args:
        unread: by choice the settings that it does not read.
    """
    found = []
    for name in unread[chosen]:
        readers = " or ".join(choice for choice in unread if name not in unread[choice])
        why = f"has no meaning for --{setting} {chosen}; leave it out, or say --{setting} {readers}"
        found.append(Unread((name,), why))
    return found


def names_of(unread: Iterable[Unread]) -> set[str]:
    return {name for each in unread for name in each.names}


def check_read(given: Mapping[str, Any], unread: Iterable[Unread]) -> None:
    """Refuse a setting that was given, but would not be read.

    Args:
        given: the settings that the user named.

    Raises:
        WenetError: as above.
    """
    for each in unread:
        for name in each.names:
            if name in given and all(other in given and not given[other] for other in each.later):
                refused = " and ".join(" ".join(as_flag(other, given[other])) for other in each.later)
                mend = f"; leave out that, or {refused}" if refused else ""
                raise WenetError(f"{as_flag(name, given[name])[0]} {each.why}{mend}")
