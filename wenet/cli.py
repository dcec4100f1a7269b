"""The commands. Every mistake ends as one line and exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from wenet.adaptive import Cache, Dynamic
from wenet.compare import describe_common
from wenet.config import Config, SearchConfig, TrainConfig, flag, read_config_file, value_type
from wenet.console import Console
from wenet.distributed import joined
from wenet.evaluate import SETTINGS as EVAL_SETTINGS
from wenet.evaluate import evaluate
from wenet.export import SUFFIXES, describe_export, export
from wenet.genotype import random_genotypes
from wenet.genotypes import PUBLISHED, load_genotype
from wenet.interrupt import Stopped
from wenet.launch import CHECKPOINT_MINUTES
from wenet.launch_search import describe_result, resume_search, search
from wenet.launch_train import describe_training, resume_train, train
from wenet.rank import describe_ranking, rank_cells
from wenet_kernels import ACTIVATIONS, FORMS, LostRanks, WenetError

Result = TypeVar("Result")


class _Parser(argparse.ArgumentParser):
    """Reports a misused flag as the commands report any mistake: one line."""

    def error(self, message: str) -> NoReturn:
        raise WenetError(f"{message}; see {self.prog} --help")


def search_main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-search`."""
    return _reporting("wenet-search", _search, arguments)


def train_main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-train`."""
    return _reporting("wenet-train", _train, arguments)


def eval_main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-eval`."""
    return _reporting("wenet-eval", _evaluate, arguments)


def cell_main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-cell`."""
    return _reporting("wenet-cell", _cell, arguments)


def rank_main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-rank`."""
    return _reporting("wenet-rank", _rank, arguments)


def report_main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-report`."""
    return _reporting("wenet-report", _report, arguments)


def _reporting(command: str, run: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None) -> int:
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


def _search(arguments: Sequence[str] | None) -> None:
    parser = _run_parser(
        "wenet-search",
        "Find a recurrent cell for a text: many random cells compete inside one language model.",
        SearchConfig,
        at_end_of="round",
    )
    console, result = _begin_or_resume(parser, arguments, search, resume_search, resumed_with=("audit", "audit_epochs"))
    console.say(describe_result(result))


def _train(arguments: Sequence[str] | None) -> None:
    parser = _run_parser(
        "wenet-train", "Train one recurrent cell as a language model, and test it.", TrainConfig, at_end_of="epoch"
    )
    console, result = _begin_or_resume(parser, arguments, train, resume_train)
    console.say(describe_training(result))


def _evaluate(arguments: Sequence[str] | None) -> None:
    parser = _Parser(
        prog="wenet-eval",
        description="Perplexity of a trained model on the validation and test part of a text.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder that wenet-train made")
    parser.add_argument("dataset", nargs="?", default=None, help="another text, read with the run's vocabulary")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", default=None, help="look for ptb and wikitext-2 here first"
    )
    for option in dataclasses.fields(TrainConfig):
        if option.name in EVAL_SETTINGS:
            _add_setting(parser, option)
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
    """The arguments of this prefix, without it, and no longer among the others."""
    names = [name for name in given if name.startswith(prefix)]
    return {name.removeprefix(prefix): given.pop(name) for name in names}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _share(text: str) -> float:
    share = _number(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text!r}")
    return share


def _begin_or_resume(
    parser: _Parser,
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


def _run_parser(command: str, description: str, config_class: type[Config], at_end_of: str) -> _Parser:
    """Flags of a resumable run, and one for every field of its settings."""
    parser = _Parser(prog=command, description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
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
        type=_minutes,
        metavar="MINUTES",
        default=CHECKPOINT_MINUTES,
        help=f"time between checkpoints (default: %(default)s); one more at the end of each {at_end_of}",
    )
    run.add_argument(
        "--tensorboard", action="store_true", default=False, help="write curves for TensorBoard into the run folder"
    )
    run.add_argument("--quiet", action="store_true", default=False, help="plain lines instead of a progress bar")
    settings = parser.add_argument_group("settings (defaults are those of the preset paper)")
    for option in dataclasses.fields(config_class):
        _add_setting(settings, option)
    return parser


def _add_setting(group: argparse._ActionsContainer, option: dataclasses.Field[Any]) -> None:
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


def _rank(arguments: Sequence[str] | None) -> None:
    parser = _Parser(
        prog="wenet-rank",
        description="Train cells standalone on equal terms over several seeds, and test whether they differ.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "cells", nargs="+", metavar="CELL", help="folders of searches, or cells; the first must be a search"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings a cell (default: %(default)s)")
    parser.add_argument("--epochs", type=float, metavar="F", help="default: --audit-epochs of the search")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="look for ptb and wikitext-2 here first")
    parser.add_argument("--quiet", action="store_true", help="plain lines instead of a progress bar")
    options = vars(parser.parse_args(arguments))
    console = Console(quiet=options.pop("quiet"))
    console.say(describe_ranking(rank_cells(**options, console=console)))


def _minutes(text: str) -> float:
    minutes = _number(text)
    if not 0 <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text!r}")
    return minutes


def _report(arguments: Sequence[str] | None) -> None:
    parser = _Parser(
        prog="wenet-report",
        description="Write the report of a search or a training, report.html in its folder, anew.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder that wenet-search or wenet-train made")
    parser.add_argument("--follow", action="store_true", help="write it again and again while the run goes on")
    options = parser.parse_args(arguments)
    from wenet.report.write import PAGE, follow_report, write_report  # matplotlib takes a second to import

    if options.follow:
        follow_report(options.run, Console())
    else:
        write_report(options.run)
        print(options.run / PAGE)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None


def _cell(arguments: Sequence[str] | None) -> None:
    parser = _Parser(prog="wenet-cell", description="Look at recurrent cells.", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="published cells by name")
    listing.set_defaults(run=_list_cells)
    show = actions.add_parser("show", help="draw a cell")
    show.add_argument("cell", help="published name, JSON file, run folder, or text such as 'tanh0 relu1'")
    show.add_argument("--json", action="store_true", help="print it as JSON instead")
    _add_draw(show)
    show.set_defaults(run=_show_cell)
    compare = actions.add_parser("compare", help="what two cells have in common")
    compare.add_argument("cells", nargs=2, metavar="CELL", help="as for show")
    _add_draw(compare)
    compare.set_defaults(run=_compare_cells)
    _add_export(actions)
    draw = actions.add_parser("random", help="draw cells at random (Algorithm 1)")
    draw.add_argument("--count", type=int, default=1, metavar="N", help="how many (default: %(default)s)")
    draw.add_argument("--nodes", type=int, default=8, metavar="L", help="nodes of each (default: %(default)s)")
    draw.add_argument(
        "--activations",
        type=lambda text: text.split(","),
        default=list(ACTIVATIONS),
        metavar="NAME,NAME...",
        help=f"that the nodes are drawn from (default: {','.join(ACTIVATIONS)})",
    )
    draw.add_argument("--seed", type=int, default=1, help="the same seed gives the same cells (default: %(default)s)")
    draw.add_argument("--json", action="store_true", help="print them as JSON, one a line")
    draw.set_defaults(run=_random_cells)
    options = parser.parse_args(arguments)
    options.run(options)


def _add_export(actions: argparse._SubParsersAction[Any]) -> None:
    exporting = actions.add_parser(
        "export",
        help="write a cell or a trained model for use without WeNet",
        description="Write the language model that wenet-train made, the recurrent layer in a file of weights, or that "
        "of any other cell with fresh weights, in a form that runs without WeNet.",
        allow_abbrev=False,
    )
    exporting.add_argument(
        "source",
        metavar="RUN|FILE|CELL",
        help="folder that wenet-train made, state dict of a DagRNN or of a model with one (.pt, .safetensors), or a "
        "cell as for show",
    )
    exporting.add_argument(
        "--format",
        choices=tuple(SUFFIXES),
        default="module",
        help="module (readable Python for PyTorch alone, weights of a run as safetensors beside it), onnx, or "
        "torch-export (.pt2) (default: %(default)s)",
    )
    exporting.add_argument("--out", type=Path, metavar="FILE", help="default: named like the source, in this folder")
    exporting.add_argument("--input", type=int, metavar="I", dest="input_size", help="of a cell; default: as --hidden")
    exporting.add_argument("--hidden", type=int, metavar="H", dest="hidden_size", help="of a cell")
    exporting.add_argument("--form", choices=FORMS, help="of a cell (default: highway)")
    exporting.add_argument("--seed", type=int, help="of a cell's fresh weights in onnx or torch-export (default: 1)")
    exporting.add_argument("--data-dir", type=Path, metavar="DIR", help="look for a run's text here first")
    exporting.add_argument("--layer", metavar="NAME", help="of several layers in a state dict this one")
    exporting.set_defaults(run=_export_cell)


def _export_cell(options: argparse.Namespace) -> None:
    given = {name: value for name, value in vars(options).items() if name != "run"}
    print(describe_export(options.source, options.format, export(**given)))


def _list_cells(options: argparse.Namespace) -> None:
    for name, (genotype, source) in PUBLISHED.items():
        print(f"{name:<10} {genotype.nodes:>2} nodes  {genotype}  ({source})")


def _add_draw(action: argparse.ArgumentParser) -> None:
    action.add_argument("--draw", type=Path, metavar="FILE", help="write a picture too, .svg or .png")


def _show_cell(options: argparse.Namespace) -> None:
    genotype = load_genotype(options.cell)
    if options.draw is not None:
        from wenet.report.cells import cell_picture, save_picture  # matplotlib takes a second to import

        save_picture(cell_picture(genotype, _title(options.cell)), options.draw)
    print(genotype.to_json() if options.json else f"{genotype}\n\n{genotype.draw()}")


def _compare_cells(options: argparse.Namespace) -> None:
    first, second = options.cells
    a, b = load_genotype(first), load_genotype(second)
    if options.draw is not None:
        from wenet.report.cells import comparison_picture, save_picture

        save_picture(comparison_picture(_title(first), a, _title(second), b), options.draw)
    print(describe_common(first, a, second, b))


def _title(cell: str) -> str:
    """Of the picture of a cell that was named so: of a path its last part."""
    return Path(cell).name if Path(cell).exists() else cell


def _random_cells(options: argparse.Namespace) -> None:
    for genotype in random_genotypes(options.count, options.nodes, options.seed, options.activations):
        print(genotype.to_json() if options.json else genotype)
