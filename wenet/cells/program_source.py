"""A cell that is a program as Python source that needs only PyTorch: one line for each instruction."""

from __future__ import annotations

from string import Template

from wenet.cells.description import Description
from wenet_kernels import Program
from wenet_kernels.programs import LEARNED, PRODUCTS, STATES, Instruction, X
from wenet_kernels.programs.checks import alike_in_all_rows
from wenet_kernels.recurrence import NORM_EPS

LAYER = Template('''\
"""A recurrent cell, written by WeNet. It needs only PyTorch.

$drawing
"""

from __future__ import annotations

${imports}import torch
from torch import Tensor, nn

WEIGHTS = '$weights'  # the label that a state dict of this cell carries


class $name(nn.Module):
    """One layer over a sequence, called like `torch.nn.$like`.

    Sizes: T time steps, M rows of the data batch, I input and H hidden features.
    """

    def __init__(self, input_size: int, hidden_size: int, batch_first: bool = False) -> None:
        super().__init__()
        self.hidden_size, self.batch_first = hidden_size, batch_first
$parameters
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)
$first
    def forward(self, x: Tensor, h0: $states | None = None) -> tuple[Tensor, $states]:
        """Input `[T, M, I]` and $given `[1, M, H]`, zero by default, give output `[T, M, H]` and $last.

        With `batch_first`, input and output are `[M, T, I]` and `[M, T, H]`.
        """
        x = x.transpose(0, 1) if self.batch_first else x
$rows        states = [x.new_zeros(x.shape[1], self.hidden_size)] * $carried if h0 is None else $taken
        outputs = []
        for x_t in x.unsqueeze(1) @ self.weight_input:
            output, *states = self.step(x_t, *states)
            outputs.append(output)
        output = torch.stack(outputs, dim=1 if self.batch_first else 0)
        return output, $handed_back

    def step(self, x: Tensor, $arguments) -> tuple[Tensor, ...]:
        """One time step: the projected input `[$of_input, M, H]` and $before `[M, H]` give the output and $after.

        W, b, v and s hold the products' weights, their biases, learned vectors and learned scalars.
        """
$equations

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(WEIGHTS.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if (found := bytes(state.tolist()).decode()) != WEIGHTS:
            raise ValueError(f"these weights are {found}, but this module needs {WEIGHTS}")
''')

ROWS = """\
        if x.shape[1] == 1:
            raise ValueError("batchnorm needs at least two rows of the data batch, and there is one")
"""
FUNCTIONS = {
    **{name: f"torch.{name}({{}})" for name in ("tanh", "relu", "sigmoid")},
    **{name: f"nn.functional.{name}({{}})" for name in ("silu", "hardsigmoid", "hardtanh")},
    "softplus": "torch.logaddexp({0}, torch.zeros_like({0}))",
    "batchnorm": f"({{0}} - {{0}}.mean(0)) * torch.rsqrt({{0}}.var(0, correction=0) + {NORM_EPS})",
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "blend": "{1} + {0} * ({2} - {1})",
}
WITH_NUMBER = {"times": "{1} * {0}", "plus": "{1} + {0}", "from": "{1} - {0}"}
NAMES = {"weight_hidden": "W", "biases": "b", "vectors": "v", "scalars": "s"}  # of parameters in a step
SHAPES = {"weight_input": "input_size, hidden_size", "weight_hidden": "hidden_size, hidden_size", "scalars": ""}


def program_lines(program: Program) -> list[str]:
    """The program in lines: what it reads, statements, and what the new states are."""
    header, *statements, results = (part.strip() for part in str(program).split("|"))
    new = [f"new {name}" for name in STATES[: program.states]]
    if program.output != program.results[0]:
        new.insert(0, "output")
    return [f"read x, {header}", *statements, f"{', '.join(new)} = {results}"]


def program_layer_source(name: str, program: Program, imports: str = "") -> str:
    """Source of a class `name` that computes what `wenet.nn.CellRNN` does without dropout, with the same parameters."""
    several, names = program.states > 1, STATES[: program.states]
    return LAYER.substitute(
        drawing="\n".join(program_lines(program)),
        imports=imports,
        weights=Description(str(program), "program").to_json(),
        name=name,
        like="LSTM" if several else "GRU",
        parameters="\n".join(_parameters(program)),
        first=_first_numbers(program),
        states="tuple[Tensor, ...]" if several else "Tensor",
        given=f"states ({', '.join(names)}), each" if several else "state",
        last="the last states" if several else "the last state",
        carried=program.states,
        taken="[state[0] for state in h0]" if several else "[h0[0]]",
        handed_back="tuple(state.unsqueeze(0) for state in states)" if several else "states[0].unsqueeze(0)",
        rows=ROWS if program.normalises else "",
        arguments=", ".join(f"{state}: Tensor" for state in names),
        of_input=program.of_input,
        before="states" if several else "the state",
        after="the next states" if several else "the next state",
        equations="\n".join(f"        {line}" for line in _equations(program)),
    )


def _counts(program: Program) -> dict[str, int]:
    """How many of each kind of parameter a cell has, of those that it has."""
    vectors = sum(each.name == "vector" for each in program.learned)
    counts = {
        "weight_input": program.of_input,
        "weight_hidden": program.of_values,
        "biases": program.biases,
        "vectors": vectors,
        "scalars": len(program.learned) - vectors,
    }
    return {name: count for name, count in counts.items() if count}


def _parameters(program: Program) -> list[str]:
    lines = []
    for name, count in _counts(program).items():
        shape = ", ".join(part for part in (str(count), SHAPES.get(name, "hidden_size")) if part)
        lines.append(f"        self.{name} = nn.Parameter(torch.empty({shape}))")
    return lines


def _first_numbers(program: Program) -> str:
    lines = []
    for name in LEARNED:
        first = [each.number for each in program.learned if each.name == name]
        lines += [f"            self.{name}s[{n}] = {number!r}" for n, number in enumerate(first) if number is not None]
    return "\n".join(["        with torch.no_grad():", *lines, ""]) if lines else ""


def _equations(program: Program) -> list[str]:
    """A line for each instruction, and the results."""
    used = [name for name in _counts(program) if name in NAMES]
    lines = [f"{', '.join(NAMES[name] for name in used)} = {', '.join(f'self.{name}' for name in used)}"]
    lines = lines if used else []
    values = list(STATES[: program.states])
    following = dict.fromkeys(("x", *NAMES.values()), 0)

    def next_of(letter: str) -> str:
        following[letter] += 1
        return f"{letter}[{following[letter] - 1}]"

    def product(instruction: Instruction) -> str:
        terms = [next_of("x")] if X in instruction.operands else []
        terms += [f"{values[operand]} @ {next_of('W')}" for operand in instruction.operands if operand != X]
        return " + ".join(terms + ([next_of("b")] if instruction.name == "linear" else []))

    for instruction in program.instructions:
        name, operands, number = instruction
        if name in PRODUCTS:
            expression = product(instruction)
        elif name in LEARNED:
            expression = next_of(name[0])
        else:
            form = FUNCTIONS[name] if number is None else WITH_NUMBER[name]
            expression = form.format(*(values[operand] for operand in operands), *([] if number is None else [number]))
        values.append(f"v{len(values) - program.states + 1}")
        lines.append(f"{values[-1]} = {expression}")
    alike = alike_in_all_rows(program.states, program.instructions)
    results = [
        f"{values[result]}.expand_as(h)" if result in alike else values[result]
        for result in (program.output, *program.results)
    ]
    return [*lines, f"return {', '.join(results)}"]
