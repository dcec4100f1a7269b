"""A cell for your sensors: handwritten digits, read pixel row by pixel row, as a stand-in for a recording.

python examples/sensors.py --minutes 5
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits

import wenet
from wenet.run import Console


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="for search and contest (default: %(default)s)")
    parser.add_argument("--sequences", type=int, default=1797, help="how many to read (default: all)")
    parser.add_argument("--pixels", action="store_true", help="64 steps of a pixel each, in place of 8 steps of a row")
    options = parser.parse_args()

    x, y = load_digits(return_X_y=True)
    x, y = x[: options.sequences], y[: options.sequences]
    x = x[:, :, None] if options.pixels else x.reshape(-1, 8, 8)  # [N, T, F]
    found = wenet.search(
        (x, y),
        task="classify",
        minutes=options.minutes,
        constant="keep",  # some pixels are always white
        console=Console(quiet=True),
    )
    print(found)

    model = found.model  # reads numbers as they come: its standardisation is part of it
    print("the first ten:", found.predict(x[:10]), "should be", y[:10])
    state = None
    for step in np.moveaxis(x[:1], 1, 0):  # a step at a time, as from a sensor
        scores, state = model.step(torch.from_numpy(step), state)
    print("the first, step by step:", model.classes[int(scores.argmax())])


if __name__ == "__main__":
    main()
