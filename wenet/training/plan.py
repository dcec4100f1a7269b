"""What a standalone training is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wenet.training.architectures import Architecture


@dataclass(frozen=True)
class Origin:
    """The origin of a network: the folder of a training that left its networks, and its place there."""

    folder: Path
    place: int


@dataclass(frozen=True)
class Plan:
    """The networks of a standalone training, and how to train them.

    Attributes:
        architectures: one per network, all of one kind, as `kind_of` has it.
        windows: number of windows to train on, including earlier ones of networks that continue from other trainings;
            at its end the text starts over.
        seed: seed of initial weights and dropouts.
        rates: Adam's rate of each network; empty if all use that of the settings.
        decay: whether rates fall linearly to zero, window by window.
        schedule: number of windows after which rates that fall reach zero, if others continue from these networks;
            0 if that is after `windows`.
        weight_decays: of each network; empty if all use that of the settings.
        origins: the origin of each network; empty if all start anew.
        average: whether networks are measured with a moving average of their weights. If training is to continue, rates
            must stay high, and the weights themselves are noisy.
        leave: whether the networks stay in the folder, so that others can continue from them.
        test: whether the test part is measured in the end.
        held_out: number of validation windows to measure and record one by one; None measures all.
        hidden: the hidden size of each network; empty if all have that of the settings, the largest.
        checks: at most so many times, and once a pass, networks are measured during training; each ends with the
            weights that were best. Early stopping, in effect, where the rest would overfit.
    """

    architectures: Sequence[Architecture]
    windows: int
    seed: int
    rates: Sequence[float] = ()
    decay: bool = False
    schedule: int = 0
    origins: Sequence[Origin] = ()
    average: bool = False
    leave: bool = False
    test: bool = False
    held_out: int | None = None
    checks: int = 0
    hidden: Sequence[int] = ()
    weight_decays: Sequence[float] = ()

    def stored(self) -> dict[str, Any]:
        """Convert for `config.json`, leaving out default values."""
        unusual = {
            "rates": list(self.rates),
            "decay": self.decay,
            "schedule": self.schedule,
            "origins": [[origin.folder.name, origin.place] for origin in self.origins],
            "average": self.average,
            "leave": self.leave,
            "test": self.test,
            "held_out": self.held_out,
            "checks": self.checks,
            "hidden": list(self.hidden),
            "weight_decays": list(self.weight_decays),
        }
        return {
            "genotypes": [str(architecture) for architecture in self.architectures],
            "windows": self.windows,
            "seed": self.seed,
            **{name: value for name, value in unusual.items() if value},
        }

    def of(self, part: slice) -> Plan:
        """The plan for some of the networks."""
        divided = ("architectures", "rates", "origins", "hidden", "weight_decays")
        parts = {name: getattr(self, name)[part] for name in divided}
        return replace(self, **parts)
