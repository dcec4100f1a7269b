"""Several processes working on one run, and gradients of a model divided among them."""

from wenet.parallel.gradients import clip_gradients, enter_divided
from wenet.parallel.ranks import ALONE, Ranks, check_own_device, joined

__all__ = ["ALONE", "Ranks", "check_own_device", "clip_gradients", "enter_divided", "joined"]
