"""Many cells that are programs, mixed into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wenet.nn.checks import check_input, check_probability, check_state, check_tensor
from wenet.nn.dropout import locked_dropout
from wenet.nn.mixing import Mixing
from wenet.nn.standalone_cells import StandaloneCellRNN
from wenet_kernels import Program, cell_rnn, check_choice, project


class WeightedCellRNN(Mixing, StandaloneCellRNN):
    """`n` different programs over one sequence, mixed by learned softmax weights: their outputs, and every state that
    they carry.

    Args:
        input_size, hidden_size, programs, dropout_x, dropout_h, backend, precision: as in `StandaloneCellRNN`.
        norm: "batch" normalises every new state over the rows of the data batch, as `Program.normalised` does, in
            evaluation too; None does not normalise.
        mix_dropout: as in `WeightedDagRNN`.

    Parameters: weights `[n, K]` as in `StandaloneCellRNN`, and mix_logits `[n]`, initially zero. The state is
    `[1, M, S * H]`: all carried states beside one another, h first.

    Raises:
        WenetError: as in `StandaloneCellRNN`; also an unknown norm.

    Examples:
        >>> import torch
        >>> from wenet.nn import WeightedCellRNN
        >>> from wenet.programs import random_programs
        >>> layer = WeightedCellRNN(5, 8, random_programs(3, states=2, seed=1), norm="batch")
        >>> output, state = layer(torch.randn(6, 2, 5))
        >>> output.shape, state.shape
        (torch.Size([6, 2, 8]), torch.Size([1, 2, 16]))
    """

    coupling = "weighted"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        programs: Sequence[Program],
        norm: str | None = None,
        dropout_x: float = 0.0,
        dropout_h: float = 0.0,
        backend: str = "auto",
        precision: str = "full",
        mix_dropout: float = 0.0,
    ) -> None:
        check_choice("norm", norm or "none", ("batch", "none"))
        check_probability("mix_dropout", mix_dropout)
        cells = [program.normalised() for program in programs] if norm == "batch" else programs
        super().__init__(input_size, hidden_size, cells, dropout_x, dropout_h, backend, precision)
        self.norm, self.mix_dropout = norm, mix_dropout
        self.mix_logits = nn.Parameter(torch.zeros(self.count))

    def reset_parameters(self, bound: float | None = None) -> None:
        """Initialise as `StandaloneCellRNN` does, with equal mixing weights."""
        super().reset_parameters(bound)
        logits = self._parameters.get("mix_logits")  # not yet there where the base initialises
        if logits is not None:
            nn.init.zeros_(logits)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`, shared by all networks.
            h0: `[1, M, S * H]`; zeros by default.

        Returns:
            output `[T, M, H]` and the last states of the mixture `[1, M, S * H]`.

        Raises:
            WenetError: shapes disagree, or the input has NaN; with norm, a single row.
        """
        check_tensor("the input", x, self.weights)
        check_input(self, x)
        return self.run(self.project(x), h0)

    def project(self, x: Tensor) -> Tensor:
        """The input of `forward` after dropout through the weights of every product that reads it, `[T, X, M, H]`."""
        return project(locked_dropout(self, x, self.dropout_x), self._at("places_input"), backend=self.backend)

    def run(self, pre: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, from an input that is projected, `[T, X, M, H]`."""
        carried = self.cells.states
        shape = (1, pre.shape[-2], carried * self.hidden_size)
        h = pre.new_zeros(shape) if h0 is None else h0
        check_state(h, shape, self.weights)
        first = h[0].unflatten(-1, (carried, -1)).transpose(0, 1)  # [S, M, H]
        weight, vectors, options = self._at("places_hidden"), self._at("places_vectors"), self._drawn_options(pre)
        output, states = cell_rnn(pre, first, weight, vectors, self._mix(), self.cells, **options)
        return output, torch.cat([state[-1:] for state in states], -1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm={self.norm}"
