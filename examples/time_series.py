"""A searched cell in a plain PyTorch model: the next value of a noisy sum of three waves.

python examples/time_series.py
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn

from wenet.nn import DagRNN

HISTORY = 48  # number of steps that a forecast sees


class Forecaster(nn.Module):
    """Predicts the next number of a sequence."""

    def __init__(self, cell: str, hidden_size: int) -> None:
        super().__init__()
        self.rnn = DagRNN(1, hidden_size, cell)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:  # [T, M, 1]
        output, _ = self.rnn(x)  # [T, M, H]
        return self.head(output[-1])  # [M, 1]


def series(length: int, generator: torch.Generator) -> Tensor:
    """Three waves of different period, and noise of standard deviation 0.1."""
    t = torch.arange(length)
    waves = sum(torch.sin(2 * math.pi * t / period) for period in (12, 31, 87))
    return waves + 0.1 * torch.randn(length, generator=generator)


def windows(values: Tensor) -> tuple[Tensor, Tensor]:
    """All stretches of HISTORY values [T, M, 1], and the next value of each [M, 1]."""
    stretches = values.unfold(0, HISTORY + 1, 1)  # [M, T + 1]
    return stretches[:, :-1].T.unsqueeze(-1), stretches[:, -1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", default="darts-v2", help="a cell as in wenet-cell show (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=32, help="size of the hidden state (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: %(default)s)")
    options = parser.parse_args()

    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    values = series(2400, generator)
    x, y = windows(values[:2000])
    x_test, y_test = windows(values[2000:])
    model = Forecaster(options.cell, options.hidden)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(options.steps):
        rows = torch.randint(x.shape[1], (64,), generator=generator)
        loss = nn.functional.mse_loss(model(x[:, rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        error = nn.functional.mse_loss(model(x_test), y_test).sqrt()
        repeated = nn.functional.mse_loss(x_test[-1], y_test).sqrt()
    print(f"{options.cell}: error {error:.3f}; repeating the last value: {repeated:.3f}; the noise alone: 0.100")


if __name__ == "__main__":
    main()
