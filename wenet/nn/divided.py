"""A layer of many networks, each rank with networks of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wenet.cells.genotype import Genotype
from wenet.nn.weighted import WeightedDagRNN
from wenet.parallel import Ranks, enter_divided


class DividedDagRNN(WeightedDagRNN):
    """The networks of a `WeightedDagRNN` with weighted coupling, divided over ranks.

    A rank holds the weights of the networks `own`, their states, and their moments in an optimizer; all ranks hold all
    mixing weights. In every time step each rank mixes the outputs of its networks, and the sum over ranks is the hidden
    state that all go on with. Called with the same input on all ranks, it gives the same output as the undivided layer,
    up to the order of that sum, and initial weights are the same bits. All ranks have to form the loss from it alike.

    Args:
        genotypes: of all networks, at least as many as ranks.
        options: all others of `WeightedDagRNN`, but no coupling.
    """

    all_ranks = True

    def __init__(
        self, input_size: int, hidden_size: int, genotypes: Sequence[Genotype], ranks: Ranks, **options: Any
    ) -> None:
        self.ranks, self.networks, self.own = ranks, len(genotypes), ranks.own(len(genotypes))
        among = (self.networks, self.own)
        super().__init__(input_size, hidden_size, genotypes[self.own], coupling="weighted", among=among, **options)
        self.described_cells = "; ".join(map(str, genotypes))  # of all ranks, as a checkpoint holds the weights of all
        self.mix_logits = nn.Parameter(torch.zeros(self.networks))

    def divided_parameters(self) -> list[nn.Parameter]:
        """Those of which a rank has its networks' alone."""
        return [self.weight_input, self.weight_hidden, self.weight_nodes]

    def _project(self, masked: Tensor) -> Tensor:
        return super()._project(enter_divided(masked, self.ranks))

    def _mix(self) -> Tensor:
        shares = super()._mix()
        assert shares is not None
        return enter_divided(shares, self.ranks)[self.own]
