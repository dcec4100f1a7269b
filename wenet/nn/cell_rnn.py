"""A recurrent layer of any cell that is a program."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from wenet.cells import Genotype, load_program
from wenet.cells.instances import GRU, LSTM, RNN_RELU, RNN_TANH
from wenet.nn.checks import check_no_end
from wenet.nn.dropout import draw_mask, locked_dropout
from wenet.nn.program_parameters import (
    KINDS,
    biases_of_torch,
    parameter_shapes,
    set_first_numbers,
    vectors_in_order,
)
from wenet.nn.scanned import scanned_program
from wenet.nn.stacked import StackedCells, States, parameter_name, reverse_second
from wenet_kernels import Program, ProgramBatch, WenetError, cell_rnn, project
from wenet_kernels.programs.layer import projected_cell_rnn


class CellRNN(StackedCells):
    """A recurrent layer of any cell, used like `torch.nn.GRU`, or `torch.nn.LSTM` if there are several states.

    Args:
        input_size: features of the input, I.
        hidden_size: features of every state and of the output, H.
        cell: a function decorated with `wenet.cell`, or any argument of `wenet.programs.load_program`, such as "lstm";
            all layers have the same cell.
        num_layers: number of stacked layers, each reading the output of the one below.
        bias: whether the products of `linear` have a bias.
        batch_first: input and output are `[M, T, features]` instead of `[T, M, features]`; states stay as they are.
        dropout: probability of dropout on the output of every layer but the last, drawn for each step.
        bidirectional: also runs a second network of the same cell over the reversed sequence. Then D below is 2,
            else 1.
        device, dtype: of the parameters.
        dropout_x, dropout_h: probability of variational dropout on the input and on the other values that products
            read; one draw per call, shared over time and directions.
        backend: "auto", "reference", "cpu" or "triton".
        precision: number type of the products of states and other values: "full" (the parameters' type), "fp32", "fp64"
            or "bf16", as in `wenet_kernels.cell_rnn`.

    Parameters, in the order of the cell's instructions: weight_input `[X, I, H]` of products that read the input,
    weight_hidden `[P, H, H]` of products that read a state or another value, biases `[B, H]`, vectors `[V, H]` and
    scalars `[C]`. A cell without one of these has no such parameter. Names in layer k = 1, 2 ... above the first end in
    `_lk`, and its weight_input is `[X, D * H, H]`; names of the reverse direction end in `_reverse`. A state dict names
    its cell, and a layer of another cell refuses it.

    Raises:
        WenetError: a size or number of layers below 1, a probability outside 0..1, or an unknown cell.

    Examples:
        >>> import torch, wenet
        >>> layer = wenet.nn.CellRNN(10, 20, "lstm", num_layers=2)
        >>> output, (h, c) = layer(torch.randn(7, 3, 10))
        >>> output.shape, h.shape, c.shape
        (torch.Size([7, 3, 20]), torch.Size([2, 3, 20]), torch.Size([2, 3, 20]))
    """

    forms = ("program",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        cell: Program | Genotype | str | Path,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        dropout_x: float = 0.0,
        dropout_h: float = 0.0,
        backend: str = "auto",
        precision: str = "full",
    ) -> None:
        super().__init__(
            *(input_size, hidden_size, "program", dropout_x, dropout_h, backend, precision),
            num_layers=num_layers,
            batch_first=batch_first,
            dropout=dropout,
            bias=bias,
            bidirectional=bidirectional,
        )
        program = load_program(cell)
        self.program = program if bias else program.without_biases()
        self.carried = self.program.states
        self.described_cells = str(self.program)
        self.cells = ProgramBatch.of([self.program] * self.directions)
        self._make_parameters(device, dtype)

    @classmethod
    def from_torch(cls, module: nn.RNNBase) -> CellRNN:
        """Convert a `torch.nn.RNN`, `LSTM` or `GRU`, with copies of its weights.

        Raises:
            WenetError: another module, or one with `proj_size`.

        Examples:
            >>> import torch, wenet
            >>> lstm = torch.nn.LSTM(10, 20)
            >>> x = torch.randn(7, 3, 10)
            >>> torch.allclose(wenet.nn.CellRNN.from_torch(lstm)(x)[0], lstm(x)[0], atol=1e-6)
            True
        """
        cell = _OF_TORCH.get(getattr(module, "mode", ""))
        if cell is None or module.proj_size:
            raise WenetError("only a torch.nn.RNN, LSTM or GRU without proj_size can be converted")
        own = next(module.parameters())
        layer = cls(
            *(module.input_size, module.hidden_size, cell, module.num_layers, module.bias, module.batch_first),
            *(module.dropout, module.bidirectional, own.device, own.dtype),
        )
        with torch.no_grad():
            for number in range(layer.num_layers):
                for direction in range(layer.directions):
                    layer._take_over(module, number, direction)
        return layer.train(module.training)

    def _take_over(self, module: nn.RNNBase, layer: int, direction: int) -> None:
        """Copy the weights of one layer and direction; PyTorch stacks the gates: `[gates * H, I]`."""
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        for ours, theirs in (("weight_input", "weight_ih"), ("weight_hidden", "weight_hh")):
            weight = getattr(module, theirs + suffix).unflatten(0, (-1, self.hidden_size))
            getattr(self, parameter_name(ours, layer, direction)).copy_(weight.mT)
        if self.bias:
            of_input, of_hidden = (
                getattr(module, name + suffix).unflatten(0, (-1, self.hidden_size)) for name in ("bias_ih", "bias_hh")
            )
            bias = biases_of_torch(self.program, of_input, of_hidden)
            getattr(self, parameter_name("biases", layer, direction)).copy_(bias)

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        return parameter_shapes(self.program, self._inputs(layer), self.hidden_size)

    def reset_parameters(self, bound: float | None = None) -> None:
        """Draw from U(-bound, bound), by default 1 / sqrt(H) as in `torch.nn.GRU`, all but constants of the cell."""
        super().reset_parameters(bound)
        for layer in range(self.num_layers):
            for direction in range(self.directions):
                names = {name: parameter_name(name, layer, direction) for name in self._shapes(layer)}
                set_first_numbers(self.program, {name: getattr(self, own) for name, own in names.items()})

    def forward(self, x: Tensor | PackedSequence, h0: States | None = None) -> tuple[Tensor | PackedSequence, States]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`, with `batch_first` `[M, T, I]`, `[T, I]` for a single sequence, or a packed sequence, whose
                padding reaches neither output nor states nor gradients. M may be 0, but not T.
            h0: `[num_layers * D, M, H]`, or `[num_layers * D, H]` for a single sequence; a tuple of these if the cell
                carries several states. Zeros by default. The forward direction comes first.

        Returns:
            The output of the last layer, shaped like `x` but with D * H features, the forward direction first. And the
            last states of every layer and direction, shaped like `h0`; of the reverse direction, at the first step.

        Raises:
            WenetError: shapes that disagree, no time steps, or NaN in the input; of a cell with `batchnorm`, a single
                row, or packed sequences of different lengths.
        """
        return self._called(x, h0)

    def _run_layer(
        self, layer: int, x: Tensor, states: list[Tensor], lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if lengths is not None:
            check_no_end(self.cells, lengths < len(x))
        mask_h = draw_mask(self, x, self.dropout_h, self.hidden_size)
        x = locked_dropout(self, x, self.dropout_x)
        if not self.bidirectional and not torch.compiler.is_exporting():
            output, carried = self._in_one(layer, x, torch.stack(states), mask_h)
            return output, list(carried)
        pre = self._project(layer, x)
        if self.bidirectional:
            pre = pre.unflatten(1, (2, -1)).transpose(2, 3)  # [T, D, M, X, H]
            pre = reverse_second(pre, lengths).transpose(2, 3).flatten(1, 2)
        output, carried = self._recur(layer, pre, torch.stack(states), mask_h)
        # If the output is h, do not reverse it twice.
        turned = [reverse_second(each, lengths) for each in (output, *carried[self.cells.puts_out_h :])]
        return turned[0], turned if self.cells.puts_out_h else turned[1:]

    def _in_one(
        self, layer: int, x: Tensor, states: Tensor, mask_h: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `_recur` of the input itself, for a single direction."""
        weight_input: Tensor = getattr(self, parameter_name("weight_input", layer, 0))
        weight, vectors = (getattr(self, parameter_name(name, layer, 0), None) for name in ("weight_hidden", "biases"))
        weight = self._weight(layer, x)[0] if weight is None else weight
        if vectors is None or len(vectors) < self.cells.vectors:  # there are other learned vectors
            vectors = self._vectors(layer, x)[0]
        return projected_cell_rnn(
            *(x, weight_input, states, weight, vectors, self.cells),
            mask_h=mask_h,
            precision=self.precision,
            backend=self.backend,
        )

    def _project(self, layer: int, x: Tensor) -> Tensor:
        """The input projected for every direction, `[T, D * X, M, H]`."""
        weight = self._of_directions("weight_input", layer).flatten(0, 1)
        if torch.compiler.is_exporting():
            return torch.stack([x @ each for each in weight], 1)
        return project(x, weight, backend=self.backend)

    def _recur(
        self, layer: int, pre: Tensor, states: Tensor, mask_h: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run both directions as networks of one call: the output `[T, D, M, H]`, and all states after every step.

        Args:
            pre: `[T, D * X, M, H]`.
            states: `[S, D, M, H]`.
        """
        weight, vectors = self._weight(layer, pre), self._vectors(layer, pre)  # [D, P, H, H] and [D, V, H]
        if torch.compiler.is_exporting():
            if mask_h is not None:
                raise WenetError("dropout_h cannot be exported; call model.eval() first")
            one = ProgramBatch.of([self.program])
            each = zip(pre.chunk(self.directions, 1), states.unbind(1), weight, vectors, strict=True)
            found = zip(*(scanned_program(one, *operands) for operands in each), strict=True)
            output, *carried = (torch.stack(directions, 1) for directions in found)
            return output, tuple(carried)
        return cell_rnn(
            pre,
            states,
            weight.flatten(0, 1),
            vectors.flatten(0, 1),
            None,
            self.cells,
            mask_h=mask_h,
            precision=self.precision,
            backend=self.backend,
        )

    def _weight(self, layer: int, like: Tensor) -> Tensor:
        if self.program.of_values:
            return self._of_directions("weight_hidden", layer)
        return like.new_empty(self.directions, 0, self.hidden_size, self.hidden_size)

    def _vectors(self, layer: int, like: Tensor) -> Tensor:
        """Biases, vectors and scalars in the order of the cell's instructions, `[D, V, H]`."""
        parameters = {name: self._of_directions(name, layer) for name in self._shapes(layer) if name in KINDS}
        first = like.new_empty(self.directions, 0)
        return vectors_in_order(self.program, parameters, first, self.hidden_size)

    def extra_repr(self) -> str:
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        return f"{self.input_size}, {self.hidden_size}, '{self.program}'" + self._described_options(defaults)


_OF_TORCH = {"RNN_TANH": RNN_TANH, "RNN_RELU": RNN_RELU, "LSTM": LSTM, "GRU": GRU}
