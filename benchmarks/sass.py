# SPDX-License-Identifier: Apache-2.0
"""Reads what one pair costs out of a kernel's machine code: the loop over the streamed side, and what is inside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

ADDRESS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
TARGET = re.compile(r"^(!?U?P\w+,\s*)?0x([0-9a-f]+)$")  # of a branch, after its condition
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
    target: int | None = None  # of a branch
    ends: bool = False  # what follows is reached from elsewhere alone


Places = frozenset[int]  # of the instructions in a loop


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
        [Instruction(address=64, name='BRA', target=16, ends=False)]
    """
    found = []
    for line in disassembly.splitlines():
        match = ADDRESS.match(line)
        if match:
            address, predicate, name, operands = match.groups()
            jump = TARGET.match(operands.strip()) if base(name) in ("BRA", "CALL") else None  # a call may be a jump
            ends = base(name) in ("EXIT", "RET") or (base(name) == "BRA" and jump is not None and jump[1] is None)
            target = int(jump[2], 16) if jump else None
            found.append(Instruction(int(address, 16), name, target, ends and predicate is None))
    return found


def _followers(code: Sequence[Instruction]) -> list[list[int]]:
    """Places of the instructions that may come next after each one."""
    place: dict[int | None, int] = {instruction.address: at for at, instruction in enumerate(code)}
    after = [None if instruction.ends or at + 1 == len(code) else at + 1 for at, instruction in enumerate(code)]
    jumps = [place.get(instruction.target) for instruction in code]
    return [[at for at in both if at is not None] for both in zip(after, jumps, strict=True)]


def _edges(following: Sequence[Sequence[int]]) -> tuple[dict[int, list[int]], list[tuple[int, int]]]:
    """What leads to each instruction from the first one on, and the steps that lead back to where a path came by."""
    leading: dict[int, list[int]] = {0: []}
    back: list[tuple[int, int]] = []
    path, open_paths = {0: None}, [(0, iter(following[0]))]
    while open_paths:
        at, rest = open_paths[-1]
        other = next(rest, None)
        if other is None:
            open_paths.pop()
            del path[at]
            continue
        if other in path:
            back.append((at, other))
        elif other not in leading:
            path[other] = None
            open_paths.append((other, iter(following[other])))
        leading.setdefault(other, []).append(at)
    return leading, back


def loops_of(code: Sequence[Instruction]) -> list[Places]:
    r"""Every loop, in order of where it is entered: all that leads back there.

    A jump backwards alone closes none: waits stand behind a kernel's end and jump back into its middle.

    Example:
        >>> lines = ["/*0010*/ MOV ;", "/*0020*/ @P0 BRA 0x50 ;", "/*0030*/ BRA 0x10 ;", "/*0040*/ EXIT ;"]
        >>> [sorted(body) for body in loops_of(parse("\n".join(f"  {line}" for line in lines)))]
        [[0, 1, 2]]
    """
    if not code:
        return []
    leading, back = _edges(_followers(code))
    bodies: dict[int, set[int]] = {}
    for last, first in back:
        body, reached = bodies.setdefault(first, {first}), [last]
        while reached:
            at = reached.pop()
            if at not in body:
                body.add(at)
                reached += leading[at]
    return [frozenset(bodies[first]) for first in sorted(bodies)]


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

    The products name the loops: the outermost ones that hold some. A loop inside that holds products runs over the
    chunks of the width, of which some may stand before it. Everything that leads back is counted, a branch that may be
    skipped too. The waits for copies tell how many chunks and tiles one pass covers, the products where there are none;
    what is left over is work that warps repeat, as 8 warps of 16 rows do on 64 rows.

    Raises:
        ValueError: The products in a loop are fewer than those of one tile: the loop was misread.
    """
    code = parse(disassembly)
    on_tensor_cores = any(is_matrix(instruction.name) for instruction in code)

    def multiplies(name: str) -> bool:
        return is_matrix(name) if on_tensor_cores else base(name) in SCALAR_PRODUCT

    products = frozenset(at for at, instruction in enumerate(code) if multiplies(instruction.name))
    working = [body for body in loops_of(code) if body & products]
    outer = [body for body in working if not any(body < other for other in working)]
    return [_loop(code, whole, working, shape, multiplies, on_tensor_cores) for whole in outer]


def _loop(
    code: Sequence[Instruction], whole: Places, working: Sequence[Places], shape: Shape,
    multiplies: Callable[[str], bool], on_tensor_cores: bool,
) -> Loop:  # fmt: skip
    inner = frozenset[int]().union(*(body for body in working if body < whole))
    within, around = (sum(base(code[at].name) == "DEPBAR" for at in places) for places in (inner, whole - inner))
    # The first chunk needs no wait of its own; one stands after the loop over the others.
    likely = (max(1, (shape.chunks - around) // within),) if within else (shape.chunks, shape.chunks - 1, shape.chunks)
    for trips in likely:
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
        pairs=shape.pairs * (1 if within else min(around or work, work // tile_work)),
        warps=shape.warps,
        instructions=len(body),
        exp2=sum(name.startswith("MUFU.EX2") for name in body),
        special=sum(name.startswith("MUFU") for name in body),
        matrix=sum(map(is_matrix, body)),
        matrix_flop=sum(program_flop(name, shape.warps) for name in body) if on_tensor_cores else 0,
    )


def _body(code: Sequence[Instruction], whole: Places, inner: Places, trips: int) -> list[str]:
    """Names of the instructions of one pass, those of the inner loops as often as they run."""
    return [code[at].name for at in sorted(whole) for _ in range(trips if at in inner else 1)]
