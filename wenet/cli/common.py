"""Shared by all commands: error reports, and flags made from settings."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from wenet.files import too_long
from wenet.parallel import joined
from wenet.run import Config, Console, Group, Stopped, Surroundings, as_flag, flag, read_config_file, value_type
from wenet.searching import usual_preset
from wenet.tasks import TASKS
from wenet.words import quoted
from wenet_kernels import LostRanks, WenetError, did_you_mean

Result = TypeVar("Result")


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong flags in one line, like all other errors."""

    def error(self, message: str) -> NoReturn:
        raise WenetError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Suggest a flag for a misspelled one, also within a subcommand, which alone knows its flags."""
        found, rest = super().parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("--"):
                flags = re.findall(r"--[a-z-]+", self.format_help())
                meant = did_you_mean(word.partition("=")[0], flags)
                raise WenetError(f"unknown flag {word!r}; {meant or f'see {self.prog} --help'}")
        return found, rest


def reporting(command: str, run: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None) -> int:
    """Run a command; returns its exit code."""
    _replace_what_cannot_be_shown()
    try:
        run(arguments)
        if sys.stdout is not None:  # it was closed by the shell
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
    except BrokenPipeError:  # the reader of our output is gone
        _give_up_output()
        return 1
    except OSError as error:
        print(f"{command}{_rank_in_words()}: {_of_system(error)}", file=sys.stderr)
        return 2
    return 0


def _replace_what_cannot_be_shown() -> None:
    """A terminal without the characters of trees and arrows gets question marks, rather than an error at the end."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _of_system(error: OSError) -> str:
    """An error of the system in a line, if it is one that a user may mend."""
    if error.errno == errno.ENAMETOOLONG:
        return too_long(error.filename)
    if error.errno == errno.ENOSPC and error.filename is None:
        _give_up_output()
        return f"cannot write: {error.strerror}; make room, or send the output elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    raise error


def _give_up_output() -> None:
    """Write to nowhere from now on, so that Python does not fail again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _rank_in_words() -> str:
    """The number of this process, if torchrun started several."""
    return f" (rank {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def begin_or_resume(
    parser: Parser,
    arguments: Sequence[str] | None,
    begin: Callable[..., Result],
    resume: Callable[..., Result],
    resumed_with: Sequence[str] = (),
) -> tuple[Console, Result]:
    """Begin or resume a run, depending on the flags; a resumed run accepts only the settings `resumed_with`."""
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
            raise WenetError(
                f"--resume takes its settings from {folder}; leave out {_as_given(*next(iter(given.items())))}"
            )
        return console, resume(folder, **common)


def _as_given(name: str, value: Any) -> str:
    """A setting as it stands on the command line; the text has no flag."""
    return quoted(value) if name == "dataset" else as_flag(name, value)[0]


def run_parser(command: str, description: str, resolve: Callable[..., Config], preset: str, at_end_of: str) -> Parser:
    """A parser with the flags of a resumable run and one for each setting; help shows the preset's defaults."""

    class Help(argparse.Action):
        """Shows the defaults that apply with the flags before it."""

        def __call__(self, parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
            given = vars(namespace)
            config = _in_force(resolve, preset, given)
            task = TASKS[config.task]
            left_out = task.unread if "task" in given or task.reads == "numbers" else ()
            _grouped_parser(command, description, config, at_end_of, left_out).print_help()
            parser.exit()

    parser = _grouped_parser(command, description, resolve(preset), at_end_of)
    parser.add_argument("-h", "--help", action=Help, nargs=0)
    return parser


def _in_force(resolve: Callable[..., Config], default: str, given: Mapping[str, Any]) -> Config:
    """The settings of a command with these flags."""
    settings = {**(read_config_file(given["config"]) if "config" in given else {}), **given}
    known = {option.name for option in dataclasses.fields(resolve("paper"))}
    preset = settings.pop("preset", None) or usual_preset(settings, default)
    return resolve(preset, {name: value for name, value in settings.items() if name in known})


def _grouped_parser(
    command: str, description: str, defaults: Config, at_end_of: str, left_out: Sequence[str] = ()
) -> Parser:
    presets = f"Defaults are those of --preset {defaults.preset}; name another before --help."
    without = f" Settings that --task {defaults.task} does not read are left out." if left_out else ""
    parser = Parser(
        prog=command,
        usage="%(prog)s [dataset] [flags]",
        description=f"{description} {presets}{without}",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {group: parser.add_argument_group(group) for group in Group}
    for option in (option for option in dataclasses.fields(defaults) if option.name not in left_out):
        add_setting(groups[option.metadata["group"]], option, getattr(defaults, option.name))
    _add_run_flags(groups[Group.FIRST], groups[Group.RUN], command, at_end_of)
    return parser


def _add_run_flags(first: argparse._ArgumentGroup, run: argparse._ArgumentGroup, command: str, at_end_of: str) -> None:
    folder = f"runs/{command.removeprefix('wenet-')}-TEXT-TIME"
    first.add_argument("--out", type=Path, metavar="DIR", help=f"new run folder (default: {folder})")
    first.add_argument("--resume", type=Path, metavar="DIR", default=None, help="continue the run in this folder")
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


def add_setting(group: argparse._ActionsContainer, option: dataclasses.Field[Any], default: Any) -> None:
    """A flag for a setting, with the default that its help names."""
    kind = value_type(option)
    told = {True: "on", False: "off"}[default] if kind is bool else default
    shown = "" if default is None or option.name == "preset" else f" (default: {told})"
    text = option.metadata["help"].replace("%", "%%") + shown
    if option.name == "dataset":
        group.add_argument("dataset", nargs="?", help=text)
        return
    if kind is bool:
        group.add_argument(flag(option.name), action=argparse.BooleanOptionalAction, help=text)
        return
    choices = option.metadata.get("choices")
    group.add_argument(
        flag(option.name),
        type=kind,
        metavar=one_of(choices) if choices else option.metadata.get("metavar"),
        help=text,
    )


def one_of(choices: Iterable[str]) -> str:
    """The choices of a flag for its usage line. The value is checked later, where the error can suggest a choice."""
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
