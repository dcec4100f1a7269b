"""Many cells that are programs, each a network of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wenet.nn.checks import check_input, check_state, check_tensor
from wenet.nn.described import LayerOfCells
from wenet.nn.dropout import draw_mask, locked_dropout
from wenet.nn.program_parameters import parameter_shapes, set_first_numbers, split_row, vectors_in_order
from wenet_kernels import Program, ProgramBatch, WenetError, cell_rnn
from wenet_kernels.programs.layer import projected_cell_rnn


class StandaloneCellRNN(LayerOfCells):
    """`n` different programs side by side, nothing mixed; called like a `WeightedDagRNN` with independent coupling.

    Args:
        input_size, hidden_size, dropout_x, dropout_h, backend, precision: as in `CellRNN`.
        programs: the cells, which carry equally many states S.
        among: `(total, slice)`: initialise as if all `total` networks had been drawn, so processes agree.
        sizes: the hidden size of each network, at most `hidden_size`, which is the default; so networks of nearly one
            size run in one call. The output of units that a network lacks has no meaning, and reaches no unit it has.

    Parameters: weights `[n, K]`. A row holds those of one network behind one another, in the order of
    `CellRNN.named_parameters`; behind those of a small cell it holds zeros, which nothing reads. The state is
    `[n, M, S * H]`: all carried states of a network beside one another, h first.

    Raises:
        WenetError: a size below 1 or above `hidden_size`, a probability outside 0..1, or programs of different numbers
            of states.

    Examples:
        >>> import torch
        >>> from wenet.nn import StandaloneCellRNN
        >>> from wenet.programs import random_programs
        >>> layer = StandaloneCellRNN(5, 8, random_programs(3, states=2, seed=1))
        >>> output, states = layer(torch.randn(6, 2, 5))
        >>> output.shape, states.shape
        (torch.Size([6, 3, 2, 8]), torch.Size([3, 2, 16]))
    """

    forms = ("program",)
    coupling = "independent"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        programs: Sequence[Program],
        dropout_x: float = 0.0,
        dropout_h: float = 0.0,
        backend: str = "auto",
        precision: str = "full",
        among: tuple[int, slice] | None = None,
        sizes: Sequence[int] = (),
    ) -> None:
        super().__init__(input_size, hidden_size, "program", dropout_x, dropout_h, backend, precision)
        self.cells, self.among = ProgramBatch.of(programs), among
        self.described_cells = self.cells.text
        self.sizes = tuple(sizes) or (hidden_size,) * len(programs)
        if len(self.sizes) != len(programs) or not all(1 <= size <= hidden_size for size in self.sizes):
            raise WenetError(f"sizes must name a size from 1 to {hidden_size} for each of {len(programs)} networks")
        self.described_sizes = self.sizes  # weights have one shape for several
        pairs = zip(programs, self.sizes, strict=True)
        longest = max(program.parameters(input_size, size) for program, size in pairs)
        self.weights = nn.Parameter(torch.empty(len(programs), longest))
        self._make_tables()
        self.reset_parameters()

    def _make_tables(self) -> None:
        """Make what follows from the cells and sizes, where the weights are, in buffers of which no file has a copy."""
        device = self.weights.device
        sizes = torch.tensor(self.sizes, device=device).unsqueeze(1)
        units = torch.arange(self.hidden_size, device=device) < sizes  # [n, H], that a network has
        for name, table in {**self._places(), "units": units}.items():
            self.register_buffer(name, table, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> StandaloneCellRNN:
        """Convert or move the weights, and make the tables anew, which `to_empty` leaves without values."""
        super()._apply(fn, recurse)
        self._make_tables()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self.weights.device != self.get_buffer("units").device:  # assigned to a layer on the device meta
            self._make_tables()

    @property
    def count(self) -> int:
        """Number of networks, n."""
        return self.cells.count

    @property
    def sizes_differ(self) -> bool:
        """Whether a network has fewer units than the layer."""
        return min(self.sizes) < self.hidden_size

    def _networks(self, numbers: Tensor) -> list[dict[str, Tensor]]:
        """Each network's parameters by name, as views of its row of `[n, K]`."""
        return [
            split_row(row, parameter_shapes(program, self.input_size, size))
            for program, size, row in zip(self.cells.programs, self.sizes, numbers, strict=True)
        ]

    def _places(self) -> dict[str, Tensor]:
        """Where in `weights` each number lies that the operator reads, and whose input each product reads."""
        hidden, weights = self.hidden_size, self.weights
        numbers = torch.arange(weights.numel(), device=weights.device).view(weights.shape)
        networks = self._networks(numbers)
        vectors = [
            vectors_in_order(program, {name: each.unsqueeze(0) for name, each in own.items()}, numbers[:1], size)[0]
            for program, size, own in zip(self.cells.programs, self.sizes, networks, strict=True)
        ]
        of_input = torch.tensor([program.of_input for program in self.cells.programs], device=weights.device)
        none = numbers.new_empty(0, 0, 0)
        return {
            "places_input": self._joined([own["weight_input"] for own in networks], self.input_size),  # [X, I, H]
            "places_hidden": self._joined([own.get("weight_hidden", none) for own in networks], hidden),  # [P, H, H]
            "places_vectors": self._joined([own.unsqueeze(1) for own in vectors], 1).squeeze(1),  # [V, H]
            "reader": torch.arange(self.count, device=weights.device).repeat_interleave(
                of_input, output_size=self.cells.of_input
            ),
        }

    def _joined(self, places: Sequence[Tensor], rows: int) -> Tensor:
        """Places of all networks, `[count, rows, H]`; those of units that a network lacks are behind all weights."""
        nowhere = self.weights.numel()
        return torch.cat(
            [
                functional.pad(each, (0, self.hidden_size - each.shape[2], 0, rows - each.shape[1]), value=nowhere)
                for each in places
            ]
        )

    @torch.no_grad()
    def reset_parameters(self, bound: float | None = None) -> None:
        """As in `CellRNN`. What a network starts from depends on its place alone, not on the cells around it."""
        total, own = self.among or (self.count, slice(self.count))
        seeds = torch.randint(2**62, (total,), device="cpu")[own].tolist()
        nn.init.zeros_(self.weights)
        if self.weights.is_meta:
            return
        networks = self._networks(self.weights)
        for program, size, parameters, seed in zip(self.cells.programs, self.sizes, networks, seeds, strict=True):
            generator = torch.Generator(self.weights.device).manual_seed(seed)
            own_bound = size**-0.5 if bound is None else bound
            for parameter in parameters.values():
                parameter.uniform_(-own_bound, own_bound, generator=generator)
            set_first_numbers(program, parameters)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: `[T, M, I]`, shared by all networks, or `[n, T, M, I]`, an input for each.
            h0: `[n, M, S * H]`; zeros by default.

        Returns:
            output `[T, n, M, H]` and the last states `[n, M, S * H]`.

        Raises:
            WenetError: shapes disagree, or the input has NaN.
        """
        check_tensor("the input", x, self.weights)
        check_input(self, x[0] if self._one_input_each(x) else x)
        if x.dim() == 4:
            return self.run(self.project(x), h0)
        first = self._first_states(x, h0)
        x = locked_dropout(self, x, self.dropout_x)
        options = self._drawn_options(x)
        weight_input, weight, vectors = self.operands()
        return self._last(projected_cell_rnn(x, weight_input, first, weight, vectors, self.cells, **options))

    def project(self, x: Tensor) -> Tensor:
        """An input of each network, `[n, T, M, I]`, after dropout through the weights of every product that reads it,
        `[T, X, M, H]`."""
        x = locked_dropout(self, x, self.dropout_x)
        of_products = x.flatten(1, 2)[self.get_buffer("reader")]  # [X, T * M, I]
        return (of_products @ self._at("places_input")).unflatten(1, x.shape[1:3]).transpose(0, 1)

    def run(self, pre: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, from an input that is projected, `[T, X, M, H]`."""
        first, options = self._first_states(pre, h0), self._drawn_options(pre)
        weight, vectors = self._at("places_hidden"), self._at("places_vectors")
        return self._last(cell_rnn(pre, first, weight, vectors, None, self.cells, **options))

    def _first_states(self, x: Tensor, h0: Tensor | None) -> Tensor:
        """What the cells start from, `[S, n, M, H]`."""
        carried, rows = self.cells.states, x.shape[-2]
        if h0 is None:
            return x.new_zeros(carried, self.count, rows, self.hidden_size)
        check_state(h0, (self.count, rows, carried * self.hidden_size), self.weights)
        return h0.unflatten(-1, (carried, -1)).permute(2, 0, 1, 3)

    def _drawn_options(self, x: Tensor) -> dict[str, Any]:
        mask_h = draw_mask(self, x, self.dropout_h, self.hidden_size)
        return {"mask_h": mask_h, "precision": self.precision, "backend": self.backend}

    @staticmethod
    def _last(result: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
        """The output, and the last of all states beside one another, `[n, M, S * H]`."""
        output, states = result
        return output, torch.cat([state[-1] for state in states], -1)

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `project` and `cell_rnn` read of the parameters: `[X, I, H]`, `[P, H, H]` and `[V, H]`."""
        return self._at("places_input"), self._at("places_hidden"), self._at("places_vectors")

    def _at(self, name: str) -> Tensor:
        """The numbers at some places of `weights`, and zero behind them."""
        places, numbers = self.get_buffer(name), self.weights.flatten()
        if self.sizes_differ:
            numbers = functional.pad(numbers, (0, 1))
        return numbers.index_select(0, places.flatten()).view(places.shape)

    def _one_input_each(self, x: Tensor) -> bool:
        return x.dim() == 4 and len(x) == self.count

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, networks={self.count}"
