"""Instructions of NVIDIA's machine code, as `cuobjdump -sass` lists them, and their loops."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LINE = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z][A-Za-z0-9_.]*)(?P<operands>[^;]*);"
    r"(?:\s*/\* 0x[0-9a-f]+ \*/\s*\n\s+/\* 0x(?P<control>[0-9a-f]+) \*/)?",
    re.MULTILINE,
)
NO_SCOREBOARD = 7


@dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
        stall: cycles before the warp's next instruction.
        sets: the scoreboard that it releases with its result, or None; `reads` the one released with its operands.
        waits: the scoreboards that it waits for.
    """

    address: int
    name: str
    operands: str
    stall: int = 1
    sets: int | None = None
    reads: int | None = None
    waits: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        return self.name.split(".")[0]

    @property
    def bytes_of_copy(self) -> int:
        """Bytes that a thread moves between memory and registers or shared memory; 0 of other instructions."""
        if self.kind not in ("LDG", "STG", "LDGSTS"):
            return 0
        widths = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
        return next((widths[part] for part in self.name.split(".") if part in widths), 4)


def read_listing(listing: str) -> list[Instruction]:
    """The instructions of a kernel, in order."""
    found = []
    for address, name, operands, control in LINE.findall(listing):
        bits = int(control, 16) >> 41 if control else 0  # NVIDIA keeps this for itself; known by experiments of others
        sets, reads = bits >> 5 & 7, bits >> 8 & 7
        found.append(
            Instruction(
                int(address, 16),
                name,
                operands.strip(),
                bits & 15 if control else 1,
                sets if control and sets != NO_SCOREBOARD else None,
                reads if control and reads != NO_SCOREBOARD else None,
                tuple(number for number in range(6) if bits >> 11 >> number & 1),
            )
        )
    return found


@dataclass
class Block:
    """Instructions that follow each other, some of which are loops; `loop` tells whether this is one itself."""

    parts: list[Instruction | Block] = field(default_factory=list)
    loop: bool = False

    @property
    def own(self) -> list[Instruction]:
        """The instructions that are in no loop within."""
        return [part for part in self.parts if isinstance(part, Instruction)]

    @property
    def loops(self) -> list[Block]:
        return [part for part in self.parts if isinstance(part, Block)]

    @property
    def all(self) -> list[Instruction]:
        """All instructions, each once."""
        return [each for part in self.parts for each in (part.all if isinstance(part, Block) else [part])]


def find_loops(instructions: Sequence[Instruction]) -> Block:
    """The instructions as blocks: what lies between a branch back and its target is a loop."""
    ends: dict[int, int] = {}  # by the address of the first instruction
    for each in instructions:
        target = re.search(r"0x([0-9a-f]+)", each.operands)
        if each.kind == "BRA" and target and int(target[1], 16) < each.address:
            ends[int(target[1], 16)] = each.address  # the last branch to it, where there are several
    whole = Block()
    stack: list[tuple[Block, int]] = []
    for each in instructions:
        if each.address in ends:
            block = Block(loop=True)
            (stack[-1][0] if stack else whole).parts.append(block)
            stack.append((block, ends[each.address]))
        (stack[-1][0] if stack else whole).parts.append(each)
        while stack and each.address >= stack[-1][1]:
            stack.pop()
    return whole


def main_loop(whole: Block) -> Block:
    """The longest loop that is in no other, of those with a product if any: over nodes, or over a product's depth."""

    def rank(block: Block) -> tuple[bool, int]:
        return any(each.kind == "HMMA" or is_wide_product(each) for each in block.all), len(block.all)

    return max(whole.loops, key=rank, default=whole)


@dataclass(frozen=True)
class Counts:
    """Instructions of a kind, each as often as it stands in the code.

    Attributes:
        instructions: all of them.
        barriers: of a program.
        copies: from memory to registers or shared memory, by the bytes that a thread moves.
        products: of matrices, by one warp.
        wide_products: by four warps, with operands that matrix units read from shared memory (wgmma and later).
        fences: before such products.
        spills: to a thread's own memory.
    """

    instructions: int
    barriers: int
    copies: dict[int, int]
    products: int
    wide_products: int
    fences: int
    spills: int


def is_wide_product(each: Instruction) -> bool:
    return each.kind == "HGMMA" or (each.kind.startswith("UTC") and each.kind.endswith("MMA"))


def is_fence(each: Instruction) -> bool:
    return each.name.startswith("FENCE.VIEW.ASYNC")


def count(instructions: Iterable[Instruction]) -> Counts:
    instructions = list(instructions)
    copies: dict[int, int] = {}
    for each in instructions:
        if each.kind in ("LDG", "LDGSTS"):
            copies[each.bytes_of_copy] = copies.get(each.bytes_of_copy, 0) + 1
    kinds = [each.kind for each in instructions]
    return Counts(
        len(instructions),
        kinds.count("BAR"),
        dict(sorted(copies.items(), reverse=True)),
        kinds.count("HMMA"),
        sum(map(is_wide_product, instructions)),
        sum(map(is_fence, instructions)),
        kinds.count("LDL") + kinds.count("STL"),
    )


def count_unfenced(instructions: Iterable[Instruction]) -> int:
    """Count products that read shared memory directly and may miss copied data.

    A fence must stand between the arrival of copies (DEPBAR) or a store (STS, STSM) and such a product.
    """
    unfenced = 0
    written = False
    for each in instructions:
        if each.kind in ("DEPBAR", "STS", "STSM"):
            written = True
        elif is_fence(each):
            written = False
        elif is_wide_product(each):
            unfenced += written
    return unfenced
