"""A layer of one recurrent cell."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from wenet.cells import Genotype, load_genotype
from wenet.nn.dropout import draw_mask, locked_dropout
from wenet.nn.scanned import scanned
from wenet.nn.stacked import StackedCells, reverse_second
from wenet_kernels import CellBatch, WenetError, dag_rnn, project


class DagRNN(StackedCells):
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
        super().__init__(
            *(input_size, hidden_size, form, dropout_x, dropout_h, backend, precision),
            num_layers=num_layers,
            batch_first=batch_first,
            dropout=dropout,
            bias=bias,
            bidirectional=bidirectional,
        )
        self.genotype = load_genotype(genotype)
        self.described_cells = str(self.genotype)
        self.cells = CellBatch.from_genotypes([self.genotype] * self.directions)
        self._make_parameters(device, dtype)

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a layer's parameters in one direction."""
        hidden = self.hidden_size
        weights = {
            "weight_input": (self._inputs(layer), self.width),
            "weight_hidden": (hidden, self.width),
            "weight_nodes": (self.genotype.nodes, hidden, self.width),
        }
        return {**weights, "bias_input": (self.width,), "bias_hidden": (self.width,)} if self.bias else weights

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
        output, h = self._called(x, h0)
        assert isinstance(h, Tensor)  # a cell carries one state
        return output, h

    def _run_layer(
        self, layer: int, x: Tensor, states: list[Tensor], lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        pre = self._project(layer, locked_dropout(self, x, self.dropout_x))
        mask_h = draw_mask(self, x, self.dropout_h, self.hidden_size)
        output = reverse_second(self._recur(layer, reverse_second(pre, lengths), states[0], mask_h), lengths)
        return output, [output]

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

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, {self.genotype}, form={self.form}"
        defaults = {"num_layers": 1, "batch_first": False, "dropout": 0.0, "bias": False, "bidirectional": False}
        return text + self._described_options(defaults)


def _refuse_options_of_others(nonlinearity: object, proj_size: object) -> None:
    if nonlinearity is not None:
        raise WenetError("a cell has no nonlinearity of its own; the genotype names an activation for each node")
    if proj_size != 0:
        raise WenetError("a cell has no proj_size; put a torch.nn.Linear behind it")
