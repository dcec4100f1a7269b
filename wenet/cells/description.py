"""What a file of weights says of them: the cells, the form, and how the numbers lie in their tensors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from wenet_kernels import WenetError

LAYOUT = 1  # counts up when a tensor of the same shape comes to mean something else


@dataclass(frozen=True)
class Description:
    """Of the weights of a layer.

    Args:
        cells: as text, with semicolons between them.
        form: of the cells.
        layout: of the tensors.
    """

    cells: str
    form: str
    layout: int = LAYOUT

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def to_tensor(self) -> Tensor:
        """As bytes, in memory even where a model is made on the device "meta"."""
        return torch.tensor(list(self.to_json().encode()), dtype=torch.uint8, device="cpu")

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Description:
        """Read what `to_tensor` wrote, also where all of a state dict was given another type.

        Raises:
            WenetError: it is something else, or of a layout that this version does not know.
        """
        try:
            description = cls(**json.loads(bytes(tensor.to(torch.uint8).tolist())))
        except (AttributeError, TypeError, ValueError):
            raise WenetError("these weights do not say of which cell they are; their file is damaged") from None
        if description.layout != LAYOUT:
            raise WenetError(f"these weights have layout {description.layout}, but this version reads layout {LAYOUT}")
        return description

    def check_same(self, found: Description, layer: str) -> None:
        """Raise `WenetError` unless weights found are for the layer that this describes, with the first difference."""
        here, there = self.cells.split("; "), found.cells.split("; ")
        if found.form != self.form:
            raise WenetError(f"the weights of {layer} are of form {found.form!r}, but the layer is {self.form!r}")
        if len(here) != len(there):
            raise WenetError(f"the weights of {layer} are those of {len(there)} cells, but the layer has {len(here)}")
        for ours, other in zip(here, there, strict=True):
            if ours != other:
                raise WenetError(f"the weights of {layer} are those of the cell '{other}', but the layer has '{ours}'")
