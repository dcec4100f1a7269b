"""A label for a file of weights: the cells, their form, and the layout of the tensors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from wenet_kernels import WenetError

LAYOUT = 1  # increased when tensors keep their shape but change their meaning


@dataclass(frozen=True)
class Description:
    """The label of one layer's weights.

    Args:
        cells: as text, separated by semicolons.
        form: the form of the cells, "highway" or "plain".
        layout: the version of the tensors' layout.
        sizes: the hidden size of each cell, where they may differ; labels of earlier versions lack them.
    """

    cells: str
    form: str
    layout: int = LAYOUT
    sizes: tuple[int, ...] = ()

    def to_json(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value != ()})

    def to_tensor(self) -> Tensor:
        """Encode as bytes, on the CPU even where the model is on the device "meta"."""
        return torch.tensor(list(self.to_json().encode()), dtype=torch.uint8, device="cpu")

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Description:
        """Read what `to_tensor` wrote, even if the whole state dict was converted to another type.

        Raises:
            WenetError: the bytes are no description, or name a layout that this version does not know.
        """
        try:
            found = json.loads(bytes(tensor.to(torch.uint8).tolist()))
            description = cls(**{**found, "sizes": tuple(found.get("sizes", ()))})
        except (AttributeError, TypeError, ValueError):
            raise WenetError("these weights do not name their cell; their file is damaged") from None
        if description.layout != LAYOUT:
            raise WenetError(f"these weights have layout {description.layout}, but this version reads layout {LAYOUT}")
        return description

    def check_same(self, found: Description, layer: str) -> None:
        """Raise `WenetError`, naming the first difference, if the weights found belong to a different layer."""
        here, there = self.cells.split("; "), found.cells.split("; ")
        if found.form != self.form:
            raise WenetError(f"the weights of {layer} are of form {found.form!r}, but the layer is {self.form!r}")
        if len(here) != len(there):
            raise WenetError(f"the cells in the weights of {layer} number {len(there)}, in the layer {len(here)}")
        for ours, other in zip(here, there, strict=True):
            if ours != other:
                raise WenetError(f"the weights of {layer} are those of the cell '{other}', but the layer has '{ours}'")
        if self.sizes and found.sizes and self.sizes != found.sizes:
            ours, other = (", ".join(map(str, sizes)) for sizes in (self.sizes, found.sizes))
            raise WenetError(f"the weights of {layer} are of hidden sizes {other}, but the layer has {ours}")
