"""LSTM layers as language models use them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from wenet.nn.checks import check_count, check_probability
from wenet.nn.dropout import locked_dropout
from wenet_kernels import WenetError


class StackedLSTM(nn.Module):
    """LSTM layers with dropped hidden weights (Merity et al. 2017), called like `DagRNN`.

    Args:
        input_size: features of the input, I.
        hidden_sizes: features of each layer's state; the last is also the size of the output, H.
        skip: sum the outputs of all layers, which must have one size (Melis et al. 2018).
        dropout_x: on the input of every layer above the first, one draw per call, shared over time.
        dropout_h: on the weights between hidden states, one draw per call.

    The state of all layers is one tensor `[1, M, S]`: h and c of each layer in turn, so S is twice the sum of
    `hidden_sizes`.

    Raises:
        WenetError: there are no layers, a size is below 1, sizes differ with `skip`, or a probability is outside 0..1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        skip: bool = False,
        dropout_x: float = 0.0,
        dropout_h: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = [input_size, *hidden_sizes]
        if len(sizes) < 2 or min(sizes) < 1:
            raise WenetError(f"an LSTM needs at least one layer, and sizes of at least 1, not {sizes}")
        if skip and len(set(hidden_sizes)) > 1:
            raise WenetError(f"the outputs of layers are summed, so their sizes must be equal, not {sizes[1:]}")
        check_probability("dropout_x", dropout_x)
        check_probability("dropout_h", dropout_h)
        self.input_size, self.hidden_size = input_size, sizes[-1]
        self.skip, self.dropout_x, self.dropout_h = skip, dropout_x, dropout_h
        self.state_sizes = [size for size in sizes[1:] for _ in ("h", "c")]
        self.layers = nn.ModuleList(nn.LSTM(below, size) for below, size in pairwise(sizes))

    def reset_parameters(self, bound: float | None = None) -> None:
        """Initialise as `torch.nn.LSTM` does; the bound of the embedding is ignored."""
        for layer in self.layers.children():
            layer.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`.
            h0: `[1, M, S]`; zeros by default.

        Returns:
            output `[T, M, H]` and the last state `[1, M, S]`.
        """
        states = (x.new_zeros(1, x.shape[1], sum(self.state_sizes)) if h0 is None else h0).split(self.state_sizes, -1)
        output = x
        outputs: list[Tensor] = []
        last: list[Tensor] = []
        for layer, h, c in zip(self.layers, states[::2], states[1::2], strict=True):
            below = locked_dropout(self, output, self.dropout_x) if outputs else output
            output, h, c = self._run(layer, below, h, c)
            outputs.append(output)
            last += [h, c]
        return torch.stack(outputs).sum(0) if self.skip else output, torch.cat(last, -1)

    def _run(self, layer: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run one layer with its dropped weights; a call of the layer would use the weights it was made with."""
        assert isinstance(layer, nn.LSTM)
        [[from_input, from_hidden, *biases]] = layer.all_weights
        weights = [from_input, functional.dropout(from_hidden, self.dropout_h, self.training), *biases]
        return _run(x, h, c, weights)


class StandaloneLSTM(nn.Module):
    """One LSTM layer, called like a `WeightedDagRNN` with independent coupling and a single network.

    Args:
        size: features of the input, the state and the output, H.
        dropout_x: on the input, one draw per call, shared over time.
        dropout_h: on the weights between hidden states, one draw per call.

    Parameters: weight_input, weight_hidden `[1, 4H, H]`; bias_input, bias_hidden `[1, 4H]`. The state is `[1, M, 2H]`,
    h and c.

    Raises:
        WenetError: a size below 1, a probability outside 0..1.
    """

    coupling, count, among = "independent", 1, None

    def __init__(self, size: int, dropout_x: float = 0.0, dropout_h: float = 0.0) -> None:
        super().__init__()
        check_count("size", size)
        check_probability("dropout_x", dropout_x)
        check_probability("dropout_h", dropout_h)
        self.input_size = self.hidden_size = size
        self.dropout_x, self.dropout_h = dropout_x, dropout_h
        self.weight_input, self.weight_hidden = (nn.Parameter(torch.empty(1, 4 * size, size)) for _ in range(2))
        self.bias_input, self.bias_hidden = (nn.Parameter(torch.empty(1, 4 * size)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self, bound: float | None = None) -> None:
        """Initialise as `torch.nn.LSTM` does; the bound of the embedding is ignored."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: `[1, T, M, H]`.
            h0: `[1, M, 2H]`; zeros by default.

        Returns:
            output `[T, 1, M, H]` and the last state `[1, M, 2H]`.
        """
        masked = locked_dropout(self, x, self.dropout_x)[0]
        h, c = (x.new_zeros(1, x.shape[2], 2 * self.hidden_size) if h0 is None else h0).chunk(2, -1)
        hidden = functional.dropout(self.weight_hidden[0], self.dropout_h, self.training)
        weights = [self.weight_input[0], hidden, self.bias_input[0], self.bias_hidden[0]]
        output, h, c = _run(masked, h, c, weights)
        return output.unsqueeze(1), torch.cat([h, c], -1)


def _run(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    # "training" drops nothing here; it only makes gradients available in evaluation too.
    return torch.lstm(x, (h.contiguous(), c.contiguous()), weights, True, 1, 0.0, True, False, False)
