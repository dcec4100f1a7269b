"""`python -m bench.floors --card h200`: bytes and operations of the recurrence, and the least time they take."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from bench.cases import CASES, NODES, PAPER, Case
from wenet import Genotype

SIZES = {"fp32": 4, "tf32": 4, "bf16": 2}


@dataclass(frozen=True)
class Card:
    """The peak rates of a GPU.

    Attributes:
        bandwidth: bandwidth of its memory, in bytes per second.
        rates: rates of dense products in operations per second, by precision.
        cache: size of its L2 cache in bytes.
        cache_bandwidth: bandwidth of that cache, in bytes per second.
        handover: seconds between two launches if the second reads results of the first, or for a barrier of the grid.
    """

    bandwidth: float
    rates: dict[str, float]
    cache: float = 50e6
    cache_bandwidth: float = 5.5e12
    handover: float = 2.5e-6


def _card(terabytes: float, bf16: float, tf32: float, fp32: float, cache: float) -> Card:
    """A card from TB/s, TF/s and MB, as stated by its maker, without sparsity."""
    return Card(1e12 * terabytes, {"bf16": 1e12 * bf16, "tf32": 1e12 * tf32, "fp32": 1e12 * fp32}, 1e6 * cache)


CARDS = {
    "a100": _card(2.0, 312, 156, 19.5, 40),
    "h100": _card(3.35, 989, 495, 67, 50),
    "h200": _card(4.8, 989, 495, 67, 50),
    "b200": _card(8.0, 2250, 1125, 75, 126),
    "rtx4090": _card(1.01, 165, 83, 83, 72),
    "mi300x": _card(5.3, 1307, 654, 163, 256),
}


@dataclass(frozen=True)
class Traffic:
    """Bytes that one time step of a case moves to or from memory in one direction, by kind.

    Everything except `weights` depends on the design: the data that Triton kernels keep for backward and for the weight
    gradients.
    """

    weights: int
    others: dict[str, int]

    @property
    def total(self) -> int:
        return self.weights + sum(self.others.values())


def count_forward(case: Case, precision: str, keep: bool = True) -> Traffic:
    """Bytes of a forward pass, with or without keeping data for backward."""
    kept = {
        "states kept": 4 * _states(case),
        "factors kept": SIZES[precision] * _factors(case),
        "gates and candidates kept": SIZES[precision] * _states(case) * case.width // case.hidden,
    }
    return Traffic(
        _matrices(case) * SIZES[precision],
        {
            "projected input": 4 * _states(case) // (NODES + 1) * case.width // case.hidden,
            **(kept if keep else {}),
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
            "weight gradients: both factors": SIZES[precision] * _factors(case) + products,
            "weight gradients written once a window": 4 * _matrices(case) // case.steps,
        },
    )


def _matrices(case: Case) -> int:
    """Number of elements in all weights of the recurrence."""
    return case.networks * (NODES + 1) * case.hidden * case.width


def _states(case: Case) -> int:
    """Number of elements in all states of a time step."""
    return case.networks * (NODES + 1) * case.rows * case.hidden


def _factors(case: Case) -> int:
    """Number of elements in the products' factors of a time step: all states but the last, which no product reads."""
    return _states(case) * NODES // (NODES + 1)


@dataclass(frozen=True)
class Floor:
    """The least seconds of a whole sequence, by cause; the longest of these is the floor.

    Attributes:
        memory: moving all bytes that the design moves; weights that fit into the L2 cache come from memory once.
        products: multiplying.
        latency: launches that wait for each other, and reading weights that are in the L2 cache.
    """

    memory: float
    products: float
    latency: float

    @property
    def seconds(self) -> float:
        return max(self.memory, self.products, self.latency)

    @property
    def reason(self) -> str:
        return max(vars(self), key=lambda name: float(getattr(self, name)))


def find_floor(case: Case, card: Card, precision: str, backward: bool) -> Floor:
    """The floor of a sequence forward, or forward and backward with the gradients of weights."""
    directions = [count_forward(case, precision, keep=backward)]
    if backward:
        directions.append(count_backward(case, precision))
    cached = _matrices(case) * SIZES[precision] <= card.cache
    moved = sum(sum(traffic.others.values()) * case.steps for traffic in directions)
    moved += sum(traffic.weights * (1 if cached else case.steps) for traffic in directions)
    handovers = sum(count_handovers(case, cached)) if backward else count_handovers(case, cached)[0]
    read = sum(traffic.weights for traffic in directions) / card.cache_bandwidth if cached else 0.0
    return Floor(
        moved / card.bandwidth,
        case.flops(backward) / card.rates[precision],
        case.steps * (handovers * card.handover + read),
    )


def count_handovers(case: Case, cached: bool) -> tuple[int, int]:
    """The number of times per time step, forward and backward, that the whole GPU waits for itself.

    If weights stay in the cache, the whole GPU works on one network and waits between its levels, the nodes whose
    ancestors are known. Backward has one wait more, as a node's product follows its elementwise stage and precedes the
    elementwise stage of the next level. If weights stream, each network has its own program, and a step waits for the
    one before. Weighted networks wait once more in either case, for the mixture.
    """
    mixed = int(case.coupling == "weighted")
    if not cached:
        return 1 + mixed, 1 + mixed
    levels = max(count_levels(genotype) for genotype in case.genotypes)
    return levels + mixed, levels + 1 + mixed


def count_levels(genotype: Genotype) -> int:
    """The levels of a cell including the init node: the number of successive products before its last state."""
    level = [1]
    for _, ancestor in genotype.recurrent:
        level.append(level[ancestor] + 1)
    return max(level)


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
        rows = {"weights": traffic.weights, **traffic.others, "in all": traffic.total}
        lines += [
            f"| {direction}: {what} | {_mb(count)} | {_us(count / card.bandwidth)} |" for what, count in rows.items()
        ]
    lines += ["", "| products | GF a step | µs at the rate |", "|---|---|---|"]
    for direction, backward in (("forward", False), ("forward and backward", True)):
        flops = case.flops(backward) / case.steps
        lines.append(f"| {direction} | {flops / 1e9:.2f} | {_us(flops / card.rates[precision])} |")
    lines += ["", "| floor of a sequence, ms | memory | products | latency | in all |", "|---|---|---|---|---|"]
    for direction, backward in (("forward", False), ("forward and backward", True)):
        floor = find_floor(case, card, precision, backward)
        parts = (floor.memory, floor.products, floor.latency, floor.seconds)
        lines.append(f"| {direction} | {' | '.join(f'{1e3 * part:.3f}' for part in parts)} |")
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
