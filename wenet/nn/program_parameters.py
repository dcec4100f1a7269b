"""The parameters of a cell that is a program: their shapes, their order, and what some of them are first."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wenet_kernels import Program
from wenet_kernels.programs import LEARNED

KINDS = ("biases", *(f"{name}s" for name in LEARNED))  # of numbers that are learned for each hidden unit, or for all


def parameter_shapes(program: Program, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes by name; what a cell has none of is left out."""
    vectors = sum(each.name == "vector" for each in program.learned)
    shapes: dict[str, tuple[int, ...]] = {
        "weight_input": (program.of_input, input_size, hidden_size),
        "weight_hidden": (program.of_values, hidden_size, hidden_size),
        "biases": (program.biases, hidden_size),
        "vectors": (vectors, hidden_size),
        "scalars": (len(program.learned) - vectors,),
    }
    return {name: shape for name, shape in shapes.items() if shape[0]}


def vectors_in_order(program: Program, parameters: Mapping[str, Tensor], like: Tensor, hidden_size: int) -> Tensor:
    """Biases, vectors and scalars in the order in which they stand in the cell, as `cell_rnn` reads them, `[D, V, H]`.

    Args:
        parameters: of these kinds those that the cell has, `[D, count, H]`; scalars `[D, count]`.
        like: a tensor of the type to give, and D long, where there are none.
    """
    parts = [
        each.unsqueeze(-1).expand(-1, -1, hidden_size) if name == "scalars" else each
        for name, each in parameters.items()
        if name in KINDS
    ]
    if not parts:
        return like.new_empty(len(like), 0, hidden_size)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)[:, _order(program)]


def _order(program: Program) -> list[int]:
    """Where each of these of the cell lies, with all biases before all vectors before all scalars."""
    vectors = sum(each.name == "vector" for each in program.learned)
    following = {"linear": 0, "vector": program.biases, "scalar": program.biases + vectors}
    order = []
    for instruction in program.instructions:
        if instruction.name in following:
            order.append(following[instruction.name])
            following[instruction.name] += 1
    return order


@torch.no_grad()
def set_first_numbers(program: Program, parameters: Mapping[str, Tensor]) -> None:
    """Give vectors and scalars what the cell says they are first; others stay as they are drawn.

    Args:
        parameters: vectors `[count, H]` and scalars `[count]`, by name.
    """
    for name in LEARNED:
        first = [each.number for each in program.learned if each.name == name]
        for own, number in zip(parameters.get(f"{name}s", ()), first, strict=True):
            if number is not None:
                nn.init.constant_(own, number)


def biases_of_torch(program: Program, of_input: Tensor, of_hidden: Tensor) -> Tensor:
    """Biases `[..., biases, H]` of a program that is a layer of PyTorch, which has two for each gate, `[..., G, H]`.

    They add up, but for the last gate of a GRU: it resets one of two products, each with a bias.
    """
    both = of_input + of_hidden
    if program.biases == both.shape[-2]:
        return both
    return torch.cat([both[..., :2, :], of_input[..., 2:, :], of_hidden[..., 2:, :]], -2)


def split_row(row: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Parameters that lie behind one another in a row, which may be longer, as views by name."""
    found, first = {}, 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        found[name] = row[first : first + count].view(shape)
        first += count
    return found
