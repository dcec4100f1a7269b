"""`python -m bench.model`: microseconds that machine code for sm_90 predicts, to be compared with those measured.

One warp runs through the code: an instruction waits for the results that it needs, and lets as many others issue as
share its scheduler. All warps of a program are taken to do the same at the same time, all data to be in the L2 cache,
and all activations to be computed. So what is predicted is the kernel alone; memory may take longer (`bench.floors`).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.floors import CARDS
from wenet_kernels import aot
from wenet_kernels.machine_code import Block, Instruction, find_loops, is_wide_product, main_loop

HERTZ = 1.85e9
SCHEDULERS = 4  # of a multiprocessor
REGISTERS, SHARED = 65536, 233472  # of a multiprocessor; bytes of shared memory
MULTIPLICATIONS = 2048  # of bf16 a cycle, of a multiprocessor
# Cycles until a result is there; what is not named takes `OTHERS`.
LATENCIES = {"LDG": 270, "LDS": 30, "LDSM": 33, "SHFL": 24, "MUFU": 24, "HMMA": 33, "BAR": 30, "S2R": 25, "LDC": 40}
LATENCIES |= {"LDGSTS": 270, "RED": 270, "ATOMG": 400}
OTHERS = 12
READERS = 1, 2  # nodes that read a state, on average, and in DARTS_V2 where only one level is computed


@dataclass
class Warp:
    """A warp on its way, with the cycle at which each scoreboard and each group of copies will be free."""

    sharing: float  # warps of a scheduler
    now: float = 0.0
    issued: int = 0
    moved: int = 0  # bytes of its threads, to or from registers
    copied: int = 0  # and to shared memory
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * 6)
    copies: float = 0.0  # when the copies of the open group arrive
    groups: list[float] = field(default_factory=list)
    matrix_units: float = 0.0  # when they have done what they were given

    def issue(self, each: Instruction) -> None:
        for number in each.waits:
            self.now = max(self.now, self.scoreboards[number])
        self._wait_for_others(each)
        arrival = self.now + LATENCIES.get(each.kind, OTHERS)
        if each.sets is not None:
            self.scoreboards[each.sets] = max(self.scoreboards[each.sets], arrival)
        if each.reads is not None:
            self.scoreboards[each.reads] = max(self.scoreboards[each.reads], self.now + OTHERS)
        if each.kind == "LDGSTS":
            self.copies = arrival
        elif each.kind == "LDGDEPBAR":
            self.groups.append(self.copies)
        self.now += max(each.stall, self.sharing)
        self.issued += 1
        if each.kind == "LDGSTS":
            self.copied += 32 * each.bytes_of_copy
        else:
            self.moved += 32 * each.bytes_of_copy

    def _wait_for_others(self, each: Instruction) -> None:
        """Wait for copies, for matrix units or for other warps."""
        if each.kind == "DEPBAR":
            behind = int(found[1], 16) if (found := re.search(r"SB0, 0x([0-9a-f]+)", each.operands)) else 0
            arrived = self.groups[: len(self.groups) - behind]
            self.now = max([self.now, *arrived[-1:]])
        elif is_wide_product(each):
            busy = SCHEDULERS * self.sharing * work(each) / MULTIPLICATIONS
            self.matrix_units = max(self.now, self.matrix_units) + busy
        elif each.kind == "WARPGROUP" and "DEPBAR" in each.name:
            self.now = max(self.now, self.matrix_units)
        elif each.kind == "BAR":
            self.now += LATENCIES["BAR"]


def work(each: Instruction) -> int:
    """Multiplications of a warp in an instruction of its matrix unit."""
    if found := re.search(r"HGMMA\.(\d+)x(\d+)x(\d+)", each.name):
        return math.prod(map(int, found.groups())) // 4
    depths = {"16816": 16, "1688": 8, "1684": 4}
    return next((16 * 8 * depths[part] for part in each.name.split(".") if part in depths), 0)


@dataclass(frozen=True)
class Prediction:
    """A launch.

    Attributes:
        programs: of its grid.
        instructions: of a warp.
        moved: bytes between the L2 cache and the multiprocessors.
        alone: seconds of the programs, were the L2 cache without bounds.
        cache: seconds of that cache.
    """

    programs: int
    instructions: int
    moved: float
    alone: float
    cache: float

    @property
    def seconds(self) -> float:
        return max(self.alone, self.cache)


def predict(launch: aot.Launch, usage: aot.Usage, rows: int, multiprocessors: int = 132) -> Prediction:
    """The time of a launch; `rows` are those of all steps, for the weight gradients."""
    warps = int(launch.options["num_warps"])
    resident = max(1, min(REGISTERS // ((usage.registers or 255) * 32 * warps), SHARED // (usage.shared + 1024)))
    programs = math.prod(launch.grid)
    resident = min(resident, -(-programs // multiprocessors))
    warp = Warp(max(1.0, resident * warps / SCHEDULERS))
    whole = find_loops(usage.code)
    _run(warp, whole, _trips(launch, whole, rows))
    waves = programs / (resident * multiprocessors)
    of_state, of_factors = _useful(launch, rows)
    moved = warps * programs * (of_state * warp.moved + of_factors * warp.copied)
    alone = max(1.0, waves) * warp.now / HERTZ
    return Prediction(programs, warp.issued, moved, alone, moved / CARDS["h200"].cache_bandwidth)


def _useful(launch: aot.Launch, rows: int) -> tuple[float, float]:
    """The useful parts of what code moves: of tiles of a state, and of copies of a weight or another factor."""
    options: dict[str, Any] = launch.options
    if "DEPTH" not in options:
        return 1.0, 1.0
    size = options.get("TILE") or options["COLUMNS"]
    columns = options["H"] / (-(-options["H"] // size) * size)
    inner = rows if "TILE" in options else options["H"] if "KEEP" in options else options["H"] * _parts(options)
    trips = -(-inner // options["DEPTH"])
    # The first copies come before the loop, so the last trips of the loop have nothing left to copy.
    depth = inner / options["DEPTH"] / (trips + options["num_stages"] - 1)
    return columns * (columns if "TILE" in options else options["M"] / options["ROWS"]), columns * depth


def _run(warp: Warp, block: Block, trips: Callable[[Block], int]) -> None:
    for _ in range(trips(block) if block.loop else 1):
        for part in block.parts:
            if isinstance(part, Block):
                _run(warp, part, trips)
            else:
                warp.issue(part)


def _trips(launch: aot.Launch, whole: Block, rows: int) -> Callable[[Block], int]:
    """How often loops run: over nodes, over the inner dimension, over pieces of a state, or over lines of a weight."""
    from wenet_kernels.triton.kernels import LINE_BYTES, LINES

    nodes, product = main_loop(whole), _multiplications(launch, rows)
    options: dict[str, Any] = launch.options
    fused = options.get("LEVELS") is False

    def count(block: Block) -> int:
        own = sum(map(work, block.own))
        if own:
            return max(1, round(product / own))
        if block is nodes and fused:
            first, last = launch.operands[-2:]
            assert isinstance(first, int)
            assert isinstance(last, int)
            return last - first if "KEEP" in options else first - last + 1
        if any(each.kind == "CCTL" for each in block.own):
            weight = options["H"] * options["PITCH"] * (2 if options["HIGHWAY"] else 1) * 2
            return -(-weight // (LINE_BYTES.value * LINES.value))
        if any(map(work, block.all)):
            return int(options.get("BLOCKS", 1))
        if "HEAD" in options and not any(each.kind == "STG" for each in block.all):
            return READERS[bool(options["LEVELS"])] if not options["HEAD"] or fused else 0
        if "PIECE" in options:
            return int(options["BLOCKS"] * options["COLUMNS"] // options["PIECE"])
        return 4  # blocks of networks of a sum

    return count


def _multiplications(launch: aot.Launch, rows: int) -> float:
    """Of a warp in one product of a tile."""
    options: dict[str, Any] = launch.options
    if "TILE" in options:
        elements, inner = options["TILE"] ** 2, rows
    elif "DEPTH" in options:
        parts = _parts(options)
        elements = options["ROWS"] * options["COLUMNS"] * (parts if "KEEP" in options else 1)
        inner = options["H"] if "KEEP" in options else parts * options["PITCH"]
    else:
        return 0.0
    depth = options["DEPTH"]
    return float(elements * -(-inner // depth) * depth / options["num_warps"])


def _parts(options: dict[str, Any]) -> int:
    """Gate and candidate, or only the candidate."""
    return 2 if options["HIGHWAY"] else 1


def report(setting: str, steps: int = 35) -> list[str]:
    """A table of the launches of a window, with the launches of each kernel and their time."""
    sizes = aot.SETTINGS[setting]
    card = CARDS["h200"]
    lines = [
        f"{setting}, {steps} steps, at {HERTZ / 1e9} GHz",
        "",
        "| kernel | launches | programs | instructions of a warp | MB through L2 | µs each | without L2's bound "
        "| ms in all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total = {"forward": 0.0, "backward": 0.0}
    for launches in _group(aot.record_step(sizes, torch.device("meta"), aot.MACHINES["sm_90"], keep=True)):
        usage = aot.compile_launch(launches[0], "sm_90")
        found = [predict(launch, usage, steps * sizes["rows"]) for launch in launches]
        times = steps if _in_every_step(launches[0]) else 1
        spent = times * sum(each.seconds + card.handover for each in found)
        total["forward" if _is_forward(launches[0]) else "backward"] += spent
        kernel = f"`{launches[0].name}` {launches[0].variant}".strip()
        lines.append(
            f"| {kernel} | {times * len(found)} | {_range(each.programs for each in found)} | {found[0].instructions} "
            f"| {_range(round(each.moved / 1e6, 1) for each in found)} "
            f"| {_range(round(1e6 * each.seconds, 1) for each in found)} "
            f"| {_range(round(1e6 * each.alone, 1) for each in found)} | {1e3 * spent:.2f} |"
        )
    both = total["forward"] + total["backward"]
    return [*lines, "", f"forward {1e3 * total['forward']:.2f} ms, with backward {1e3 * both:.2f} ms"]


def _group(launches: Sequence[aot.Launch]) -> list[list[aot.Launch]]:
    """Launches of the same code together."""
    groups: dict[tuple[object, ...], list[aot.Launch]] = {}
    for launch in launches:
        groups.setdefault((launch.kernel, *launch.options.items()), []).append(launch)
    return list(groups.values())


def _range(numbers: Iterable[float]) -> str:
    least, most = min(found := list(numbers)), max(found)
    return f"{least}" if least == most else f"{least}-{most}"


def _is_forward(launch: aot.Launch) -> bool:
    return "KEEP" in launch.options or bool(launch.options.get("ROUND"))


def _in_every_step(launch: aot.Launch) -> bool:
    """Not the weight gradients, nor the sum of the networks' derivatives of h0."""
    options = launch.options
    return "TILE" not in options and not ("ADD" in options and not options["ADD"] and not options["ROUND"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.model", description=__doc__)
    parser.add_argument("--setting", nargs="+", choices=aot.SETTINGS, default=list(aot.MAIN))
    parser.add_argument("--steps", type=int, default=35, help="of a window (default: %(default)s)")
    options = parser.parse_args(arguments)
    for setting in options.setting:
        print("\n".join(report(setting, options.steps)), end="\n\n")


if __name__ == "__main__":
    main()
