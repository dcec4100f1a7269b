"""PyTorch's own layers, one above another or many side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from wenet.cells.instances import GRU, LSTM, RNN_TANH
from wenet.nn.checks import check_count, check_probability
from wenet.nn.dropout import locked_dropout
from wenet.nn.program_parameters import biases_of_torch
from wenet.nn.weighted import draw_networks
from wenet_kernels import ProgramBatch, WenetError, cell_rnn, check_choice, project

LAYERS = {"lstm": LSTM, "gru": GRU, "rnn": RNN_TANH}  # PyTorch's


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
        # Nothing is dropped within, so "training" only lets gradients be had in evaluation too.
        return torch.lstm(x, (h.contiguous(), c.contiguous()), weights, True, 1, 0.0, True, False, False)


class StandaloneRNN(nn.Module):
    """n layers of PyTorch side by side, called like a `WeightedDagRNN` with independent coupling.

    They have the parameters of `torch.nn.LSTM`, `torch.nn.GRU` or `torch.nn.RNN`, and compute the same; but as programs
    in one call, because PyTorch would run one after another.

    Args:
        kind: "lstm", "gru" or "rnn".
        input_size, hidden_size: features of the input, I, and of the state and the output, H.
        count: of networks, n.
        dropout_x: on the input, one draw per call, shared over time and networks.
        dropout_h: on the weights between hidden states, one draw per call, shared over networks.
        among: `(total, slice)`: initialise as if all `total` networks had been drawn, so ranks agree.
        backend: as in `CellRNN`.

    Parameters: weight_input `[n, G, I]`, weight_hidden `[n, G, H]`; bias_input, bias_hidden `[n, G]`, G gates times H.
    The state is `[n, M, S]`: h, and of an LSTM c beside it.

    Raises:
        WenetError: an unknown kind, a size or count below 1, a probability outside 0..1.
    """

    coupling = "independent"

    def __init__(
        self,
        kind: str,
        input_size: int,
        hidden_size: int,
        count: int = 1,
        dropout_x: float = 0.0,
        dropout_h: float = 0.0,
        among: tuple[int, slice] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("kind", kind, LAYERS)
        check_count("input_size", input_size)
        check_count("hidden_size", hidden_size)
        check_count("count", count)
        check_probability("dropout_x", dropout_x)
        check_probability("dropout_h", dropout_h)
        self.kind, self.input_size, self.hidden_size, self.count = kind, input_size, hidden_size, count
        self.dropout_x, self.dropout_h, self.among, self.backend = dropout_x, dropout_h, among, backend
        self.cells = ProgramBatch.of([LAYERS[kind]] * count)
        rows = LAYERS[kind].of_values * hidden_size
        self.weight_input = nn.Parameter(torch.empty(count, rows, input_size))
        self.weight_hidden = nn.Parameter(torch.empty(count, rows, hidden_size))
        self.bias_input, self.bias_hidden = (nn.Parameter(torch.empty(count, rows)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self, bound: float | None = None) -> None:
        """As `torch.nn` does, whatever the bound of the embedding around it."""
        for parameter in self.parameters():
            draw_networks(parameter, self.hidden_size**-0.5, self.among)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`, shared by all networks, or `[n, T, M, I]`, an input for each.
            h0: `[n, M, S]`; zeros by default.

        Returns:
            output `[T, n, M, H]` and the last state `[n, M, S]`.
        """
        return self.run(self.project(x), h0)

    def run(self, pre: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, from an input that is projected, `[T, n * products, M, H]`."""
        carried, hidden = self.cells.states, self.hidden_size
        kept = functional.dropout(torch.ones_like(self.weight_hidden[0]), self.dropout_h, self.training)
        h = pre.new_zeros(self.count, pre.shape[-2], carried * hidden) if h0 is None else h0
        output, states = cell_rnn(
            pre,
            h.unflatten(-1, (carried, -1)).permute(2, 0, 1, 3),  # [S, n, M, H]
            self._of_products(self.weight_hidden * kept).flatten(0, 1),
            self._biases().flatten(0, 1),
            None,
            self.cells,
            backend=self.backend,
        )
        return output, torch.cat([state[-1] for state in states], -1)

    def _of_products(self, weight: Tensor) -> Tensor:
        """Weights `[n, G, K]` as those of the products of each cell, `[n, products, K, H]`."""
        return weight.unflatten(1, (-1, self.hidden_size)).mT

    def project(self, x: Tensor) -> Tensor:
        """The input of `forward` after dropout through the weights of all products, `[T, n * products, M, H]`."""
        x = locked_dropout(self, x, self.dropout_x)
        weight = self._of_products(self.weight_input)
        if x.dim() == 3:
            return project(x, weight.flatten(0, 1), backend=self.backend)
        return torch.einsum("ntmi,npih->tnpmh", x, weight).flatten(1, 2)

    def _biases(self) -> Tensor:
        """The biases of each cell, `[n, biases, H]`."""
        of_input, of_hidden = (
            bias.unflatten(1, (-1, self.hidden_size)) for bias in (self.bias_input, self.bias_hidden)
        )
        return biases_of_torch(LAYERS[self.kind], of_input, of_hidden)
