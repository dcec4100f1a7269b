"""`wenet-eval`: a trained model on held-out text."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wenet.cli.common import Parser, add_setting, number, reporting
from wenet.run import Console
from wenet.training import SETTINGS, Cache, Dynamic, TrainConfig, evaluate
from wenet_kernels import WenetError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-eval`."""
    return reporting("wenet-eval", _evaluate, arguments)


def _evaluate(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="wenet-eval",
        description="Perplexity, or bits per character, of a trained model on the validation and test part of a text.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder that wenet-train made")
    parser.add_argument("dataset", nargs="?", default=None, help="another text, read with the run's vocabulary")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", default=None, help="look for ptb and wikitext-2 here first"
    )
    for option in dataclasses.fields(TrainConfig):
        if option.name in SETTINGS:
            add_setting(parser, option, option.default)
    adaptive = parser.add_argument_group("adapting to the text while reading it, which the paper does not")
    adaptive.add_argument(
        "--cache", type=_count, metavar="N", default=None, help="neural cache of the last N states (500, 2000 ...)"
    )
    adaptive.add_argument(
        "--cache-flatness", type=float, metavar="F", help=f"weight of similarity (default: {Cache.flatness})"
    )
    adaptive.add_argument(
        "--cache-share", type=_share, metavar="P", help=f"of the cache in a prediction (default: {Cache.share})"
    )
    adaptive.add_argument("--dynamic", action="store_true", default=False, help="dynamic evaluation")
    adaptive.add_argument("--dynamic-lr", type=float, metavar="RATE", help=f"of its steps (default: {Dynamic.lr})")
    adaptive.add_argument(
        "--dynamic-decay", type=_share, metavar="W", help=f"back to the trained weights (default: {Dynamic.decay})"
    )
    given = vars(parser.parse_args(arguments))
    length, dynamic = given.pop("cache"), given.pop("dynamic")
    of_cache, of_dynamic = _taken("cache_", given), _taken("dynamic_", given)
    if (of_cache and length is None) or (of_dynamic and not dynamic):
        raise WenetError("settings of the cache need --cache, those of dynamic evaluation --dynamic")
    evaluate(
        given.pop("run"),
        cache=None if length is None else Cache(length, **of_cache),
        dynamic=Dynamic(**of_dynamic) if dynamic else None,
        console=Console(),
        **given,
    )


def _taken(prefix: str, given: dict[str, Any]) -> dict[str, Any]:
    """Remove the arguments with this prefix from the others; returns them without the prefix."""
    names = [name for name in given if name.startswith(prefix)]
    return {name.removeprefix(prefix): given.pop(name) for name in names}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _share(text: str) -> float:
    share = number(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text!r}")
    return share
