"""What layers of cells have in common: a state dict that says whose weights it holds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wenet.cells.description import Description


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
