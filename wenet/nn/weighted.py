"""A layer of many different cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from wenet.cells import Genotype, load_genotype
from wenet.nn.checks import (
    check_input,
    check_probability,
    check_state,
    check_tensor,
    leave_former_buffers,
)
from wenet.nn.described import LayerOfCells
from wenet.nn.dropout import draw_mask, locked_dropout
from wenet.nn.mixing import Mixing
from wenet_kernels import COUPLINGS, CellBatch, Norm, WenetError, check_choice, dag_rnn, project


class WeightedDagRNN(Mixing, LayerOfCells):
    """`n` different cells over one sequence, mixed by learned softmax weights (eq. 4).

    Args:
        input_size, hidden_size, form, dropout_x, dropout_h, backend, precision: as in `DagRNN`.
        genotypes: the cells, each as in `DagRNN`, all with the same number of nodes L.
        coupling: "weighted" (one hidden state, the mixture) or "independent" (n models side by side, nothing mixed).
        norm: "batch" normalises every state of every step over the rows of the data batch, in evaluation too; None
            does not normalise.
        shared_weights: all networks share the weights of the input, of the state and of nodes with the same number; the
            parameters below then have a leading 1.
        mix_dropout: probability of leaving a network out of the mixture; one draw per call, which keeps at least one.
            The remaining weights are scaled to sum to one.
        among: `(total, slice)`: initialise as if all `total` networks had been drawn, so ranks agree.

    Parameters: weight_input `[n, I, G]`, weight_hidden `[n, H, G]`, weight_nodes `[n, L, H, G]`, and with weighted
    coupling mix_logits `[n]`, initially zero.

    Raises:
        WenetError: as in `DagRNN`; also if there are no cells, their numbers of nodes differ, or mix_dropout is given
            with independent coupling.

    Examples:
        >>> import torch, wenet
        >>> rnn = wenet.nn.WeightedDagRNN(5, 8, wenet.random_genotypes(3, nodes=4, seed=1))
        >>> output, h = rnn(torch.randn(6, 2, 5))
        >>> output.shape, h.shape
        (torch.Size([6, 2, 8]), torch.Size([1, 2, 8]))
        >>> rnn.mix_logits.detach().softmax(0)
        tensor([0.3333, 0.3333, 0.3333])
    """

    all_ranks = False  # whether other processes have networks of the mixture too

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        genotypes: Sequence[Genotype | str | Path],
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
        super().__init__(input_size, hidden_size, form, dropout_x, dropout_h, backend, precision)
        self.coupling, self.among = coupling, among
        self.norm: Norm = "batch" if norm == "batch" else None
        check_choice("coupling", coupling, COUPLINGS)
        check_choice("norm", norm or "none", ("batch", "none"))
        check_probability("mix_dropout", mix_dropout)
        if coupling == "independent" and mix_dropout:
            raise WenetError("mix_dropout needs a mixture; coupling='independent' has none")
        self.mix_dropout = mix_dropout
        cells = [load_genotype(genotype) for genotype in genotypes]
        self.described_cells = "; ".join(map(str, cells))
        self.cells = CellBatch.from_genotypes(cells)
        count, nodes = self.cells.count, self.cells.nodes
        sets = 1 if shared_weights else count
        self.weight_input = nn.Parameter(torch.empty(sets, input_size, self.width))
        self.weight_hidden = nn.Parameter(torch.empty(sets, hidden_size, self.width))
        self.weight_nodes = nn.Parameter(torch.empty(sets, nodes, hidden_size, self.width))
        self.mix_logits = nn.Parameter(torch.zeros(count)) if coupling == "weighted" else None
        self.register_load_state_dict_pre_hook(leave_former_buffers)
        self.reset_parameters()

    @property
    def count(self) -> int:
        """Number of networks, n."""
        return self.cells.count

    def reset_parameters(self, bound: float | None = None) -> None:
        """Initialise weights from U(-bound, bound), by default with bound 1 / sqrt(H), and equal mixing weights."""
        bound = self.hidden_size**-0.5 if bound is None else bound
        for parameter in (self.weight_input, self.weight_hidden, self.weight_nodes):
            draw_networks(parameter, bound, self.among)
        if self.mix_logits is not None:
            nn.init.zeros_(self.mix_logits)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`, shared by all networks; with independent coupling also `[n, T, M, I]`, an input for each.
            h0: `[1, M, H]`, or `[n, M, H]` with independent coupling; zeros by default.

        Returns:
            output `[T, M, H]` and the last state `[1, M, H]`; with independent coupling `[T, n, M, H]` and `[n, M, H]`.

        Raises:
            WenetError: shapes disagree, or the input has NaN.
        """
        check_tensor("the input", x, self.weight_input)
        check_input(self, x[0] if self._one_input_each(x) else x)
        return self.run(self.project(x), h0)

    def project(self, x: Tensor) -> Tensor:
        """The input of `forward` after dropout times each network's weights, `[T, n, M, G]`."""
        return self._project(locked_dropout(self, x, self.dropout_x))

    def run(self, pre: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, from an input that is projected, `[T, n, M, G]`."""
        rows, weighted = pre.shape[-2], self.coupling == "weighted"
        states = 1 if weighted else self.cells.count
        h = pre.new_zeros(states, rows, self.hidden_size) if h0 is None else h0
        check_state(h, (states, rows, self.hidden_size), self.weight_input)
        mask_h = draw_mask(self, pre, self.dropout_h, self.hidden_size)
        result = dag_rnn(
            pre,
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
        """Each network's own output in every step, `[n, T, M, H]`, without dropout.

        All steps are computed in one call. With batch normalisation each step is a call of its own, as in the mixture.

        Args:
            x: `[T, M, I]`.
            states: `[T, M, H]`, the mixture's state before each step.
        """
        if self.norm is not None:
            return torch.stack([self._one_step(*step) for step in zip(x, states, strict=True)], dim=1)
        steps, rows = x.shape[:2]
        return self._one_step(x.flatten(0, 1), states.flatten(0, 1)).unflatten(1, (steps, rows))

    def _one_step(self, x: Tensor, states: Tensor) -> Tensor:
        """Outputs `[n, M, H]` of all networks for one step's input `[M, I]` and shared states `[M, H]`."""
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

    def _project(self, masked: Tensor) -> Tensor:
        """The masked input times each network's weights, `[T, n, M, G]`."""
        if masked.dim() == 3:
            return project(masked, self._of_all(self.weight_input), backend=self.backend)
        own = masked.flatten(1, 2) @ self._of_all(self.weight_input)  # [n, T*M, G]
        return own.unflatten(1, masked.shape[1:3]).transpose(0, 1)

    def _of_all(self, weights: Tensor) -> Tensor:
        """Weights of all networks, `[n, ...]`, even if they share one set."""
        return weights.expand(self.cells.count, *weights.shape[1:])

    def _one_input_each(self, x: Tensor) -> bool:
        return self.coupling == "independent" and x.dim() == 4 and len(x) == self.cells.count

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}, networks={self.cells.count}, form={self.form}"
        return f"{sizes}, coupling={self.coupling}, norm={self.norm}"


@torch.no_grad()
def draw_networks(parameter: Tensor, bound: float, among: tuple[int, slice] | None) -> None:
    """Initialise `[n, ...]` from U(-bound, bound); with `among`, as if all `total` networks were drawn one by one."""
    if among is None:
        nn.init.uniform_(parameter, -bound, bound)
        return
    total, own = among
    unused = torch.empty_like(parameter[0])
    for network in range(total):
        here = own.start <= network < own.stop
        nn.init.uniform_(parameter[network - own.start] if here else unused, -bound, bound)
