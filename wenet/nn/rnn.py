"""A layer of one recurrent cell."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from wenet.cells import Genotype, load_genotype
from wenet.nn.checks import (
    check_count,
    check_input,
    check_probability,
    check_state,
    check_tensor,
)
from wenet.nn.described import LayerOfCells
from wenet.nn.dropout import draw_mask, locked_dropout
from wenet.nn.scanned import scanned
from wenet_kernels import CellBatch, WenetError, dag_rnn, project
from wenet_kernels.autocast import without_autocast


class DagRNN(LayerOfCells):
    """One cell over a sequence (paper eqs. 1-3), a drop-in for `torch.nn.RNN`.

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state and of the output, H.
        genotype: the cell of every layer, a `Genotype` or anything that `load_genotype` takes, such as "darts-v2".
        form: "highway" (every node gated) or "plain" (the equations as printed).
        dropout_x, dropout_h: probability of variational dropout on the layer's input and on the states that enter
            products; one draw per call, shared over time and directions.
        backend: "auto" or a name from `wenet_kernels.backends()`.
        precision: number type of the recurrence's products: "full" (the parameters' type), "fp32", "fp64", "tf32" or
            "bf16", as in `wenet_kernels.dag_rnn`.
        num_layers: stacked layers, each reading the output of the layer below.
        batch_first: input and output are `[M, T, features]` instead of `[T, M, features]`; states stay as they are.
        dropout: probability of dropout on the output of every layer but the last, with a new draw for each step.
        device, dtype: of the parameters.
        bias: add two biases to the projected input, as `torch.nn.RNN` does by default. In the plain form the projected
            input is only the gate of the init node, so the biases act on that gate.
        bidirectional: run a second network of the same cell from the end of the sequence, as `torch.nn.RNN` does. D
            below is then 2, else 1.
        nonlinearity, proj_size: options of `torch.nn.RNN` and `torch.nn.LSTM` that a cell does not have; the error says
            what to use instead.

    Parameters: weight_input `[I, G]`, weight_hidden `[H, G]`, weight_nodes `[L, H, G]`; G is 2H (highway) or H (plain).
    With `bias` also bias_input and bias_hidden, `[G]`. Names in layer k = 1, 2 ... above the first end in `_lk`, and
    its weight_input is `[D * H, G]`; names of the second direction end in `_reverse`. A state dict also names its cell,
    and layers of other cells refuse it.

    Raises:
        WenetError: a size or number of layers is below 1, a probability is outside 0..1, the form, backend or cell is
            unknown, or the option is one that a cell does not have.

    Examples:
        >>> import torch, wenet
        >>> rnn = wenet.nn.DagRNN(5, 8, "darts-v2", num_layers=2, bidirectional=True)
        >>> output, h = rnn(torch.randn(6, 4, 5))
        >>> output.shape, h.shape
        (torch.Size([6, 4, 16]), torch.Size([4, 4, 8]))
    """

    weight_input: Tensor  # of the first layer, forward

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        genotype: Genotype | str | Path,
        form: str = "highway",
        dropout_x: float = 0.0,
        dropout_h: float = 0.0,
        backend: str = "auto",
        precision: str = "full",
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = False,
        bidirectional: bool = False,
        nonlinearity: None = None,
        proj_size: Literal[0] = 0,
    ) -> None:
        _refuse_options_of_others(nonlinearity, proj_size)
        super().__init__(input_size, hidden_size, form, dropout_x, dropout_h, backend, precision)
        self.genotype = load_genotype(genotype)
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, dropout
        self.bias, self.bidirectional = bias, bidirectional
        check_count("num_layers", num_layers)
        check_probability("dropout", dropout, below_one=False)
        self.described_cells = str(self.genotype)
        self.cells = CellBatch.from_genotypes([self.genotype] * self.directions)
        for layer in range(num_layers):
            for direction in range(self.directions):
                for name, shape in self._shapes(layer).items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(_parameter_name(name, layer, direction), parameter)
        self.reset_parameters()

    @property
    def directions(self) -> int:
        """Number of directions, D."""
        return 2 if self.bidirectional else 1

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a layer's parameters in one direction."""
        hidden, below = self.hidden_size, self.hidden_size * self.directions if layer else self.input_size
        weights = {
            "weight_input": (below, self.width),
            "weight_hidden": (hidden, self.width),
            "weight_nodes": (self.genotype.nodes, hidden, self.width),
        }
        return {**weights, "bias_input": (self.width,), "bias_hidden": (self.width,)} if self.bias else weights

    def reset_parameters(self, bound: float | None = None) -> None:
        """Initialise from U(-bound, bound), by default with bound 1 / sqrt(H) as in `torch.nn.RNN`."""
        bound = self.hidden_size**-0.5 if bound is None else bound
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing; code written for `torch.nn.RNN` calls this."""

    def forward(self, x: Tensor | PackedSequence, h0: Tensor | None = None) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`, `[M, T, I]` with `batch_first`, `[T, I]` for a single sequence, or a packed sequence. A
                packed sequence is run with its padding, which reaches neither output nor states nor gradients. M may
                be 0, T may not.
            h0: `[num_layers * D, M, H]`, or `[num_layers * D, H]` for a single sequence; zeros by default. In each
                layer the forward direction comes first.

        Returns:
            The output of the last layer, shaped like `x` but with D * H features, those of the forward direction first;
            and the last state of every layer and direction, shaped like `h0`. The last state of the reverse direction
            is its state at the first step.

        Raises:
            WenetError: shapes disagree, there are no time steps, or the input has NaN.
        """
        if not torch.jit.is_tracing():
            return self._evaluate(x, h0)
        if torch.onnx.is_in_onnx_export():
            raise WenetError("the old ONNX exporter has no loop over time; call torch.onnx.export with dynamo=True")
        with warnings.catch_warnings():  # about checks of the example's sizes; the trace itself takes others
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return self._evaluate(x, h0)

    def _evaluate(self, x: Tensor | PackedSequence, h0: Tensor | None) -> tuple[Tensor | PackedSequence, Tensor]:
        if isinstance(x, PackedSequence):
            return self._run_packed(x, h0)
        check_tensor("the input", x, self.weight_input)
        if x.dim() == 2:
            check_input(self, x.unsqueeze(1))
            output, h = self._run(x.unsqueeze(1), h0 if h0 is None else self._checked(h0, ()).unsqueeze(1))
            return output.squeeze(1), h.squeeze(1)
        check_input(self, x, time=1 if self.batch_first else 0)
        output, h = self._run(x.transpose(0, 1) if self.batch_first else x, h0)
        return output.transpose(0, 1) if self.batch_first else output, h

    def _run_packed(self, x: PackedSequence, h0: Tensor | None) -> tuple[PackedSequence, Tensor]:
        """Rows of a packed sequence are sorted by length; h0 and the returned state keep the caller's order."""
        check_tensor("the input", x.data, self.weight_input)
        padded, lengths = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes))  # [T, M, I], [M]
        check_input(self, padded)
        if h0 is not None and x.sorted_indices is not None:
            h0 = self._checked(h0, (len(lengths),)).index_select(1, x.sorted_indices)
        output, h = self._run(padded, h0, lengths)
        if x.unsorted_indices is not None:
            h = h.index_select(1, x.unsorted_indices)
        packed = pack_padded_sequence(output, lengths)
        return PackedSequence(packed.data, x.batch_sizes, x.sorted_indices, x.unsorted_indices), h

    def _run(self, x: Tensor, h0: Tensor | None, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output `[T, M, D * H]` of the last layer, and the last states `[num_layers * D, M, H]`.

        Args:
            lengths: `[M]`, the lengths of the sequences; None if all are T.
        """
        rows = x.shape[1]
        states = self.num_layers * self.directions
        h = x.new_zeros(states, rows, self.hidden_size) if h0 is None else self._checked(h0, (rows,))
        last: list[Tensor] = []
        for layer, h_layer in enumerate(h.split(self.directions)):
            below = functional.dropout(x, self.dropout, self.training) if layer else x
            output = self._run_layer(layer, below, h_layer, lengths)  # [T, D, M, H]
            last.append(_last_states(output, lengths))
            x = output.transpose(1, 2).flatten(2)
        return x, torch.cat(last)

    def _run_layer(self, layer: int, x: Tensor, h: Tensor, lengths: Tensor | None) -> Tensor:
        """Output `[T, D, M, H]` of one layer, started from the states `[D, M, H]`."""
        pre = self._project(layer, locked_dropout(self, x, self.dropout_x))
        mask_h = draw_mask(self, x, self.dropout_h, self.hidden_size)
        output = self._recur(layer, _reverse_second(pre, lengths), h, mask_h)
        return _reverse_second(output, lengths)

    def _project(self, layer: int, x: Tensor) -> Tensor:
        """The input times each direction's weights, plus biases: `[T, D, M, G]`."""
        weight = self._of_directions("weight_input", layer)
        if torch.compiler.is_exporting():
            pre = torch.stack([x @ each for each in weight], 1)
        else:
            pre = project(x, weight, backend=self.backend)
        if not self.bias:
            return pre
        bias = self._of_directions("bias_input", layer) + self._of_directions("bias_hidden", layer)  # [D, G]
        return pre + bias.unsqueeze(1)

    def _recur(self, layer: int, pre: Tensor, h: Tensor, mask_h: Tensor | None) -> Tensor:
        """The output of all directions, `[T, D, M, H]`, computed as independent networks of one call."""
        weight_hidden = self._of_directions("weight_hidden", layer)
        weight_nodes = self._of_directions("weight_nodes", layer)
        if torch.compiler.is_exporting():
            if mask_h is not None:
                raise WenetError("dropout_h cannot be exported; call model.eval() first")
            each = zip(pre.unbind(1), h, weight_hidden, weight_nodes, strict=True)
            return torch.stack([scanned(self.genotype, self.form, *operands) for operands in each], 1)
        output = dag_rnn(
            pre,
            h,
            weight_hidden,
            weight_nodes,
            None,
            self.cells,
            form=self.form,
            mask_h=mask_h,
            coupling="independent",
            precision=self.precision,
            backend=self.backend,
        )
        assert isinstance(output, Tensor)
        return output

    def _of_directions(self, name: str, layer: int) -> Tensor:
        """A parameter of one layer for all directions, `[D, ...]`."""
        each = [getattr(self, _parameter_name(name, layer, direction)) for direction in range(self.directions)]
        return _stacked(each, 0) if self.bidirectional else each[0].unsqueeze(0)

    def _checked(self, h0: Tensor, rows: tuple[int, ...]) -> Tensor:
        check_state(h0, (self.num_layers * self.directions, *rows, self.hidden_size), self.weight_input)
        return h0

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, {self.genotype}, form={self.form}"
        defaults = {"num_layers": 1, "batch_first": False, "dropout": 0.0, "bias": False, "bidirectional": False}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


def _parameter_name(name: str, layer: int, direction: int) -> str:
    return name + (f"_l{layer}" if layer else "") + ("_reverse" if direction else "")


def _stacked(tensors: list[Tensor], dim: int) -> Tensor:
    """`torch.stack` without autocast, which would refuse any half type but its own."""
    with without_autocast(tensors[0].device):
        return torch.stack(tensors, dim)


def _reverse_second(sequences: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse each row of the second direction, if there is one, in `[T, D, M, features]`.

    Args:
        lengths: `[M]`, the lengths of the rows; padding stays where it is.
    """
    if sequences.shape[1] == 1:
        return sequences
    first, second = sequences.unbind(1)
    if lengths is None:
        return _stacked([first, second.flip(0)], 1)
    step = torch.arange(len(second)).unsqueeze(1)
    source = torch.where(step < lengths, lengths - 1 - step, step)  # [T, M]
    return _stacked([first, second[source, torch.arange(len(lengths))]], 1)


def _last_states(output: Tensor, lengths: Tensor | None) -> Tensor:
    """States `[D, M, H]` from the output `[T, D, M, H]`: each row's last, and its first in the second direction."""
    end = output[-1] if lengths is None else output[lengths - 1, :, torch.arange(len(lengths))].transpose(0, 1)
    return torch.cat([end[:1], output[0, 1:]])


def _refuse_options_of_others(nonlinearity: object, proj_size: object) -> None:
    if nonlinearity is not None:
        raise WenetError("a cell has no nonlinearity of its own; the genotype names an activation for each node")
    if proj_size != 0:
        raise WenetError("a cell has no proj_size; put a torch.nn.Linear behind it")
