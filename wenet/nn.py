"""Recurrent layers made of searched cells, and the language model around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from wenet.genotype import Genotype
from wenet.loss import decoder_cross_entropy
from wenet_kernels import COUPLINGS, FORMS, PRECISIONS, CellBatch, Norm, WenetError, check_choice, dag_rnn, project

NORM_MOMENTUM = 0.1  # of running statistics, as in `torch.nn.BatchNorm1d`


class DagRNN(nn.Module):
    """One cell over a sequence, called like `torch.nn.RNN` (paper eqs. 1-3).

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state and of the output, H.
        genotype: the cell.
        form: "highway" (every node gated) or "plain" (the equations as printed).
        dropout_x, dropout_h: probability of variational dropout on the inputs of the products with the input and with
            every state; one draw per call, shared over time.
        precision: of the factors of the recurrence's products: "full", "tf32" or "bf16".
        backend: "auto" or a name from `wenet_kernels.backends()`.

    Parameters: weight_input `[I, G]`, weight_hidden `[H, G]`, weight_nodes `[L, H, G]`; G is 2H (highway) or H (plain).
    There are no biases.

    Raises:
        WenetError: a size below 1, a probability outside 0..1, an unknown form, precision or backend.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        genotype: Genotype,
        form: str = "highway",
        dropout_x: float = 0.0,
        dropout_h: float = 0.0,
        precision: str = "full",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.genotype, self.form = genotype, form
        self.precision, self.backend = precision, backend
        self.dropout_x, self.dropout_h = dropout_x, dropout_h
        _check_layer(self)
        self.cells = CellBatch.from_genotypes([genotype])
        width = 2 * hidden_size if form == "highway" else hidden_size
        self.weight_input = nn.Parameter(torch.empty(input_size, width))
        self.weight_hidden = nn.Parameter(torch.empty(hidden_size, width))
        self.weight_nodes = nn.Parameter(torch.empty(genotype.nodes, hidden_size, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(-k, k) with k = 1 / sqrt(H), as `torch.nn.RNN` does."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`.
            h0: `[1, M, H]`; zeros by default.

        Returns:
            output `[T, M, H]` and the last state `[1, M, H]`.

        Raises:
            WenetError: shapes that disagree, or NaN in the input.
        """
        _check_input(self, x)
        rows = x.shape[1]
        h = x.new_zeros(1, rows, self.hidden_size) if h0 is None else h0
        mask_x = _mask(self, x, self.dropout_x, self.input_size)
        mask_h = _mask(self, x, self.dropout_h, self.hidden_size)
        masked = x if mask_x is None else x * mask_x
        output = dag_rnn(
            project(masked, self.weight_input.unsqueeze(0), backend=self.backend),
            h,
            self.weight_hidden.unsqueeze(0),
            self.weight_nodes.unsqueeze(0),
            None,
            self.cells,
            form=self.form,
            mask_h=mask_h,
            coupling="independent",
            precision=self.precision,
            backend=self.backend,
        )
        assert isinstance(output, Tensor)
        output = output.squeeze(1)
        return output, output[-1:]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, {self.genotype}, form={self.form}"


class WeightedDagRNN(nn.Module):
    """`n` different cells over one sequence, their outputs mixed by learned softmax weights (eq. 4).

    Args:
        input_size, hidden_size, form, dropout_x, dropout_h, precision, backend: as in `DagRNN`.
        genotypes: the cells, all of the same number of nodes L.
        coupling: "weighted" (one hidden state, the mixture) or "independent" (n models side by side, nothing mixed).
        norm: "batch" normalises every state over the data batch, with running statistics of momentum 0.1 for
            evaluation; None does not.

    Parameters: weight_input `[n, I, G]`, weight_hidden `[n, H, G]`, weight_nodes `[n, L, H, G]`, and with weighted
    coupling mix_logits `[n]`, zero at first.

    Raises:
        WenetError: as in `DagRNN`; no cells, or cells of different numbers of nodes.
    """

    running_mean: Tensor
    running_var: Tensor

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
        precision: str = "full",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.form, self.coupling, self.norm = form, coupling, norm
        self.precision, self.backend = precision, backend
        self.dropout_x, self.dropout_h = dropout_x, dropout_h
        _check_layer(self)
        check_choice("coupling", coupling, COUPLINGS)
        check_choice("norm", norm or "none", ("batch", "none"))
        self.cells = CellBatch.from_genotypes(genotypes)
        count, nodes = self.cells.count, self.cells.nodes
        width = 2 * hidden_size if form == "highway" else hidden_size
        self.weight_input = nn.Parameter(torch.empty(count, input_size, width))
        self.weight_hidden = nn.Parameter(torch.empty(count, hidden_size, width))
        self.weight_nodes = nn.Parameter(torch.empty(count, nodes, hidden_size, width))
        self.mix_logits = nn.Parameter(torch.zeros(count)) if coupling == "weighted" else None
        if norm == "batch":
            self.register_buffer("running_mean", torch.zeros(count, nodes + 1, hidden_size))
            self.register_buffer("running_var", torch.ones(count, nodes + 1, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights U(-k, k) with k = 1 / sqrt(H), as `torch.nn.RNN` does; equal mixing weights."""
        for parameter in (self.weight_input, self.weight_hidden, self.weight_nodes):
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)
        if self.mix_logits is not None:
            nn.init.zeros_(self.mix_logits)

    def mixing_weights(self) -> Tensor | None:
        """`softmax(mix_logits)`, `[n]`; None with independent coupling."""
        return None if self.mix_logits is None else torch.softmax(self.mix_logits, dim=0)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`, shared by all networks.
            h0: `[1, M, H]`, or `[n, M, H]` with independent coupling; zeros by default.

        Returns:
            output `[T, M, H]` and the last state `[1, M, H]`; with independent coupling `[T, n, M, H]` and `[n, M, H]`.

        Raises:
            WenetError: shapes that disagree, or NaN in the input.
        """
        _check_input(self, x)
        rows, weighted = x.shape[1], self.coupling == "weighted"
        states = 1 if weighted else self.cells.count
        h = x.new_zeros(states, rows, self.hidden_size) if h0 is None else h0
        if h.shape != (states, rows, self.hidden_size):
            raise WenetError(f"h0 must have shape {[states, rows, self.hidden_size]}, not {list(h.shape)}")
        mask_x = _mask(self, x, self.dropout_x, self.input_size)
        mask_h = _mask(self, x, self.dropout_h, self.hidden_size)
        masked = x if mask_x is None else x * mask_x
        result = dag_rnn(
            project(masked, self.weight_input, backend=self.backend),
            h[0] if weighted else h,
            self.weight_hidden,
            self.weight_nodes,
            self.mixing_weights(),
            self.cells,
            form=self.form,
            mask_h=mask_h,
            norm=self._norm(),
            coupling=self.coupling,
            precision=self.precision,
            backend=self.backend,
        )
        if isinstance(result, tuple):
            output, (mean, var) = result
            self._update_running_statistics(mean, var, rows)
        else:
            output = result
        return output, output[-1:] if weighted else output[-1]

    def _norm(self) -> Norm:
        if self.norm is None:
            return None
        if self.training:
            return "batch"
        return self.running_mean, self.running_var

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, var: Tensor, rows: int) -> None:
        """Fold T steps into the running statistics at once; the newest counts most, with the momentum."""
        steps = mean.shape[0]
        age = torch.arange(steps - 1, -1, -1, device=mean.device, dtype=mean.dtype)
        share = NORM_MOMENTUM * (1 - NORM_MOMENTUM) ** age  # [T]
        kept = (1 - NORM_MOMENTUM) ** steps
        unbiased = rows / (rows - 1)
        self.running_mean.mul_(kept).add_(torch.tensordot(share, mean, dims=1))
        self.running_var.mul_(kept).add_(torch.tensordot(share, var, dims=1), alpha=unbiased)

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}, networks={self.cells.count}, form={self.form}"
        return f"{sizes}, coupling={self.coupling}, norm={self.norm}"


class LanguageModel(nn.Module):
    """Next-word prediction: embedding, a recurrent layer, and a decoder that shares the embedding's weights.

    Args:
        vocabulary_size: V.
        rnn: `DagRNN` or weighted `WeightedDagRNN` whose input and hidden size are both d.
        dropout_embedding: on embedded words, one draw per call, shared over time.
        dropout_output: on the layer's output before the decoder, likewise.
        init_range: every weight starts as U(-init_range, init_range) (0.04 in the paper's bases), the bias at zero.

    Raises:
        WenetError: the layer's input and hidden size differ, or a probability outside 0..1.
    """

    def __init__(
        self,
        vocabulary_size: int,
        rnn: DagRNN | WeightedDagRNN,
        dropout_embedding: float = 0.0,
        dropout_output: float = 0.0,
        init_range: float = 0.04,
    ) -> None:
        super().__init__()
        if rnn.input_size != rnn.hidden_size:
            raise WenetError(f"tied embeddings need input_size == hidden_size, not {rnn.input_size}, {rnn.hidden_size}")
        _check_probability("dropout_embedding", dropout_embedding)
        _check_probability("dropout_output", dropout_output)
        self.dropout_embedding, self.dropout_output = dropout_embedding, dropout_output
        self.embedding = nn.Embedding(vocabulary_size, rnn.input_size)
        self.rnn = rnn
        self.decoder_bias = nn.Parameter(torch.zeros(vocabulary_size))
        for weight in (self.embedding.weight, rnn.weight_input, rnn.weight_hidden, rnn.weight_nodes):
            nn.init.uniform_(weight, -init_range, init_range)

    def forward(self, tokens: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits `[T, M, V]` of the words that follow tokens `[T, M]`, and the last state `[1, M, d]`."""
        output, h = self._recur(tokens, h0)
        return self._decode(self._locked_dropout(output, self.dropout_output)), h

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        h0: Tensor | None = None,
        activation_reg: float = 0.0,
        temporal_activation_reg: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What training minimises, the cross-entropy in nats per token within it, and the last state `[1, M, d]`.

        The regularisers are those of Merity et al. 2017: mean square of the dropped output, and of the raw output's
        change from one step to the next.

        Args:
            tokens, targets: `[T, M]`, the targets one step ahead.
            h0: `[1, M, d]`; zeros by default.
        """
        raw, h = self._recur(tokens, h0)
        dropped = self._locked_dropout(raw, self.dropout_output)
        cross_entropy = decoder_cross_entropy(
            dropped.flatten(0, 1), self.embedding.weight, self.decoder_bias, targets.flatten()
        )
        loss = cross_entropy
        if activation_reg:
            loss = loss + activation_reg * dropped.square().mean()
        if temporal_activation_reg and len(raw) > 1:
            loss = loss + temporal_activation_reg * raw.diff(dim=0).square().mean()
        return loss, cross_entropy.detach(), h

    def _recur(self, tokens: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        embedded = self._locked_dropout(self.embedding(tokens), self.dropout_embedding)  # [T, M, d]
        return self.rnn(embedded, h0)

    def _decode(self, features: Tensor) -> Tensor:
        return functional.linear(features, self.embedding.weight, self.decoder_bias)

    def _locked_dropout(self, x: Tensor, probability: float) -> Tensor:
        mask = _mask(self, x, probability, x.shape[-1])
        return x if mask is None else x * mask


def _mask(module: nn.Module, x: Tensor, probability: float, features: int) -> Tensor | None:
    """A draw of variational dropout, `[M, features]`, shared over time; None outside training."""
    if not module.training or probability == 0:
        return None
    return functional.dropout(x.new_ones(x.shape[1], features), probability)


def _check_layer(layer: DagRNN | WeightedDagRNN) -> None:
    if layer.input_size < 1 or layer.hidden_size < 1:
        raise WenetError(f"input_size and hidden_size must be at least 1, not {layer.input_size}, {layer.hidden_size}")
    check_choice("form", layer.form, FORMS)
    check_choice("precision", layer.precision, PRECISIONS)
    _check_probability("dropout_x", layer.dropout_x)
    _check_probability("dropout_h", layer.dropout_h)


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise WenetError(f"{name} must lie in 0 <= p < 1, not {value}")


def _check_input(layer: DagRNN | WeightedDagRNN, x: Tensor) -> None:
    if x.dim() != 3 or x.shape[-1] != layer.input_size:
        raise WenetError(f"the input must have shape [T, M, {layer.input_size}], not {list(x.shape)}")
