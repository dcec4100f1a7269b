"""Layers of cells above one another and in both directions, called as those of PyTorch are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from wenet.nn.checks import check_count, check_input, check_probability, check_states, check_tensor
from wenet.nn.described import LayerOfCells
from wenet_kernels import WenetError
from wenet_kernels.autocast import without_autocast

States = Tensor | tuple[Tensor, ...]  # one tensor, or a tuple if a cell carries several states


class StackedCells(LayerOfCells):
    """The base of `DagRNN` and `CellRNN`, which add the parameters of a layer and run it over a sequence."""

    carried = 1  # number of states a cell carries, S
    weight_input: Tensor  # of the first layer, forward; inputs must have its dtype and device

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        form: str,
        dropout_x: float,
        dropout_h: float,
        backend: str,
        precision: str,
        *,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bias: bool,
        bidirectional: bool,
    ) -> None:
        super().__init__(input_size, hidden_size, form, dropout_x, dropout_h, backend, precision)
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, dropout
        self.bias, self.bidirectional = bias, bidirectional
        check_count("num_layers", num_layers)
        check_probability("dropout", dropout, below_one=False)

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a layer's parameters in one direction."""
        raise NotImplementedError

    def _run_layer(
        self, layer: int, x: Tensor, states: list[Tensor], lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Output `[T, D, M, H]` of one layer, started from S states `[D, M, H]`, and the states after every step."""
        raise NotImplementedError

    def _make_parameters(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        for layer in range(self.num_layers):
            for direction in range(self.directions):
                for name, shape in self._shapes(layer).items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(parameter_name(name, layer, direction), parameter)
        self.reset_parameters()

    @property
    def directions(self) -> int:
        """Number of directions, D."""
        return 2 if self.bidirectional else 1

    def _inputs(self, layer: int) -> int:
        """Number of features that a layer reads."""
        return self.hidden_size * self.directions if layer else self.input_size

    def reset_parameters(self, bound: float | None = None) -> None:
        """Initialise from U(-bound, bound), by default with bound 1 / sqrt(H) as in `torch.nn.RNN`."""
        bound = self.hidden_size**-0.5 if bound is None else bound
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing; code written for `torch.nn.RNN` calls this."""

    def _called(self, x: Tensor | PackedSequence, h0: States | None) -> tuple[Tensor | PackedSequence, States]:
        """What `forward` gives."""
        if not torch.jit.is_tracing():
            return self._evaluate(x, h0)
        if torch.onnx.is_in_onnx_export():
            raise WenetError("the old ONNX exporter has no loop over time; call torch.onnx.export with dynamo=True")
        with warnings.catch_warnings():  # about checks of the example's sizes; the trace itself takes others
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return self._evaluate(x, h0)

    def _evaluate(self, x: Tensor | PackedSequence, h0: States | None) -> tuple[Tensor | PackedSequence, States]:
        if isinstance(x, PackedSequence):
            return self._run_packed(x, h0)
        check_tensor("the input", x, self.weight_input)
        if x.dim() == 2:
            check_input(self, x.unsqueeze(1))
            output, states = self._run(x.unsqueeze(1), [state.unsqueeze(1) for state in self._given(h0, ())])
            return output.squeeze(1), self._handed_back([state.squeeze(1) for state in states])
        check_input(self, x, time=1 if self.batch_first else 0)
        x = x.transpose(0, 1) if self.batch_first else x
        output, states = self._run(x, self._given(h0, (x.shape[1],)))
        return output.transpose(0, 1) if self.batch_first else output, self._handed_back(states)

    def _run_packed(self, x: PackedSequence, h0: States | None) -> tuple[PackedSequence, States]:
        """Rows of a packed sequence are sorted by length; given and returned states keep the caller's order."""
        check_tensor("the input", x.data, self.weight_input)
        padded, lengths = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes))  # [T, M, I], [M]
        check_input(self, padded)
        states = _rows(self._given(h0, (len(lengths),)), x.sorted_indices)
        output, states = self._run(padded, states, lengths)
        packed = pack_padded_sequence(output, lengths)
        result = PackedSequence(packed.data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        return result, self._handed_back(_rows(states, x.unsorted_indices))

    def _run(self, x: Tensor, states: list[Tensor], lengths: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Output `[T, M, D * H]` of the last layer, and the last states `[num_layers * D, M, H]`.

        Args:
            states: initial states, shaped like the last; an empty list for zeros.
            lengths: `[M]`, the lengths of the sequences; None if all are T.
        """
        if not states:
            shape = (self.num_layers * self.directions, x.shape[1], self.hidden_size)
            states = [x.new_zeros(shape)] * self.carried
        last: list[list[Tensor]] = []
        each = [states] if self.num_layers == 1 else zip(*(x.split(self.directions) for x in states), strict=True)
        for layer, own in enumerate(each):
            below = functional.dropout(x, self.dropout, self.training) if layer else x
            output, carried = self._run_layer(layer, below, list(own), lengths)
            last.append([_last_states(each, lengths) for each in carried])
            x = output.transpose(1, 2).flatten(2) if self.bidirectional else output.squeeze(1)
        return x, last[0] if self.num_layers == 1 else [torch.cat(each) for each in zip(*last, strict=True)]

    def _given(self, h0: States | None, rows: tuple[int, ...]) -> list[Tensor]:
        """The initial states as a list, checked; empty if they are zeros."""
        if h0 is None:
            return []
        shape = (self.num_layers * self.directions, *rows, self.hidden_size)
        return check_states(h0, self.carried, shape, self.weight_input)

    def _handed_back(self, states: list[Tensor]) -> States:
        return states[0] if self.carried == 1 else tuple(states)

    def _of_directions(self, name: str, layer: int) -> Tensor:
        """A parameter of one layer for all directions, `[D, ...]`."""
        each = [getattr(self, parameter_name(name, layer, direction)) for direction in range(self.directions)]
        return stacked(each, 0) if self.bidirectional else each[0].unsqueeze(0)

    def _described_options(self, defaults: Mapping[str, object]) -> str:
        """Options that differ from their defaults, for `extra_repr`."""
        return "".join(
            f", {name}={getattr(self, name)}" for name, default in defaults.items() if getattr(self, name) != default
        )


def _rows(states: list[Tensor], order: Tensor | None) -> list[Tensor]:
    return states if order is None else [state.index_select(1, order) for state in states]


def parameter_name(name: str, layer: int, direction: int) -> str:
    return name + (f"_l{layer}" if layer else "") + ("_reverse" if direction else "")


def stacked(tensors: list[Tensor], dim: int) -> Tensor:
    """`torch.stack` without autocast, which would refuse any half type but its own."""
    with without_autocast(tensors[0].device):
        return torch.stack(tensors, dim)


def reverse_second(sequences: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse each row of the second direction, if there is one, in `[T, D, M, features]`.

    Args:
        lengths: `[M]`, the lengths of the rows; padding stays where it is.
    """
    if sequences.shape[1] == 1:
        return sequences
    first, second = sequences.unbind(1)
    if lengths is None:
        return stacked([first, second.flip(0)], 1)
    step = torch.arange(len(second)).unsqueeze(1)
    source = torch.where(step < lengths, lengths - 1 - step, step)  # [T, M]
    return stacked([first, second[source, torch.arange(len(lengths))]], 1)


def _last_states(output: Tensor, lengths: Tensor | None) -> Tensor:
    """States `[D, M, H]` from the output `[T, D, M, H]`: each row's last, and its first in the second direction."""
    end = output[-1] if lengths is None else output[lengths - 1, :, torch.arange(len(lengths))].transpose(0, 1)
    return end if len(end) == 1 else torch.cat([end[:1], output[0, 1:]])
