"""A layer of many networks, divided among ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wenet.cells.genotype import Genotype
from wenet.nn.weighted import WeightedDagRNN
from wenet.parallel import Ranks, enter_divided


class DividedDagRNN(WeightedDagRNN):
    """A `WeightedDagRNN` with weighted coupling whose networks are divided among ranks.

    Each rank holds the weights, states and optimizer moments of its networks, `own`; all ranks hold all mixing weights.
    In each time step every rank mixes its networks' outputs, and the sum over ranks is the next hidden state. Given the
    same input on all ranks, the layer computes what the undivided layer computes, up to the order of that sum; initial
    weights are equal to the bit. All ranks must compute the same loss from the output.

    Args:
        genotypes: the cells of all ranks, at least one per rank.
        options: any other argument of `WeightedDagRNN` except coupling.
    """

    all_ranks = True

    def __init__(
        self, input_size: int, hidden_size: int, genotypes: Sequence[Genotype], ranks: Ranks, **options: Any
    ) -> None:
        self.ranks, self.networks, self.own = ranks, len(genotypes), ranks.own(len(genotypes))
        among = (self.networks, self.own)
        super().__init__(input_size, hidden_size, genotypes[self.own], coupling="weighted", among=among, **options)
        self.described_cells = "; ".join(map(str, genotypes))  # of all ranks, like the weights in a checkpoint
        self.mix_logits = nn.Parameter(torch.zeros(self.networks))

    def divided_parameters(self) -> list[nn.Parameter]:
        """The parameters of which a rank has only its own networks' part."""
        return [self.weight_input, self.weight_hidden, self.weight_nodes]

    def _project(self, masked: Tensor) -> Tensor:
        return super()._project(enter_divided(masked, self.ranks))

    def _mix(self) -> Tensor:
        shares = super()._mix()
        assert shares is not None
        return enter_divided(shares, self.ranks)[self.own]
