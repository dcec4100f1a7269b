"""What all commands share: how mistakes are reported, and flags made from settings."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from wenet.parallel import joined
from wenet.run import Config, Console, Stopped, Surroundings, flag
from wenet.run.settings import read_config_file, value_type
from wenet_kernels import LostRanks, WenetError, check_choice

Result = TypeVar("Result")


class Parser(argparse.ArgumentParser):
    """Reports a misused flag as the commands report any mistake: one line."""

    def error(self, message: str) -> NoReturn:
        raise WenetError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Names the flag that a misspelled one was meant to be; also within an action, whose flags it alone knows."""
        found, rest = super().parse_known_args(args, namespace)
        flags = re.findall(r"--[\w-]+", self.format_usage())
        for word in rest:
            if word.startswith("--"):
                check_choice("flag", word.partition("=")[0], flags)
        return found, rest


def reporting(command: str, run: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None) -> int:
    """Run a command; returns its exit code."""
    try:
        run(arguments)
        sys.stdout.flush()
    except LostRanks as error:
        print(f"{command}{_rank_in_words()}: {error}; go on from the last checkpoint with --resume", file=sys.stderr)
        return 2
    except WenetError as error:
        print(f"{command}{_rank_in_words()}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        again = "the same command" if command == "wenet-rank" else f"{command} --resume {stopped.folder}"
        if os.environ.get("RANK", "0") == "0":  # all ranks stop together
            print(f"{command}: stopped; continue with: {again}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _rank_in_words() -> str:
    """Which process this is, where torchrun started several."""
    return f" (rank {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def begin_or_resume(
    parser: Parser,
    arguments: Sequence[str] | None,
    begin: Callable[..., Result],
    resume: Callable[..., Result],
    resumed_with: Sequence[str] = (),
) -> tuple[Console, Result]:
    """What a command does with its flags; `resumed_with` are the settings that a resumed run takes, too."""
    given = vars(parser.parse_args(arguments))
    with joined() as ranks:
        console = Console(quiet=given.pop("quiet"), silent=not ranks.first)
        common = {
            "data_dir": given.pop("data_dir"),
            "checkpoint_every": given.pop("checkpoint_every"),
            "tensorboard": given.pop("tensorboard"),
            "console": console,
            "ranks": ranks,
        }
        folder = given.pop("resume")
        if folder is None:
            file = given.pop("config", None)
            return console, begin(config_file=read_config_file(file) if file else None, **common, **given)
        common |= {name: given.pop(name) for name in resumed_with if name in given}
        if given:
            raise WenetError(f"--resume takes its settings from {folder}; leave out {flag(next(iter(given)))}")
        return console, resume(folder, **common)


def run_parser(command: str, description: str, config_class: type[Config], at_end_of: str) -> Parser:
    """Flags of a resumable run, and one for every field of its settings."""
    parser = Parser(prog=command, description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    folder = f"runs/{command.removeprefix('wenet-')}-TEXT-TIME"
    run = parser.add_argument_group("the run")
    run.add_argument("--out", type=Path, metavar="DIR", help=f"new run folder (default: {folder})")
    run.add_argument("--resume", type=Path, metavar="DIR", default=None, help="continue the run in this folder")
    run.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings; flags override it")
    run.add_argument(
        "--data-dir", type=Path, metavar="DIR", default=None, help="look for ptb and wikitext-2 here first"
    )
    run.add_argument(
        "--checkpoint-every",
        type=minutes,
        metavar="MINUTES",
        default=Surroundings.checkpoint_every,
        help=f"time between checkpoints (default: %(default)s); one more at the end of each {at_end_of}",
    )
    run.add_argument(
        "--tensorboard", action="store_true", default=False, help="write curves for TensorBoard into the run folder"
    )
    run.add_argument("--quiet", action="store_true", default=False, help="plain lines instead of a progress bar")
    settings = parser.add_argument_group("settings (defaults are those of the preset paper)")
    for option in dataclasses.fields(config_class):
        add_setting(settings, option)
    return parser


def add_setting(group: argparse._ActionsContainer, option: dataclasses.Field[Any]) -> None:
    if option.name == "dataset":
        group.add_argument("dataset", nargs="?", help=f"{option.metadata['help']} (default: {option.default})")
        return
    default = "" if option.default is None or option.name == "preset" else f" (default: {option.default})"
    choices = option.metadata.get("choices")
    group.add_argument(
        flag(option.name),
        type=value_type(option),
        metavar=one_of(choices) if choices else option.metadata.get("metavar"),
        help=option.metadata["help"].replace("%", "%%") + default,
    )


def one_of(choices: Iterable[str]) -> str:
    """The choices of a flag as its usage shows them. What takes the value checks it, and says what was meant."""
    return "{" + ",".join(choices) + "}"


def minutes(text: str) -> float:
    minutes = number(text)
    if not 0 <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text!r}")
    return minutes


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
