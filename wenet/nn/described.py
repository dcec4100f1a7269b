"""The base of all layers of cells: sizes, options, and a state dict that names its cells."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wenet.cells.description import Description
from wenet.nn.checks import check_count, check_probability
from wenet_kernels import FORMS, PRECISIONS, WenetError, check_choice


class LayerOfCells(nn.Module):
    """A layer whose state dict names its cells, and which refuses the weights of other cells.

    The label is a tensor of bytes, which every file format can hold. It is compared before any weight is copied. State
    dicts of earlier versions have no label and are accepted.
    """

    forms: tuple[str, ...] = FORMS  # that its cells may have
    described_cells: str  # as text, separated by semicolons
    described_sizes: tuple[int, ...] = ()  # of the cells, where they may differ

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        form: str,
        dropout_x: float,
        dropout_h: float,
        backend: str,
        precision: str,
    ) -> None:
        super().__init__()
        check_count("input_size", input_size)
        check_count("hidden_size", hidden_size)
        check_choice("form", form, self.forms)
        check_choice("precision", precision, PRECISIONS)
        check_probability("dropout_x", dropout_x)
        check_probability("dropout_h", dropout_h)
        self.input_size, self.hidden_size, self.form = input_size, hidden_size, form
        self.dropout_x, self.dropout_h, self.backend, self.precision = dropout_x, dropout_h, backend, precision

    @property
    def width(self) -> int:
        """Columns of a product, G: gate and value in the highway form, only the value in the plain form."""
        return 2 * self.hidden_size if self.form == "highway" else self.hidden_size

    def __prepare_scriptable__(self) -> None:
        """Called first by torch.jit.script."""
        raise WenetError(f"torch.jit.script cannot read a {type(self).__name__}; use torch.jit.trace, or torch.export")

    def get_extra_state(self) -> Tensor:
        return self._description().to_tensor()

    def _description(self) -> Description:
        return Description(self.described_cells, self.form, sizes=self.described_sizes)

    def set_extra_state(self, state: Tensor) -> None:
        """Do nothing: the label was compared before the weights were loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        found = state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        own = self._description()
        own.check_same(Description.from_tensor(found), prefix.rstrip(".") or "this layer")
        super()._load_from_state_dict(state_dict, prefix, *arguments)
