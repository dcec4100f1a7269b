"""`python -m bench.floors --card h200`: bytes and operations of the recurrence, and the least time they take."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from bench.cases import CASES, NODES, PAPER, Case

SIZES = {"fp32": 4, "tf32": 4, "bf16": 2}


@dataclass(frozen=True)
class Card:
    """What a GPU does at best: bytes a second, and dense products in operations a second by precision."""

    bandwidth: float
    rates: dict[str, float]


def _card(terabytes: float, bf16: float, tf32: float, fp32: float) -> Card:
    """Of TB/s and TF/s; all without sparsity, as their makers state them."""
    return Card(1e12 * terabytes, {"bf16": 1e12 * bf16, "tf32": 1e12 * tf32, "fp32": 1e12 * fp32})


CARDS = {
    "a100": _card(2.0, 312, 156, 19.5),
    "h100": _card(3.35, 989, 495, 67),
    "h200": _card(4.8, 989, 495, 67),
    "b200": _card(8.0, 2250, 1125, 75),
    "rtx4090": _card(1.01, 165, 83, 83),
    "mi300x": _card(5.3, 1307, 654, 163),
}


@dataclass(frozen=True)
class Traffic:
    """Bytes that one time step of a case moves to or from memory, by what they are, in one direction.

    `weights` have to be read, as they fit into no cache; all else depends on the design: what the Triton kernels keep
    for backward and hand from there to the weight gradients.
    """

    weights: int
    others: dict[str, int]

    @property
    def total(self) -> int:
        return self.weights + sum(self.others.values())


def count_forward(case: Case, precision: str) -> Traffic:
    return Traffic(
        _matrices(case) * SIZES[precision],
        {
            "projected input": 4 * _states(case) // (NODES + 1) * case.width // case.hidden,
            "states kept": 4 * _states(case),
            "gates and candidates kept": SIZES[precision] * _states(case) * case.width // case.hidden,
            "weights rounded once a window": _matrices(case) * (4 + SIZES[precision]) // case.steps,
        },
    )


def count_backward(case: Case, precision: str) -> Traffic:
    products = SIZES[precision] * _states(case) * case.width // case.hidden
    return Traffic(
        _matrices(case) * SIZES[precision],
        {
            "states": 4 * _states(case),
            "gates and candidates": products,
            "gradients of products": products,
            "gradient of the projected input": 4 * _states(case) // (NODES + 1) * case.width // case.hidden,
            "weight gradients: both factors": 4 * _states(case) + products,
            "weight gradients written once a window": 4 * _matrices(case) // case.steps,
        },
    )


def _matrices(case: Case) -> int:
    """Elements of all weights of the recurrence."""
    return case.networks * (NODES + 1) * case.hidden * case.width


def _states(case: Case) -> int:
    """Elements of all states of a time step."""
    return case.networks * (NODES + 1) * case.rows * case.hidden


def floor_seconds(case: Case, card: Card, precision: str, backward: bool) -> float:
    """The least time of a whole sequence: reading the weights in every step, or multiplying, whichever takes longer.

    With backward, the weights are read once more, and there are two more products for each of forward's.
    """
    reading = count_forward(case, precision).weights * case.steps * (2 if backward else 1) / card.bandwidth
    return max(reading, case.flops(backward) / card.rates[precision])


def report(case: Case, name: str, card: Card, precision: str) -> list[str]:
    """The count as Markdown."""
    sizes = f"n={case.networks}, H={case.hidden}, M={case.rows}, T={case.steps}"
    lines = [
        f"{case.name}: {sizes}, {case.form}, {precision}; {name}: "
        f"{card.bandwidth / 1e12:.2f} TB/s, {card.rates[precision] / 1e12:.0f} TF/s",
        "",
        "| in a time step | MB | µs at the bandwidth |",
        "|---|---|---|",
    ]
    for direction, traffic in (
        ("forward", count_forward(case, precision)),
        ("backward", count_backward(case, precision)),
    ):
        rows = {"weights (the floor)": traffic.weights, **traffic.others, "in all": traffic.total}
        lines += [
            f"| {direction}: {what} | {_mb(count)} | {_us(count / card.bandwidth)} |" for what, count in rows.items()
        ]
    lines += ["", "| products | GF a step | µs at the rate |", "|---|---|---|"]
    for direction, backward in (("forward", False), ("forward and backward", True)):
        flops = case.flops(backward) / case.steps
        lines.append(f"| {direction} | {flops / 1e9:.2f} | {_us(flops / card.rates[precision])} |")
    forward, both = (floor_seconds(case, card, precision, backward) for backward in (False, True))
    counted = count_forward(case, precision).total + count_backward(case, precision).total
    ratio = counted * case.steps / card.bandwidth / both
    lines += [
        "",
        f"Floor of a sequence: forward {1e3 * forward:.2f} ms, forward and backward {1e3 * both:.2f} ms; all that is "
        f"counted takes {ratio:.2f} times the latter at the bandwidth.",
    ]
    return lines


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f}"


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


def main() -> None:
    shapes = {case.name: case for case in [*CASES, replace(PAPER, name="paper-120", networks=120)]}
    parser = argparse.ArgumentParser(prog="python -m bench.floors", description=__doc__)
    parser.add_argument("--card", nargs="+", choices=CARDS, default=["h200"])
    parser.add_argument("--case", choices=shapes, default="paper-120", help="default: %(default)s")
    parser.add_argument("--precision", choices=SIZES, default="bf16", help="default: %(default)s")
    parser.add_argument("--bandwidth", type=float, metavar="TB/S", help="as measured, in place of the maker's figure")
    for size in ("networks", "hidden", "rows", "steps"):
        parser.add_argument(f"--{size}", type=int, metavar="N", help="in place of the case's")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("networks", "hidden", "rows", "steps")}
    case = replace(shapes[options.case], **{name: size for name, size in sizes.items() if size is not None})
    for name in options.card:
        card = CARDS[name]
        if options.bandwidth is not None:
            card = replace(card, bandwidth=1e12 * options.bandwidth)
        print("\n".join(report(case, name, card, options.precision)))


if __name__ == "__main__":
    main()
