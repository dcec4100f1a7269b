"""`wenet-cell`: look at cells, compare, draw and export them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wenet.cells import (
    PROGRAMS,
    PUBLISHED,
    Genotype,
    cell_to_dict,
    describe_common,
    draw_cell,
    load_cell,
    random_genotypes,
)
from wenet.cells.kinds import SUFFIX
from wenet.cli.common import Parser, one_of, reporting
from wenet.exporting.formats import SUFFIXES, describe_export, export
from wenet.words import counted
from wenet_kernels import ACTIVATIONS, FORMS, WenetError

CELL = "published name, JSON file, run folder, or text such as 'tanh0 relu1' or 'h | tanh(linear(x, h))'"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `wenet-cell`."""
    return reporting("wenet-cell", _cell, arguments)


def _cell(arguments: Sequence[str] | None) -> None:
    parser = Parser(prog="wenet-cell", description="Look at recurrent cells.", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="published cells by name")
    listing.set_defaults(run=_list_cells)
    show = actions.add_parser("show", help="draw a cell")
    show.add_argument("cell", help=f"{CELL}; 'rhn-program' for the program of that name")
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
        help=f"activations to draw from (default: {','.join(ACTIVATIONS)})",
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
        help="folder of a wenet-train run, state dict of a DagRNN or CellRNN or of a model with one (.pt, "
        ".safetensors), or a cell as in show",
    )
    exporting.add_argument(
        "--format",
        metavar=one_of(SUFFIXES),
        default="module",
        help="module (readable Python for PyTorch alone, weights of a run as safetensors beside it), onnx, or "
        "torch-export (.pt2) (default: %(default)s)",
    )
    exporting.add_argument("--out", type=Path, metavar="FILE", help="default: named after the source, in this folder")
    exporting.add_argument("--input", type=int, metavar="I", dest="input_size", help="of a cell; default: as --hidden")
    exporting.add_argument("--hidden", type=int, metavar="H", dest="hidden_size", help="of a cell")
    exporting.add_argument("--form", metavar=one_of(FORMS), help="of a DAG cell (default: highway)")
    exporting.add_argument("--seed", type=int, help="of a cell's fresh weights in onnx or torch-export (default: 1)")
    exporting.add_argument("--data-dir", type=Path, metavar="DIR", help="look for a run's text here first")
    exporting.add_argument("--layer", metavar="NAME", help="name of a layer, if the state dict has several")
    exporting.set_defaults(run=_export_cell)


def _export_cell(options: argparse.Namespace) -> None:
    given = {name: value for name, value in vars(options).items() if name != "run"}
    sizes = (options.input_size, options.hidden_size, options.seed)
    print(
        describe_export(options.source, options.format, export(**given), fresh=any(each is not None for each in sizes))
    )


def _list_cells(options: argparse.Namespace) -> None:
    for name, (genotype, source) in PUBLISHED.items():
        print(f"{name:<10} {genotype.nodes:>2} nodes  {genotype}  ({source})")
    for name, (program, source) in PROGRAMS.items():
        unique = name + SUFFIX if name in PUBLISHED else name
        size = f"{counted(len(program.products), 'product')}, {counted(program.states, 'state')}"
        print(f"{unique:<12} {size:<20}  {program}  ({source})")


def _add_draw(action: argparse.ArgumentParser) -> None:
    action.add_argument("--draw", type=Path, metavar="FILE", help="write a picture too, .svg or .png")


def _show_cell(options: argparse.Namespace) -> None:
    cell = load_cell(options.cell)
    if options.draw is not None:
        from wenet.report.cells import cell_picture, save_picture  # matplotlib takes a second to import

        save_picture(cell_picture(cell, _title(options.cell)), options.draw)
    print(json.dumps(cell_to_dict(cell)) if options.json else f"{cell}\n\n{draw_cell(cell)}")


def _compare_cells(options: argparse.Namespace) -> None:
    first, second = options.cells
    a, b = _dag_cell(first), _dag_cell(second)
    if options.draw is not None:
        from wenet.report.cells import comparison_picture, save_picture

        save_picture(comparison_picture(_title(first), a, _title(second), b), options.draw)
    print(describe_common(first, a, second, b))


def _dag_cell(source: str) -> Genotype:
    cell = load_cell(source)
    if not isinstance(cell, Genotype):
        raise WenetError(f"only DAG cells are compared, and {source} is a program")
    return cell


def _title(cell: str) -> str:
    """The title of a cell's picture: its name, or the last part of a path."""
    return Path(cell).name if os.path.exists(cell) else cell


def _random_cells(options: argparse.Namespace) -> None:
    for genotype in random_genotypes(options.count, options.nodes, options.seed, options.activations):
        print(genotype.to_json() if options.json else genotype)
