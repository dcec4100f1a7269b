"""Processes that work on one run together, and derivatives of a model divided over them."""

from wenet.parallel.gradients import clip_gradients, enter_divided
from wenet.parallel.ranks import ALONE, Ranks, check_own_device, joined

__all__ = ["ALONE", "Ranks", "check_own_device", "clip_gradients", "enter_divided", "joined"]
