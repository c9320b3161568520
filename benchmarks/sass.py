# SPDX-License-Identifier: Apache-2.0
"""Reads what one pair costs out of a kernel's machine code: the loop over the streamed side, and what is inside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

ADDRESS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
TARGET = re.compile(r"\b0x([0-9a-f]+)\s*$")
WARP_PRODUCT = re.compile(r"[HIQ]MMA\.(16)(8)(16|32|8|4)\.")  # of one warp: 16 x 8 x depth
GROUP_PRODUCT = re.compile(r"[HIQ]GMMA\.(\d+)x(\d+)x(\d+)\.")  # of the four warps of a warp group
DESCRIBED_PRODUCT = re.compile(r"UTC[HIQ]MMA")  # of the whole program; its shape is in a register, not in the name
SCALAR_PRODUCT = {"FFMA": 1, "FFMA2": 2}  # products of one lane
WARPS_OF_A_GROUP = 4
LANES = 32


class Instruction(NamedTuple):
    """One line of a disassembly."""

    address: int
    name: str  # with its modifiers, as in MUFU.EX2
    target: int | None  # of a branch


class Span(NamedTuple):
    """A loop: from the address its back edge jumps to, up to and with that back edge."""

    start: int
    stop: int

    def holds(self, address: int) -> bool:
        """Whether the instruction at this address is inside."""
        return self.start <= address <= self.stop

    def covers(self, other: Span) -> bool:
        """Whether the other loop is a smaller one inside."""
        return self != other and self.start <= other.start and other.stop <= self.stop


class Shape(NamedTuple):
    """What a program multiplies for one tile."""

    warps: int
    pairs: int  # BLOCK_N x BLOCK_M
    pair_flop: int  # floating-point operations of all products, per pair
    chunks: int  # that the width is cut into
    steps: int  # instructions that multiply for the whole program, where the shape is not in their name

    def work(self, products: Sequence[str]) -> tuple[int, int]:
        """The work of these products and that of one tile, both in the unit that the machine code shows."""
        if any(DESCRIBED_PRODUCT.match(name) for name in products):
            return len(products), self.steps
        scalar = sum(SCALAR_PRODUCT.get(base(name), 0) for name in products)
        flop = sum(program_flop(name, self.warps) for name in products) + 2 * LANES * self.warps * scalar
        return flop, self.pairs * self.pair_flop


class Loop(NamedTuple):
    """One pass through the loop over the streamed side, as one warp issues it."""

    pairs: int  # of the whole program
    warps: int
    instructions: int
    exp2: int
    special: int  # exp2, logarithms, reciprocals: they share one unit
    matrix: int
    matrix_flop: int  # of the whole program; 0 where the machine code does not tell

    def per_pair(self, count: int) -> float:
        """Lane instructions that each pair costs when every warp of the program issues `count`.

        Example:
            >>> Loop(pairs=8192, warps=8, instructions=752, exp2=32, special=32, matrix=8, matrix_flop=0).per_pair(32)
            1.0
        """
        return count * self.warps * LANES / self.pairs


def base(name: str) -> str:
    """An instruction's name without its modifiers."""
    return name.partition(".")[0]


def parse(disassembly: str) -> list[Instruction]:
    """The instructions in the output of `cuobjdump -sass`, in order of address.

    Example:
        >>> parse("        /*0040*/    @!P0 BRA 0x10 ;    /* 0xfffffffc00f08947 */")
        [Instruction(address=64, name='BRA', target=16)]
    """
    found = []
    for line in disassembly.splitlines():
        match = ADDRESS.match(line)
        if match:
            address, name, operands = match.groups()
            jump = TARGET.search(operands.strip()) if base(name) == "BRA" else None
            found.append(Instruction(int(address, 16), name, int(jump[1], 16) if jump else None))
    return found


def spans(code: Sequence[Instruction]) -> Iterator[Span]:
    """Each backward branch closes a loop; one onto itself is where a finished warp stays."""
    for instruction in code:
        if instruction.target is not None and instruction.target < instruction.address:
            yield Span(instruction.target, instruction.address)


def is_matrix(name: str) -> bool:
    """Whether this instruction runs on the tensor cores."""
    return any(pattern.match(name) for pattern in (WARP_PRODUCT, GROUP_PRODUCT, DESCRIBED_PRODUCT))


def program_flop(name: str, warps: int) -> int:
    """Floating-point operations of a matrix instruction that every warp of a program issues; 0 where it is not told."""
    match = WARP_PRODUCT.match(name) or GROUP_PRODUCT.match(name)
    if match is None:
        return 0
    rows, columns, depth = map(int, match.groups())
    shares = WARPS_OF_A_GROUP if GROUP_PRODUCT.match(name) else 1
    return 2 * rows * columns * depth * warps // shares


def product_loops(disassembly: str, shape: Shape) -> list[Loop]:
    """What one pass of each loop over the streamed side costs, in order of address; none where no loop holds a product.

    The products name the loops: the outermost ones that hold some. A loop inside that holds products runs once per
    chunk of the width, once less where the first chunk stands before it. Everything between the two ends is counted, a
    branch that may be skipped too. The products also tell how many tiles one pass covers; what is left over is work
    that warps repeat, as 8 warps of 16 rows do on 64 rows.

    Raises:
        ValueError: The products in a loop are fewer than those of one tile: the loop was misread.
    """
    code = parse(disassembly)
    on_tensor_cores = any(is_matrix(instruction.name) for instruction in code)

    def multiplies(name: str) -> bool:
        return is_matrix(name) if on_tensor_cores else base(name) in SCALAR_PRODUCT

    products = [instruction.address for instruction in code if multiplies(instruction.name)]
    working = [span for span in spans(code) if any(span.holds(address) for address in products)]
    outer = sorted(span for span in working if not any(other.covers(span) for other in working))
    return [_loop(code, whole, working, shape, multiplies, on_tensor_cores) for whole in outer]


def _loop(
    code: Sequence[Instruction], whole: Span, working: Sequence[Span], shape: Shape,
    multiplies: Callable[[str], bool], on_tensor_cores: bool,
) -> Loop:  # fmt: skip
    inner = [span for span in working if whole.covers(span)]
    for trips in (shape.chunks, shape.chunks - 1, shape.chunks):
        body = _body(code, whole, inner, trips)
        work, tile_work = shape.work([name for name in body if multiplies(name)])
        if work % tile_work == 0:
            break
    if work < tile_work:
        raise ValueError(
            f"a loop must hold the products of a tile, {tile_work} of them; got {work}; "
            "state the kernel's products in benchmarks/compile.py, or teach benchmarks/sass.py this loop"
        )
    return Loop(
        pairs=shape.pairs * (work // tile_work),
        warps=shape.warps,
        instructions=len(body),
        exp2=sum(name.startswith("MUFU.EX2") for name in body),
        special=sum(name.startswith("MUFU") for name in body),
        matrix=sum(map(is_matrix, body)),
        matrix_flop=sum(program_flop(name, shape.warps) for name in body) if on_tensor_cores else 0,
    )


def _body(code: Sequence[Instruction], whole: Span, inner: Sequence[Span], trips: int) -> list[str]:
    """Names of the instructions of one pass, those of the inner loops as often as they run."""
    names: list[str] = []
    for instruction in code:
        if whole.holds(instruction.address):
            repeated = any(span.holds(instruction.address) for span in inner)
            names += [instruction.name] * (trips if repeated else 1)
    return names
