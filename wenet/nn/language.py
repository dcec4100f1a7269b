"""Language models around a recurrent layer: one model, or one for each network of the layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wenet.nn.cell_rnn import CellRNN
from wenet.nn.checks import check_probability
from wenet.nn.cross_entropy import decoder_cross_entropy
from wenet.nn.dropout import locked_dropout, word_dropout
from wenet.nn.lstm import StackedLSTM, StandaloneRNN
from wenet.nn.rnn import DagRNN
from wenet.nn.softmaxes import MixtureOfSoftmaxes
from wenet.nn.standalone_cells import StandaloneCellRNN
from wenet.nn.weighted import WeightedDagRNN, draw_networks
from wenet.nn.weighted_cells import WeightedCellRNN
from wenet_kernels import WenetError

# Layers that run from an input which was projected beforehand, too.
Projecting = WeightedDagRNN | WeightedCellRNN | StandaloneCellRNN | StandaloneRNN
OneLayer = DagRNN | CellRNN | WeightedDagRNN | WeightedCellRNN | StackedLSTM
Networks = WeightedDagRNN | StandaloneCellRNN | StandaloneRNN  # n of them side by side
MARGIN = 2  # tokens of a window to each word of a vocabulary that is projected as a whole: looking up costs time too


class _TokenModel(nn.Module):
    """The base of one and of many language models: dropout around a recurrent layer, and the loss."""

    rnn: OneLayer | Networks
    count = 1  # of networks

    def __init__(self, dropout_embedding: float, dropout_output: float, dropout_word: float) -> None:
        super().__init__()
        check_probability("dropout_embedding", dropout_embedding)
        check_probability("dropout_output", dropout_output)
        check_probability("dropout_word", dropout_word)
        self.dropout_embedding, self.dropout_output = dropout_embedding, dropout_output
        self.dropout_word = dropout_word

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        h0: Tensor | None = None,
        activation_reg: float = 0.0,
        temporal_activation_reg: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The training loss, its cross-entropy part in nats per token, and the last state.

        The regularisers are those of Merity et al. 2017. With n standalone models the loss is the sum of their losses,
        and their cross-entropies are `[n]`.

        Args:
            tokens, targets: `[T, M]`, the targets one step ahead.
            h0: `[1, M, d]`, or `[n, M, d]` for standalone models; zeros by default. Of cells that carry S states
                these are beside one another, S * d.
        """
        raw, h = self._recur(tokens, h0)
        dropped = locked_dropout(self, raw, self.dropout_output)
        cross_entropy = self._cross_entropy(dropped, targets)
        loss = cross_entropy.sum()
        if activation_reg:
            loss = loss + self.count * activation_reg * dropped.square().mean()
        if temporal_activation_reg and len(raw) > 1:
            loss = loss + self.count * temporal_activation_reg * raw.diff(dim=0).square().mean()
        return loss, cross_entropy.detach(), h

    def _recur(self, tokens: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer's output, time first, and its last state."""
        if isinstance(self.rnn, Projecting) and self._looks_up(self.rnn, tokens):
            return self.rnn.run(self._looked_up(self.rnn, tokens), h0)
        embedded = locked_dropout(self, self._embed(tokens), self.dropout_embedding)
        if not isinstance(self.rnn, CellRNN) or self.rnn.carried == 1:
            return self.rnn(embedded, h0)
        carried, width = self.rnn.carried, self.rnn.carried * self.rnn.hidden_size
        if h0 is not None and not (isinstance(h0, Tensor) and h0.dim() == 3 and h0.shape[-1] == width):
            raise WenetError(f"h0 must be one tensor [1, M, {width}], the cell's {carried} states beside one another")
        output, states = self.rnn(embedded, h0 if h0 is None else h0.chunk(carried, -1))
        return output, torch.cat(states, -1)

    def _looks_up(self, rnn: Projecting, tokens: Tensor) -> bool:
        """Whether the vocabulary is so small, as of characters, that projecting all of it costs less than projecting
        tokens. That is impossible where each row of the data batch drops features of its own."""
        drops_features = self.training and (self.dropout_embedding or rnn.dropout_x)
        is_small = MARGIN * self._vocabulary().shape[-2] <= tokens.numel()
        return tokens.dim() == 2 and is_small and not drops_features

    def _looked_up(self, rnn: Projecting, tokens: Tensor) -> Tensor:
        """The layer's projected input, `[T, n, M, G]`, looked up in that of the vocabulary."""
        vocabulary = self._vocabulary()
        words = torch.arange(vocabulary.shape[-2], device=tokens.device)
        kept = word_dropout(self, vocabulary, words, len(words), self.dropout_word)
        return look_up(rnn.project(kept)[0], tokens).transpose(0, 1)

    def _vocabulary(self) -> Tensor:
        """The embedding of every word as an input of one step, `[1, V, d]` or `[n, 1, V, d]`."""
        raise NotImplementedError

    def _embed(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def _cross_entropy(self, features: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError


class LanguageModel(_TokenModel):
    """Next-word prediction: embedding, a recurrent layer, and a decoder that shares the embedding's weights.

    Args:
        vocabulary_size: V.
        rnn: the recurrent layer; its input size is that of the embedding, d. Without a mixture, so is its hidden size.
            The states that a `CellRNN` carries are one tensor here, `[1, M, S * d]`, h first.
        dropout_embedding: on embedded words, one draw per call, shared over time.
        dropout_output: on the layer's output before the decoder, likewise.
        dropout_word: on whole rows of the embedding, one draw per call; a dropped word is zero wherever it occurs.
        init_range: the embedding and a layer of cells are initialised from U(-init_range, init_range), 0.04 in the
            models that the paper builds on.
        mixture: a mixture of softmaxes to decode with, in place of a single softmax.
        decoder_bias: initial value of the decoder's bias, `[V]`; zeros by default. A model that starts from the log
            frequencies of the words need not learn them first.

    Raises:
        WenetError: the layer's input and hidden size differ without a mixture, or a probability is outside 0..1.

    Examples:
        >>> import torch, wenet
        >>> rnn = wenet.nn.DagRNN(8, 8, "darts-v2")
        >>> model = wenet.nn.LanguageModel(100, rnn)
        >>> scores, h = model(torch.randint(100, (6, 2)))
        >>> scores.shape, h.shape
        (torch.Size([6, 2, 100]), torch.Size([1, 2, 8]))
    """

    def __init__(
        self,
        vocabulary_size: int,
        rnn: OneLayer,
        dropout_embedding: float = 0.0,
        dropout_output: float = 0.0,
        init_range: float = 0.04,
        dropout_word: float = 0.0,
        mixture: MixtureOfSoftmaxes | None = None,
        decoder_bias: Tensor | None = None,
    ) -> None:
        super().__init__(dropout_embedding, dropout_output, dropout_word)
        if mixture is None:
            check_tied(rnn)
        self.embedding = nn.Embedding(vocabulary_size, rnn.input_size)
        self.rnn = rnn
        self.mixture = mixture
        self.decoder_bias = _bias(vocabulary_size, decoder_bias)
        nn.init.uniform_(self.embedding.weight, -init_range, init_range)
        rnn.reset_parameters(init_range)

    def forward(self, tokens: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits `[T, M, V]` of the words after tokens `[T, M]`, and the state; with a mixture, log-probabilities."""
        output, h = self._recur(tokens, h0)
        return self._decode(locked_dropout(self, output, self.dropout_output)), h

    @torch.no_grad()
    def network_losses(self, tokens: Tensor, targets: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Nats per token of each network's own output, `[n]`, and the last state of the mixture, `[1, M, d]`.

        In each step every network reads the state of the mixture, as in training. The model must be in evaluation
        mode: there is no dropout.

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
        """Log-probabilities `[T, M, V]` of the next words, from the recurrent layer's output `[T, M, H]`."""
        return functional.log_softmax(self._decode(features), -1)

    def _vocabulary(self) -> Tensor:
        return self.embedding.weight.unsqueeze(0)

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(tokens)
        return word_dropout(self, embedded, tokens, self.embedding.num_embeddings, self.dropout_word)

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


class StandaloneLanguageModels(_TokenModel):
    """`n` standalone language models with different cells, each with its own tied decoder, evaluated at once.

    All read the same text with the same dropout masks, so they differ only in cells and initial weights.

    Args:
        vocabulary_size: V.
        rnn: a `WeightedDagRNN` with independent coupling, a `StandaloneCellRNN` or a `StandaloneRNN`, whose input and
            hidden size are both d.
        dropout_embedding, dropout_output, init_range, dropout_word, decoder_bias: as in `LanguageModel`.
        sampled_words: the training loss sums over the words of the window and so many others, drawn in each call, as
            `sample_words` has it; 0 sums over all. In evaluation mode the loss is always over all.

    Parameters: embedding `[n, V, d]`; decoder_bias `[n, V]`; the parameters of `rnn`; all have a leading n.

    Raises:
        WenetError: as in `LanguageModel`; also if `rnn` has weighted coupling.
    """

    def __init__(
        self,
        vocabulary_size: int,
        rnn: Networks,
        dropout_embedding: float = 0.0,
        dropout_output: float = 0.0,
        init_range: float = 0.04,
        dropout_word: float = 0.0,
        decoder_bias: Tensor | None = None,
        sampled_words: int = 0,
    ) -> None:
        super().__init__(dropout_embedding, dropout_output, dropout_word)
        if sampled_words < 0:
            raise WenetError(f"sampled_words must be at least 0, not {sampled_words}")
        self.sampled_words = sampled_words
        if rnn.coupling != "independent":
            raise WenetError("standalone language models need a layer with coupling='independent'")
        check_tied(rnn)
        self.rnn = rnn
        self.count = rnn.count
        self.embedding = nn.Parameter(torch.empty(self.count, vocabulary_size, rnn.input_size))
        self.decoder_bias = _bias((self.count, vocabulary_size), decoder_bias)
        draw_networks(self.embedding, init_range, rnn.among)
        rnn.reset_parameters(init_range)

    def _recur(self, tokens: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        """A state that is not finite is replaced by zero: the operator would refuse it for all networks. Its network's
        cross-entropy is not finite either, which shows the fault."""
        output, h = super()._recur(tokens, h0)
        return output, h.nan_to_num(0.0, 0.0, 0.0)

    def _vocabulary(self) -> Tensor:
        return self.embedding.unsqueeze(1)

    def _embed(self, tokens: Tensor) -> Tensor:
        """`[n, T, M, d]`."""
        return word_dropout(self, look_up(self.embedding, tokens), tokens, self.embedding.shape[1], self.dropout_word)

    def _cross_entropy(self, features: Tensor, targets: Tensor) -> Tensor:
        """Each network's, `[n]`, one after the other: one product with a whole vocabulary fills the processor."""
        each = [own.flatten(0, 1) for own in features.unbind(1)]  # n of [T*M, d]
        weight: Tensor = self.embedding
        bias: Tensor = self.decoder_bias
        targets = targets.flatten()
        if self.training and self.sampled_words:
            words, correction, targets = sample_words(targets, weight.shape[1], self.sampled_words)
            weight, bias = weight.index_select(1, words), bias.index_select(1, words) + correction.to(bias.dtype)
        operands = zip(each, weight.unbind(), bias.unbind(), strict=True)
        return torch.stack([decoder_cross_entropy(*network, targets) for network in operands])


def look_up(rows: Tensor, tokens: Tensor) -> Tensor:
    """The rows of tokens `[T, M]` in each network's `[n, V, d]`: `[n, T, M, d]`."""
    offsets = torch.arange(len(rows), device=tokens.device) * rows.shape[1]
    return functional.embedding(tokens + offsets[:, None, None], rows.flatten(0, 1))


def sample_words(targets: Tensor, vocabulary_size: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Words for a softmax in place of the whole vocabulary: the targets, and `count` others at equal chance.

    A word drawn stands for the others too: divided by the chance of being drawn, its term makes the softmax's sum right
    in the mean. A softmax over all words differs least where the targets are what is likely, as in a text they are.

    Args:
        targets: `[N]`.

    Returns:
        The words, `[words]`; the log of one over each word's chance, to be added to its logit, `[words]`; the targets
        by their place among the words, `[N]`.

    Examples:
        >>> import torch
        >>> words, correction, places = sample_words(torch.tensor([7, 2, 7]), vocabulary_size=10, count=4)
        >>> words[:2], places, f"{correction[-1]:.3f}"
        (tensor([2, 7]), tensor([1, 0, 1]), '0.693')
    """
    needed, places = targets.unique(return_inverse=True)
    others = torch.ones(vocabulary_size, dtype=torch.bool, device=targets.device)
    others[needed] = False
    pool = others.nonzero().squeeze(1)  # [V - needed]
    drawn = pool[torch.randperm(len(pool), device=targets.device)[:count]]
    correction = torch.zeros(len(needed) + len(drawn), dtype=torch.float64, device=targets.device)
    if len(drawn):
        correction[len(needed) :] = math.log(len(pool) / len(drawn))
    return torch.cat([needed, drawn]), correction, places


def _bias(size: int | tuple[int, int], start: Tensor | None) -> nn.Parameter:
    """A bias of this size that starts from `[V]` in each network, at zero by default."""
    bias = nn.Parameter(torch.zeros(size))
    if start is not None:
        if start.shape != bias.shape[-1:]:
            raise WenetError(f"decoder_bias must be [{bias.shape[-1]}], not {list(start.shape)}")
        with torch.no_grad():
            bias.copy_(start)
    return bias


def check_tied(rnn: OneLayer | Networks) -> None:
    if rnn.input_size != rnn.hidden_size:
        raise WenetError(f"tied embeddings need input_size == hidden_size, not {rnn.input_size}, {rnn.hidden_size}")
