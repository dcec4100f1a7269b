"""Recurrent layers made of searched cells, and the language model around them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, SupportsFloat, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from wenet.description import Description
from wenet.genotype import Genotype
from wenet.loss import decoder_cross_entropy
from wenet.scanned import scanned
from wenet_kernels import COUPLINGS, FORMS, PRECISIONS, CellBatch, Norm, WenetError, check_choice, dag_rnn, project

MIXTURE_ROWS = 1024  # of scores over the vocabulary that a mixture of softmaxes holds at once
FORMER_BUFFERS = ("running_mean", "running_var", "running_scale")  # in checkpoints of older runs; no longer used


class LayerOfCells(nn.Module):
    """A layer whose state dict says of which cells its weights are, and which refuses those of others.

    What it says is a tensor of bytes, so that every kind of file holds it. It is compared before any weight is copied;
    a state dict without it, of an earlier version, is taken as it is.
    """

    form: str
    described_cells: str  # as text, with semicolons between them

    def get_extra_state(self) -> Tensor:
        return Description(self.described_cells, self.form).to_tensor()

    def set_extra_state(self, state: Tensor) -> None:
        """Does nothing: it was compared before the weights were loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        found = state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        own = Description(self.described_cells, self.form)
        own.check_same(Description.from_tensor(found), prefix.rstrip(".") or "this layer")
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class DagRNN(LayerOfCells):
    """One cell over a sequence (paper eqs. 1-3), a drop-in for `torch.nn.RNN`.

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state and of the output, H.
        genotype: the cell, the same in every layer.
        form: "highway" (every node gated) or "plain" (the equations as printed).
        dropout_x, dropout_h: probability of variational dropout on the inputs of the products with a layer's input and
            with every state; one draw per call, shared over time and over directions.
        backend: "auto" or a name from `wenet_kernels.backends()`.
        precision: of the recurrence's products, as in `wenet_kernels.dag_rnn`.
        num_layers: layers above one another, each reading the output of the one below.
        batch_first: input and output are `[M, T, features]` instead of `[T, M, features]`; states stay as they are.
        dropout: probability of dropout on the output of every layer but the last, drawn anew for each step.
        device, dtype: of the parameters.
        bias: adds two biases, as `torch.nn.RNN` does by default, to the input times its weights. In the plain form that
            product is the gate of the init node alone, and so the biases are.
        bidirectional: runs a second network of the same cell over the sequence from its end, as `torch.nn.RNN` does.
            D below is 2 with it, else 1.
        nonlinearity, proj_size: options of `torch.nn.RNN` and `torch.nn.LSTM` that a cell does not have; naming one is
            an error that says what to do.

    Parameters: weight_input `[I, G]`, weight_hidden `[H, G]`, weight_nodes `[L, H, G]`; G is 2H (highway) or H (plain).
    With `bias` also bias_input and bias_hidden, `[G]`. Those of a layer k = 1, 2 ... above the first end in `_lk`, and
    its weight_input is `[D * H, G]`; those of the other direction end in `_reverse`. A state dict also says of which
    cell its weights are, and is refused by a layer of another.

    Raises:
        WenetError: a size or number of layers below 1, a probability outside 0..1, an unknown form or backend, a cell
            that is no `Genotype`, or an option that a cell does not have.

    Example:
        >>> rnn = DagRNN(5, 8, load_genotype("darts-v2"), num_layers=2, bidirectional=True)
        >>> output, h = rnn(torch.randn(6, 4, 5))  # [6, 4, 16], [4, 4, 8]
    """

    weight_input: Tensor  # of the first layer, forward

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        genotype: Genotype,
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
        super().__init__()
        _refuse_options_of_others(nonlinearity, proj_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.genotype, self.form, self.backend = genotype, form, backend
        self.dropout_x, self.dropout_h, self.precision = dropout_x, dropout_h, precision
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, dropout
        self.bias, self.bidirectional = bias, bidirectional
        _check_layer(self)
        _check_genotype(genotype)
        _check_count("num_layers", num_layers)
        _check_probability("dropout", dropout)
        self.described_cells = str(genotype)
        self.cells = CellBatch.from_genotypes([genotype] * self.directions)
        for layer in range(num_layers):
            for direction in range(self.directions):
                for name, shape in self._shapes(layer).items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(_parameter_name(name, layer, direction), parameter)
        self.reset_parameters()

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Of a layer's parameters in one direction."""
        hidden, below = self.hidden_size, self.hidden_size * self.directions if layer else self.input_size
        width = 2 * hidden if self.form == "highway" else hidden
        weights = {
            "weight_input": (below, width),
            "weight_hidden": (hidden, width),
            "weight_nodes": (self.genotype.nodes, hidden, width),
        }
        return {**weights, "bias_input": (width,), "bias_hidden": (width,)} if self.bias else weights

    def reset_parameters(self, bound: float | None = None) -> None:
        """U(-bound, bound), by default 1 / sqrt(H) as in `torch.nn.RNN`."""
        bound = self.hidden_size**-0.5 if bound is None else bound
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing, for there is nothing to flatten; code around `torch.nn.RNN` calls it."""

    def forward(self, x: Tensor | PackedSequence, h0: Tensor | None = None) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`, with `batch_first` `[M, T, I]`, `[T, I]` for a single sequence, or a packed sequence. The
                latter is run with its padding; what is there reaches neither output nor states nor gradients. M may
                be 0, T may not.
            h0: `[num_layers * D, M, H]`, or `[num_layers * D, H]` for a single sequence; zeros by default. Of a layer
                in two directions the forward one comes first.

        Returns:
            output, as `x` but with D * H features, of the last layer: those of the forward direction come first. And
            the last state of every layer and direction, as `h0`; of the reverse one that is its state at the first
            step.

        Raises:
            WenetError: shapes that disagree, no time steps, or NaN in the input.
        """
        if not torch.jit.is_tracing():
            return self._evaluate(x, h0)
        if torch.onnx.is_in_onnx_export():
            raise WenetError("the old ONNX exporter knows no loop over time; call torch.onnx.export with dynamo=True")
        with warnings.catch_warnings():  # of checks, which see the sizes of the example; the trace itself takes others
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return self._evaluate(x, h0)

    def __prepare_scriptable__(self) -> None:
        _refuse_script(self)

    def _evaluate(self, x: Tensor | PackedSequence, h0: Tensor | None) -> tuple[Tensor | PackedSequence, Tensor]:
        if isinstance(x, PackedSequence):
            return self._run_packed(x, h0)
        _check_tensor("the input", x, self.weight_input)
        if x.dim() == 2:
            _check_input(self, x.unsqueeze(1))
            output, h = self._run(x.unsqueeze(1), h0 if h0 is None else self._checked(h0, ()).unsqueeze(1))
            return output.squeeze(1), h.squeeze(1)
        _check_input(self, x, time=1 if self.batch_first else 0)
        output, h = self._run(x.transpose(0, 1) if self.batch_first else x, h0)
        return output.transpose(0, 1) if self.batch_first else output, h

    def _run_packed(self, x: PackedSequence, h0: Tensor | None) -> tuple[PackedSequence, Tensor]:
        """The rows of a packed sequence are ordered by length; states outside have the caller's order."""
        _check_tensor("the input", x.data, self.weight_input)
        padded, lengths = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes))  # [T, M, I], [M]
        _check_input(self, padded)
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
            lengths: `[M]`, of the sequences, where they differ.
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
        """Output `[T, D, M, H]` of a layer that starts in the states `[D, M, H]`."""
        pre = self._project(layer, _locked_dropout(self, x, self.dropout_x))
        mask_h = _mask(self, x, self.dropout_h, self.hidden_size)
        output = self._recur(layer, _reverse_second(pre, lengths), h, mask_h)
        return _reverse_second(output, lengths)

    def _project(self, layer: int, x: Tensor) -> Tensor:
        """The input through the weights of every direction, and biases: `[T, D, M, G]`."""
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
        """The output of both directions, `[T, D, M, H]`, as networks of one call that have nothing in common."""
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
        """A parameter of a layer in every direction, `[D, ...]`."""
        each = [getattr(self, _parameter_name(name, layer, direction)) for direction in range(self.directions)]
        return torch.stack(each) if self.bidirectional else each[0].unsqueeze(0)

    def _checked(self, h0: Tensor, rows: tuple[int, ...]) -> Tensor:
        _check_state(h0, (self.num_layers * self.directions, *rows, self.hidden_size), self.weight_input)
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


def _reverse_second(sequences: Tensor, lengths: Tensor | None) -> Tensor:
    """`[T, D, M, features]` with the second direction, where there is one, from the end of every row to its start.

    Args:
        lengths: `[M]`, of the rows; what is behind a row's end stays where it is.
    """
    if sequences.shape[1] == 1:
        return sequences
    first, second = sequences.unbind(1)
    if lengths is None:
        return torch.stack([first, second.flip(0)], 1)
    step = torch.arange(len(second)).unsqueeze(1)
    source = torch.where(step < lengths, lengths - 1 - step, step)  # [T, M]
    return torch.stack([first, second[source, torch.arange(len(lengths))]], 1)


def _last_states(output: Tensor, lengths: Tensor | None) -> Tensor:
    """`[D, M, H]`, of the output `[T, D, M, H]`: at the end of every row, and in the second direction at its start."""
    end = output[-1] if lengths is None else output[lengths - 1, :, torch.arange(len(lengths))].transpose(0, 1)
    return torch.cat([end[:1], output[0, 1:]])


class WeightedDagRNN(LayerOfCells):
    """`n` different cells over one sequence, their outputs mixed by learned softmax weights (eq. 4).

    Args:
        input_size, hidden_size, form, dropout_x, dropout_h, backend, precision: as in
            `DagRNN`.
        genotypes: the cells, all of the same number of nodes L.
        coupling: "weighted" (one hidden state, the mixture) or "independent" (n models side by side, nothing mixed).
        norm: "batch" normalises every state of every step over the rows of the data batch, in evaluation too; None
            does not.
        shared_weights: all networks have the same weights for the node of the same number, and of the input and state;
            the parameters below then have a leading 1.
        mix_dropout: probability that a network is left out of the mixture, whose other weights then still sum to one;
            one draw per call, which leaves at least one.
        among: the networks are this part of so many, and start from the weights that they have where all are drawn.

    Parameters: weight_input `[n, I, G]`, weight_hidden `[n, H, G]`, weight_nodes `[n, L, H, G]`, and with weighted
    coupling mix_logits `[n]`, zero at first.

    Raises:
        WenetError: as in `DagRNN`; no cells, or cells of different numbers of nodes; mix_dropout with independent
            coupling.
    """

    all_ranks = False  # whether other processes have networks of the mixture too

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        genotypes: Sequence[Genotype],
        form: str = "highway",
        coupling: str = "weighted",
        norm: str | None = None,
        dropout_x: float = 0.0,
        dropout_h: float = 0.0,
        backend: str = "auto",
        precision: str = "full",
        mix_dropout: float = 0.0,
        shared_weights: bool = False,
        among: tuple[int, slice] | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.among = input_size, hidden_size, among
        self.form, self.coupling, self.backend = form, coupling, backend
        self.norm: Norm = "batch" if norm == "batch" else None
        self.dropout_x, self.dropout_h, self.precision = dropout_x, dropout_h, precision
        _check_layer(self)
        check_choice("coupling", coupling, COUPLINGS)
        check_choice("norm", norm or "none", ("batch", "none"))
        _check_probability("mix_dropout", mix_dropout)
        if coupling == "independent" and mix_dropout:
            raise WenetError("mix_dropout is of a mixture; coupling='independent' has none")
        self.mix_dropout = mix_dropout
        _check_genotype(*genotypes)
        self.described_cells = "; ".join(map(str, genotypes))
        self.cells = CellBatch.from_genotypes(genotypes)
        count, nodes = self.cells.count, self.cells.nodes
        width = 2 * hidden_size if form == "highway" else hidden_size
        sets = 1 if shared_weights else count
        self.weight_input = nn.Parameter(torch.empty(sets, input_size, width))
        self.weight_hidden = nn.Parameter(torch.empty(sets, hidden_size, width))
        self.weight_nodes = nn.Parameter(torch.empty(sets, nodes, hidden_size, width))
        self.mix_logits = nn.Parameter(torch.zeros(count)) if coupling == "weighted" else None
        self.register_load_state_dict_pre_hook(_leave_former_buffers)
        self.reset_parameters()

    def reset_parameters(self, bound: float | None = None) -> None:
        """Weights U(-bound, bound), by default 1 / sqrt(H) as in `torch.nn.RNN`; equal mixing weights."""
        bound = self.hidden_size**-0.5 if bound is None else bound
        for parameter in (self.weight_input, self.weight_hidden, self.weight_nodes):
            _draw_networks(parameter, bound, self.among)
        if self.mix_logits is not None:
            nn.init.zeros_(self.mix_logits)

    def __prepare_scriptable__(self) -> None:
        _refuse_script(self)

    def mixing_weights(self) -> Tensor | None:
        """`softmax(mix_logits)`, `[n]`; None with independent coupling."""
        return None if self.mix_logits is None else torch.softmax(self.mix_logits, dim=0)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`, shared by all networks; with independent coupling also `[n, T, M, I]`, one for each.
            h0: `[1, M, H]`, or `[n, M, H]` with independent coupling; zeros by default.

        Returns:
            output `[T, M, H]` and the last state `[1, M, H]`; with independent coupling `[T, n, M, H]` and `[n, M, H]`.

        Raises:
            WenetError: shapes that disagree, or NaN in the input.
        """
        _check_tensor("the input", x, self.weight_input)
        _check_input(self, x[0] if self._one_input_each(x) else x)
        rows, weighted = x.shape[-2], self.coupling == "weighted"
        states = 1 if weighted else self.cells.count
        h = x.new_zeros(states, rows, self.hidden_size) if h0 is None else h0
        _check_state(h, (states, rows, self.hidden_size), self.weight_input)
        masked = _locked_dropout(self, x, self.dropout_x)
        mask_h = _mask(self, x, self.dropout_h, self.hidden_size)
        result = dag_rnn(
            self._project(masked),
            h[0] if weighted else h,
            self._of_all(self.weight_hidden),
            self._of_all(self.weight_nodes),
            self._mix(),
            self.cells,
            form=self.form,
            mask_h=mask_h,
            norm=self.norm,
            coupling=self.coupling,
            precision=self.precision,
            all_ranks=self.all_ranks,
            backend=self.backend,
        )
        output = result[0] if isinstance(result, tuple) else result
        return output, output[-1:] if weighted else output[-1]

    @torch.no_grad()
    def own_outputs(self, x: Tensor, states: Tensor) -> Tensor:
        """What each network by itself makes of every step, `[n, T, M, H]`, without dropout.

        Normalised over a batch, every step is a call of its own, as in the mixture; else all steps are one.

        Args:
            x: `[T, M, I]`.
            states: `[T, M, H]`, of the mixture before each step.
        """
        if self.norm is not None:
            return torch.stack([self._one_step(*step) for step in zip(x, states, strict=True)], dim=1)
        steps, rows = x.shape[:2]
        return self._one_step(x.flatten(0, 1), states.flatten(0, 1)).unflatten(1, (steps, rows))

    def _one_step(self, x: Tensor, states: Tensor) -> Tensor:
        """Outputs `[n, M, H]` of every network for `[M, I]`, from states `[M, H]` that all of them read."""
        result = dag_rnn(
            self._project(x.unsqueeze(0)),
            states.expand(self.cells.count, -1, -1).contiguous(),
            self._of_all(self.weight_hidden),
            self._of_all(self.weight_nodes),
            None,
            self.cells,
            form=self.form,
            norm=self.norm,
            coupling="independent",
            precision=self.precision,
            backend=self.backend,
        )
        output = result[0] if isinstance(result, tuple) else result
        return output.squeeze(0)

    def _mix(self) -> Tensor | None:
        """What the networks enter the mixture with, `[n]`; None with independent coupling."""
        weights = self.mixing_weights()
        if weights is None:
            return None
        if self.training and self.mix_dropout > 0:
            kept = torch.rand_like(weights) >= self.mix_dropout
            weights = weights * (kept | ~kept.any())
            weights = weights / weights.sum()
        return weights

    def _project(self, masked: Tensor) -> Tensor:
        """The masked input through every network's weights, `[T, n, M, G]`."""
        if masked.dim() == 3:
            return project(masked, self._of_all(self.weight_input), backend=self.backend)
        own = masked.flatten(1, 2) @ self._of_all(self.weight_input)  # [n, T*M, G]
        return own.unflatten(1, masked.shape[1:3]).transpose(0, 1)

    def _of_all(self, weights: Tensor) -> Tensor:
        """Those of every network, `[n, ...]`, from one set for each or for all."""
        return weights.expand(self.cells.count, *weights.shape[1:])

    def _one_input_each(self, x: Tensor) -> bool:
        return self.coupling == "independent" and x.dim() == 4 and len(x) == self.cells.count

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}, networks={self.cells.count}, form={self.form}"
        return f"{sizes}, coupling={self.coupling}, norm={self.norm}"


class StackedLSTM(nn.Module):
    """LSTM layers with dropped hidden weights (Merity et al. 2017), called like `DagRNN`.

    Args:
        input_size: features of the input, I.
        hidden_sizes: features of each layer's state; the output has as many as the last, H.
        skip: add up the outputs of all layers, which then have one size (Melis et al. 2018).
        dropout_x: on what one layer hands to the next, one draw per call, shared over time.
        dropout_h: on the weights between hidden states, one draw per call.

    The state of all layers is one tensor `[1, M, S]`, S twice the sum of `hidden_sizes`: h and c of each in turn.

    Raises:
        WenetError: no layers, a size below 1, sizes that cannot be added up, a probability outside 0..1.
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
            raise WenetError(f"the outputs of layers are added up, so their sizes must be equal, not {sizes[1:]}")
        _check_probability("dropout_x", dropout_x)
        _check_probability("dropout_h", dropout_h)
        self.input_size, self.hidden_size = input_size, sizes[-1]
        self.skip, self.dropout_x, self.dropout_h = skip, dropout_x, dropout_h
        self.state_sizes = [size for size in sizes[1:] for _ in ("h", "c")]
        self.layers = nn.ModuleList(nn.LSTM(below, size) for below, size in pairwise(sizes))

    def reset_parameters(self, bound: float | None = None) -> None:
        """As `torch.nn.LSTM` does, whatever the bound of the embedding around it."""
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
            below = _locked_dropout(self, output, self.dropout_x) if outputs else output
            output, h, c = self._run(layer, below, h, c)
            outputs.append(output)
            last += [h, c]
        return torch.stack(outputs).sum(0) if self.skip else output, torch.cat(last, -1)

    def _run(self, layer: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One layer; not by calling it, as it would go on using the weights that it was made with."""
        assert isinstance(layer, nn.LSTM)
        [[from_input, from_hidden, *biases]] = layer.all_weights
        weights = [from_input, functional.dropout(from_hidden, self.dropout_h, self.training), *biases]
        # Nothing is dropped within, so "training" only lets gradients be had in evaluation too.
        return torch.lstm(x, (h.contiguous(), c.contiguous()), weights, True, 1, 0.0, True, False, False)


class MixtureOfSoftmaxes(nn.Module):
    """Several softmaxes over the vocabulary, mixed by weights that depend on the context (Yang et al. 2018).

    Args:
        hidden_size: features of what is decoded, H.
        embedding_size: features of a word, d.
        experts: softmaxes, K.
        dropout: on the context of every expert, one draw per call, shared over time.
    """

    def __init__(self, hidden_size: int, embedding_size: int, experts: int, dropout: float = 0.0) -> None:
        super().__init__()
        _check_probability("dropout", dropout)
        self.experts, self.dropout = experts, dropout
        self.prior = nn.Linear(hidden_size, experts, bias=False)
        self.context = nn.Linear(hidden_size, experts * embedding_size)

    def forward(self, features: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        """Log-probabilities `[T, M, V]` after features `[T, M, H]`, with word vectors `[V, d]` and a bias `[V]`."""
        log_prior, contexts = self._experts(features)
        log_softmax = functional.log_softmax(functional.linear(contexts, words, bias), -1)  # [T, M, K, V]
        return torch.logsumexp(log_prior.unsqueeze(-1) + log_softmax, -2)

    def cross_entropy(self, features: Tensor, targets: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        """Mean nats of the targets `[T, M]`, without ever holding the scores of all positions at once."""
        log_prior, contexts = self._experts(features)
        positions = max(1, MIXTURE_ROWS // self.experts)
        parts = zip(
            log_prior.flatten(0, 1).split(positions),
            contexts.flatten(0, 1).split(positions),
            targets.flatten().split(positions),
            strict=True,
        )
        nats = [
            checkpoint(_mixture_nats, *part, words, bias, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
        return torch.stack(nats).sum() / targets.numel()

    def _experts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the weights `[T, M, K]` and the contexts `[T, M, K, d]`."""
        contexts = _locked_dropout(self, torch.tanh(self.context(features)), self.dropout)
        return functional.log_softmax(self.prior(features), -1), contexts.unflatten(-1, (self.experts, -1))


def _mixture_nats(log_prior: Tensor, contexts: Tensor, targets: Tensor, words: Tensor, bias: Tensor) -> Tensor:
    """Nats of N targets, summed, given the experts' log weights `[N, K]` and contexts `[N, K, d]`."""
    count, experts = log_prior.shape
    scores = functional.linear(contexts.flatten(0, 1), words, bias)  # [N*K, V]
    each = functional.cross_entropy(scores, targets.repeat_interleave(experts), reduction="none")
    return -torch.logsumexp(log_prior - each.view(count, experts), -1).sum()


class LanguageModel(nn.Module):
    """Next-word prediction: embedding, a recurrent layer, and a decoder that shares the embedding's weights.

    Args:
        vocabulary_size: V.
        rnn: the recurrent layer; its input size is the embedding's, d, and so is its hidden size without a mixture.
        dropout_embedding: on embedded words, one draw per call, shared over time.
        dropout_output: on the layer's output before the decoder, likewise.
        dropout_word: on whole rows of the embedding, one draw per call: a word dropped is zero wherever it is read.
        init_range: the embedding and the weights of a layer of cells start as U(-init_range, init_range) (0.04 in the
            paper's bases), the bias at zero.
        mixture: decodes in place of a single softmax.

    Raises:
        WenetError: the layer's input and hidden size differ without a mixture, or a probability outside 0..1.
    """

    def __init__(
        self,
        vocabulary_size: int,
        rnn: DagRNN | WeightedDagRNN | StackedLSTM,
        dropout_embedding: float = 0.0,
        dropout_output: float = 0.0,
        init_range: float = 0.04,
        dropout_word: float = 0.0,
        mixture: MixtureOfSoftmaxes | None = None,
    ) -> None:
        super().__init__()
        if mixture is None:
            _check_tied(rnn)
        _check_probability("dropout_embedding", dropout_embedding)
        _check_probability("dropout_output", dropout_output)
        _check_probability("dropout_word", dropout_word)
        self.dropout_embedding, self.dropout_output = dropout_embedding, dropout_output
        self.dropout_word = dropout_word
        self.embedding = nn.Embedding(vocabulary_size, rnn.input_size)
        self.rnn = rnn
        self.mixture = mixture
        self.decoder_bias = nn.Parameter(torch.zeros(vocabulary_size))
        nn.init.uniform_(self.embedding.weight, -init_range, init_range)
        rnn.reset_parameters(init_range)

    def forward(self, tokens: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits `[T, M, V]`, or log-probabilities with a mixture, of what follows tokens `[T, M]`, and the state."""
        output, h = self._recur(tokens, h0)
        return self._decode(_locked_dropout(self, output, self.dropout_output)), h

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        h0: Tensor | None = None,
        activation_reg: float = 0.0,
        temporal_activation_reg: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What training minimises, the cross-entropy in nats per token within it, and the last state `[1, M, d]`.

        The regularisers are those of Merity et al. 2017.

        Args:
            tokens, targets: `[T, M]`, the targets one step ahead.
            h0: `[1, M, d]`; zeros by default.
        """
        raw, h = self._recur(tokens, h0)
        dropped = _locked_dropout(self, raw, self.dropout_output)
        cross_entropy = self._cross_entropy(dropped, targets)
        loss = _regularised(cross_entropy, raw, dropped, activation_reg, temporal_activation_reg)
        return loss, cross_entropy.detach(), h

    @torch.no_grad()
    def network_losses(self, tokens: Tensor, targets: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Nats per token of each network by its own output, `[n]`, and the last state of the mixture, `[1, M, d]`.

        At every step a network reads the state that the mixture has left, as it does in training. Without dropout: the
        model must be in evaluation.

        Args:
            tokens, targets, h0: as in `loss`.
        """
        assert isinstance(self.rnn, WeightedDagRNN)
        embedded = self._embed(tokens)
        mixed, h = self.rnn(embedded, h0)
        before = torch.cat([torch.zeros_like(h) if h0 is None else h0, mixed[:-1]])
        own = self.rnn.own_outputs(embedded, before)  # [n, T, M, d]
        return torch.stack([self._cross_entropy(output, targets) for output in own]), h

    def log_probabilities(self, features: Tensor) -> Tensor:
        """`[T, M, V]` of the words that follow, from the recurrent layer's output `[T, M, H]`."""
        return functional.log_softmax(self._decode(features), -1)

    def _recur(self, tokens: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        embedded = _locked_dropout(self, self._embed(tokens), self.dropout_embedding)  # [T, M, d]
        return self.rnn(embedded, h0)

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(tokens)
        return _word_dropout(self, embedded, tokens, self.embedding.num_embeddings)

    def _cross_entropy(self, features: Tensor, targets: Tensor) -> Tensor:
        if self.mixture is not None:
            return self.mixture.cross_entropy(features, targets, self.embedding.weight, self.decoder_bias)
        weight, bias = self.embedding.weight, self.decoder_bias
        return decoder_cross_entropy(features.flatten(0, 1), weight, bias, targets.flatten())

    def _decode(self, features: Tensor) -> Tensor:
        if self.mixture is not None:
            scores: Tensor = self.mixture(features, self.embedding.weight, self.decoder_bias)
            return scores
        return functional.linear(features, self.embedding.weight, self.decoder_bias)


class IndependentLanguageModels(nn.Module):
    """`n` standalone language models that differ in their cells, each with a tied decoder, evaluated at once.

    All read the same text with the same dropout masks, so that they differ in nothing but cells and initial weights.

    Args:
        vocabulary_size: V.
        rnn: independent `WeightedDagRNN` whose input and hidden size are both d.
        dropout_embedding, dropout_output, init_range, dropout_word: as in `LanguageModel`.

    Parameters: embedding `[n, V, d]`; decoder_bias `[n, V]`; those of `rnn`; each has a leading n.

    Raises:
        WenetError: as in `LanguageModel`; a weighted `rnn`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        rnn: WeightedDagRNN,
        dropout_embedding: float = 0.0,
        dropout_output: float = 0.0,
        init_range: float = 0.04,
        dropout_word: float = 0.0,
    ) -> None:
        super().__init__()
        if rnn.coupling != "independent":
            raise WenetError("standalone language models need a layer with coupling='independent'")
        _check_tied(rnn)
        _check_probability("dropout_embedding", dropout_embedding)
        _check_probability("dropout_output", dropout_output)
        _check_probability("dropout_word", dropout_word)
        self.dropout_embedding, self.dropout_output = dropout_embedding, dropout_output
        self.dropout_word = dropout_word
        self.rnn = rnn
        count = rnn.cells.count
        self.embedding = nn.Parameter(torch.empty(count, vocabulary_size, rnn.input_size))
        self.decoder_bias = nn.Parameter(torch.zeros(count, vocabulary_size))
        _draw_networks(self.embedding, init_range, rnn.among)
        rnn.reset_parameters(init_range)

    @property
    def count(self) -> int:
        return self.rnn.cells.count

    def largest_weights(self) -> Tensor:
        """The largest absolute value among each network's parameters, `[n]`."""
        norm = torch.linalg.vector_norm
        return torch.stack([norm(p.detach().flatten(1), torch.inf, dim=1) for p in self.parameters()]).amax(0)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        h0: Tensor | None = None,
        activation_reg: float = 0.0,
        temporal_activation_reg: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum over networks of what each one's training minimises, their cross-entropies `[n]` in nats per token,
        and the last states `[n, M, d]`. The regularisers are those of `LanguageModel.loss`.

        A state that is not finite, as its network's cross-entropy then is neither, is handed on as zero: the operator
        would refuse it, and with it the networks that are sound.

        Args:
            tokens, targets: `[T, M]`, the targets one step ahead.
            h0: `[n, M, d]`; zeros by default.
        """
        embedded = _locked_dropout(self, self._embed(tokens), self.dropout_embedding)  # [n, T, M, d]
        raw, h = self.rnn(embedded, h0)  # [T, n, M, d]
        dropped = _locked_dropout(self, raw, self.dropout_output)
        features = dropped.transpose(0, 1).flatten(1, 2)  # [n, T*M, d]
        cross_entropy = self._cross_entropy(features, targets.flatten())
        regularisers = (self.count * weight for weight in (activation_reg, temporal_activation_reg))
        loss = _regularised(cross_entropy.sum(), raw, dropped, *regularisers)
        return loss, cross_entropy.detach(), h.nan_to_num(0.0, 0.0, 0.0)

    def _embed(self, tokens: Tensor) -> Tensor:
        """`[n, T, M, d]`."""
        words = self.embedding.shape[1]
        offsets = torch.arange(self.count, device=tokens.device) * words
        embedded = functional.embedding(tokens + offsets[:, None, None], self.embedding.flatten(0, 1))
        return _word_dropout(self, embedded, tokens, words)

    def _cross_entropy(self, features: Tensor, targets: Tensor) -> Tensor:
        """Of every network, `[n]`, one after the other: a product with a whole vocabulary fills the processor alone."""
        operands = zip(features.unbind(), self.embedding.unbind(), self.decoder_bias.unbind(), strict=True)
        return torch.stack([decoder_cross_entropy(*each, targets) for each in operands])


def _leave_former_buffers(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Drop from a state that is about to be loaded what layers no longer hold."""
    for name in FORMER_BUFFERS:
        state.pop(prefix + name, None)


def draw_rows(model: nn.Module, rows: int, own: slice) -> None:
    """From now on draw dropout for so many rows of a data batch and use that of the rows `own`, which are all that the
    model is then called with: so the models of several processes, each with a part of a batch, draw alike."""
    for module in model.modules():
        module.rows_drawn = (rows, own)  # type: ignore[assignment]


def _mask(module: nn.Module, x: Tensor, probability: float, features: int) -> Tensor | None:
    """A draw of variational dropout, `[M, features]`, shared over time; None outside training."""
    if not module.training or probability == 0:
        return None
    rows, own = getattr(module, "rows_drawn", (x.shape[-2], slice(None)))
    return functional.dropout(x.new_ones(rows, features), probability)[own]


def _word_dropout(
    module: LanguageModel | IndependentLanguageModels, embedded: Tensor, tokens: Tensor, words: int
) -> Tensor:
    """Embedded tokens, `[..., T, M, d]` of `[T, M]`, those of some words zero, one draw of words per call."""
    if not module.training or module.dropout_word == 0:
        return embedded
    kept = functional.dropout(embedded.new_ones(words), module.dropout_word)  # [V]
    return embedded * kept[tokens].unsqueeze(-1)


def _locked_dropout(module: nn.Module, x: Tensor, probability: float) -> Tensor:
    """Variational dropout of `[T, M, features]`; of `[n, T, M, features]` or `[T, n, M, features]` alike for all n."""
    mask = _mask(module, x, probability, x.shape[-1])
    return x if mask is None else x * mask


def _regularised(
    cross_entropy: Tensor, raw: Tensor, dropped: Tensor, activation_reg: float, temporal_activation_reg: float
) -> Tensor:
    """The cross-entropy and the regularisers of Merity et al. 2017: mean square of the dropped output, and of the raw
    output's change from one step to the next; both outputs have time in front."""
    loss = cross_entropy
    if activation_reg:
        loss = loss + activation_reg * dropped.square().mean()
    if temporal_activation_reg and len(raw) > 1:
        loss = loss + temporal_activation_reg * raw.diff(dim=0).square().mean()
    return loss


def _refuse_script(layer: DagRNN | WeightedDagRNN) -> None:
    """What torch.jit.script calls first."""
    raise WenetError(f"torch.jit.script cannot read a {type(layer).__name__}; use torch.jit.trace, or torch.export")


def _check_tied(rnn: DagRNN | WeightedDagRNN | StackedLSTM) -> None:
    if rnn.input_size != rnn.hidden_size:
        raise WenetError(f"tied embeddings need input_size == hidden_size, not {rnn.input_size}, {rnn.hidden_size}")


def _refuse_options_of_others(nonlinearity: object, proj_size: object) -> None:
    if nonlinearity is not None:
        raise WenetError("a cell has no nonlinearity of its own; its nodes have theirs, which the genotype names")
    if proj_size != 0:
        raise WenetError("a cell has no proj_size; put a torch.nn.Linear behind it")


def _check_layer(layer: DagRNN | WeightedDagRNN) -> None:
    _check_count("input_size", layer.input_size)
    _check_count("hidden_size", layer.hidden_size)
    check_choice("form", layer.form, FORMS)
    check_choice("precision", layer.precision, PRECISIONS)
    _check_probability("dropout_x", layer.dropout_x)
    _check_probability("dropout_h", layer.dropout_h)


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, SupportsIndex) or value < 1:
        raise WenetError(f"{name} must be at least 1 and an integer, not {value!r}")


def _check_genotype(*genotypes: Genotype) -> None:
    for genotype in genotypes:
        if not isinstance(genotype, Genotype):
            raise WenetError(f"a cell must be a Genotype, as wenet.load_genotype('darts-v2') gives, not {genotype!r}")


@torch.no_grad()
def _draw_networks(parameter: Tensor, bound: float, among: tuple[int, slice] | None) -> None:
    """U(-bound, bound) for `[n, ...]`; of networks among others what they get where all are drawn, one by one."""
    if among is None:
        nn.init.uniform_(parameter, -bound, bound)
        return
    total, own = among
    unused = torch.empty_like(parameter[0])
    for network in range(total):
        here = own.start <= network < own.stop
        nn.init.uniform_(parameter[network - own.start] if here else unused, -bound, bound)


def _check_probability(name: str, value: float) -> None:
    if not isinstance(value, SupportsFloat) or not 0 <= value < 1:
        raise WenetError(f"{name} must lie in 0 <= p < 1, not {value!r}")


def _check_tensor(name: str, value: object, weight: Tensor) -> None:
    """Of the type and on the device of a weight, but for what autocast does with types."""
    if not isinstance(value, Tensor):
        raise WenetError(f"{name} must be a tensor, not of type {type(value).__name__}")
    same = value.dtype == weight.dtype or (value.is_floating_point() and torch.is_autocast_enabled(value.device.type))
    if not same or value.device != weight.device:
        raise WenetError(
            f"{name} is {value.dtype} on {value.device}, but the layer is {weight.dtype} on {weight.device}; "
            "move one with .to()"
        )


def _check_input(layer: DagRNN | WeightedDagRNN, x: Tensor, time: int = 0) -> None:
    """`time` is the dimension of the steps."""
    if x.dim() != 3 or x.shape[-1] != layer.input_size:
        expected = f"[{'M, T' if time else 'T, M'}, {layer.input_size}]"
        raise WenetError(f"the input must have shape {expected}, not {list(x.shape)}")
    if x.shape[time] == 0:
        raise WenetError(f"the input {list(x.shape)} has no time steps; give at least one")


def _check_state(h0: Tensor, shape: tuple[int, ...], weight: Tensor) -> None:
    if isinstance(h0, tuple):
        raise WenetError("h0 must be one tensor; a cell has no second state like the c0 of an LSTM, leave that out")
    _check_tensor("h0", h0, weight)
    if h0.shape != shape:
        raise WenetError(f"h0 must have shape {list(shape)}, not {list(h0.shape)}")
