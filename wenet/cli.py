"""The commands. Every mistake ends as one line and exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from wenet.config import SearchConfig, flag, read_config_file, value_type
from wenet.console import Console
from wenet.genotype import random_genotypes
from wenet.genotypes import PUBLISHED, load_genotype
from wenet.interrupt import Stopped
from wenet.launch import CHECKPOINT_MINUTES, compare_cells, describe_result, resume_search, search
from wenet.runs import describe_comparison
from wenet_kernels import WenetError


class _Parser(argparse.ArgumentParser):
    """Reports a misused flag as the commands report any mistake: one line."""

    def error(self, message: str) -> NoReturn:
        raise WenetError(f"{message}; see {self.prog} --help")


def search_main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-search`."""
    return _reporting("wenet-search", _search, arguments)


def cell_main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-cell`."""
    return _reporting("wenet-cell", _cell, arguments)


def compare_main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-compare`."""
    return _reporting("wenet-compare", _compare, arguments)


def _reporting(command: str, run: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None) -> int:
    try:
        run(arguments)
        sys.stdout.flush()
    except WenetError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        again = "the same command" if command == "wenet-compare" else f"wenet-search --resume {stopped.folder}"
        print(f"{command}: stopped; continue with: {again}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _search(arguments: Sequence[str] | None) -> None:
    given = vars(_search_parser().parse_args(arguments))
    console = Console(quiet=given.pop("quiet"))
    common = {
        "data_dir": given.pop("data_dir"),
        "checkpoint_every": given.pop("checkpoint_every"),
        "console": console,
    }
    folder = given.pop("resume")
    if folder is not None:
        audit = {name: given.pop(name) for name in ("audit", "audit_epochs") if name in given}
        if given:
            raise WenetError(f"--resume takes its settings from {folder}; leave out {flag(next(iter(given)))}")
        result = resume_search(folder, **common, **audit)
    else:
        file = given.pop("config", None)
        result = search(config_file=read_config_file(file) if file else None, **common, **given)
    console.say(describe_result(result))


def _search_parser() -> _Parser:
    parser = _Parser(
        prog="wenet-search",
        description="Find a recurrent cell for a text: many random cells compete inside one language model.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--out", type=Path, metavar="DIR", help="new run folder (default: runs/search-TEXT-TIME)")
    run.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        default=None,
        help="continue the run in this folder, or audit it when it is finished",
    )
    run.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings; flags override it")
    run.add_argument(
        "--data-dir", type=Path, metavar="DIR", default=None, help="look for ptb and wikitext-2 here first"
    )
    run.add_argument(
        "--checkpoint-every",
        type=_minutes,
        metavar="MINUTES",
        default=CHECKPOINT_MINUTES,
        help="time between checkpoints (default: %(default)s); one more at the end of each round",
    )
    run.add_argument("--quiet", action="store_true", default=False, help="plain lines instead of a progress bar")
    settings = parser.add_argument_group("settings (defaults are those of the preset paper)")
    for option in dataclasses.fields(SearchConfig):
        _add_setting(settings, option)
    return parser


def _add_setting(group: argparse._ArgumentGroup, option: dataclasses.Field[Any]) -> None:
    if option.name == "dataset":
        group.add_argument("dataset", nargs="?", help=f"{option.metadata['help']} (default: {option.default})")
        return
    default = "" if option.default is None or option.name == "preset" else f" (default: {option.default})"
    group.add_argument(
        flag(option.name),
        type=value_type(option),
        metavar=option.metadata.get("metavar"),
        choices=option.metadata.get("choices"),
        help=option.metadata["help"].replace("%", "%%") + default,
    )


def _compare(arguments: Sequence[str] | None) -> None:
    parser = _Parser(
        prog="wenet-compare",
        description="Train cells standalone on equal terms over several seeds, and test whether they differ.",
        allow_abbrev=False,
    )
    parser.add_argument("cells", nargs="+", metavar="CELL", help="run folders or other cells; the first must be a run")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings a cell (default: %(default)s)")
    parser.add_argument("--epochs", type=float, metavar="F", help="default: --audit-epochs of the run")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="look for ptb and wikitext-2 here first")
    parser.add_argument("--quiet", action="store_true", help="plain lines instead of a progress bar")
    options = vars(parser.parse_args(arguments))
    console = Console(quiet=options.pop("quiet"))
    console.say(describe_comparison(compare_cells(**options, console=console)))


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 <= minutes < float("inf"):
        raise ValueError
    return minutes


def _cell(arguments: Sequence[str] | None) -> None:
    parser = _Parser(prog="wenet-cell", description="Look at recurrent cells.", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="published cells by name")
    listing.set_defaults(run=_list_cells)
    show = actions.add_parser("show", help="draw a cell")
    show.add_argument("cell", help="published name, JSON file, run folder, or text such as 'tanh0 relu1'")
    show.add_argument("--json", action="store_true", help="print it as JSON instead")
    show.set_defaults(run=_show_cell)
    draw = actions.add_parser("random", help="draw cells at random (Algorithm 1)")
    draw.add_argument("--count", type=int, default=1, metavar="N", help="how many (default: %(default)s)")
    draw.add_argument("--nodes", type=int, default=8, metavar="L", help="nodes of each (default: %(default)s)")
    draw.add_argument("--seed", type=int, default=1, help="the same seed gives the same cells (default: %(default)s)")
    draw.add_argument("--json", action="store_true", help="print them as JSON, one a line")
    draw.set_defaults(run=_random_cells)
    options = parser.parse_args(arguments)
    options.run(options)


def _list_cells(options: argparse.Namespace) -> None:
    for name, (genotype, source) in PUBLISHED.items():
        print(f"{name:<10} {genotype.nodes:>2} nodes  {genotype}  ({source})")


def _show_cell(options: argparse.Namespace) -> None:
    genotype = load_genotype(options.cell)
    print(genotype.to_json() if options.json else f"{genotype}\n\n{genotype.draw()}")


def _random_cells(options: argparse.Namespace) -> None:
    for genotype in random_genotypes(options.count, options.nodes, options.seed):
        print(genotype.to_json() if options.json else genotype)
