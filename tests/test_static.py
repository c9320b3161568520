# SPDX-License-Identifier: Apache-2.0
"""The static report: the disassembly is read right, and the bounds follow from the counts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import static
from benchmarks.compile import Build, Built, compile_apart, tile_of, waits_of
from benchmarks.model import CALLS, Kinds, kinds, predicted, weighted
from benchmarks.sass import Loop, Shape, parse, product_loops, program_flop
from benchmarks.static import H200, bound_of, predict
from secl_ops.tiles import Tile

# Lines of real kernels, shortened: a prologue, the loop, the branch that parks a finished warp.
AMPERE = """
        /*0090*/                   HMMA.16816.F32.BF16 R40, R116, R76, RZ ;    /* 0x0000004c7428723c */
        /*00a0*/                   MUFU.EX2 R31, R31 ;                         /* 0x0000001f001f7308 */
                                                                               /* 0x000e620000000800 */
        /*00b0*/                   HMMA.16816.F32.BF16 R48, R112, R78, R40 ;   /* 0x0000004e7030723c */
        /*00c0*/              @!P0 MUFU.EX2 R31, R31 ;                         /* 0x0000001f001f7308 */
        /*00d0*/                   MUFU.RCP R31, R31 ;                         /* 0x0000001f001f7308 */
        /*00e0*/               @P0 CALL.REL.NOINC 0x100 ;                      /* 0x0000001000000944 */
        /*00f0*/                   BRA 0xa0 ;                                  /* 0xfffffff000007947 */
        /*0100*/              @!P0 EXIT ;                                      /* 0x000000000000894d */
        /*0110*/                   BRA 0x110;                                  /* 0xfffffffc00fc7947 */
"""
CHUNKED = """
        /*0010*/                   IMAD.MOV.U32 R1, RZ, RZ, R0 ;
        /*0020*/                   HGMMA.64x32x16.F32.BF16 R88, gdesc[UR20], R88, gsb0 ;
        /*0030*/              @!P5 BRA 0x20 ;
        /*0040*/                   MUFU.EX2 R31, R31 ;
        /*0050*/             @!UP2 BRA 0x10 ;
"""
BLACKWELL = """
        /*0010*/                   UTCHMMA gdesc[UR28], gdesc[UR18], tmem[UR15], tmem[UR22], idesc[UR23], !UPT ;
        /*0020*/              @!P1 BRA 0x20 ;
        /*0030*/                   UTCHMMA gdesc[UR28], gdesc[UR18], tmem[UR15], tmem[UR22], idesc[UR23], UPT ;
        /*0040*/                   BRA.U !UP3, 0x10 ;
"""
COPIED = """
        /*0010*/                   HGMMA.64x32x16.F32.BF16 R88, gdesc[UR20], R88, gsb0 ;
        /*0020*/                   DEPBAR.LE SB0, 0x1 ;
        /*0030*/                   HGMMA.64x32x16.F32.BF16 R88, gdesc[UR20], R88, gsb0 ;
        /*0040*/               @P3 CALL.REL.NOINC 0x60 ;
        /*0050*/                   BRA 0x20 ;
        /*0060*/                   DEPBAR.LE SB0, 0x0 ;
        /*0070*/                   MUFU.EX2 R31, R31 ;
        /*0080*/             @!UP2 BRA 0x10 ;
"""
WAITING = """
        /*0010*/                   UTCHMMA gdesc[UR28], gdesc[UR18], tmem[UR15], tmem[UR22], idesc[UR23], !UPT ;
        /*0020*/              @!P2 BRA 0x60 ;
        /*0030*/                   UTCHMMA gdesc[UR28], gdesc[UR18], tmem[UR15], tmem[UR22], idesc[UR23], UPT ;
        /*0040*/                   BRA.U !UP3, 0x10 ;
        /*0050*/                   EXIT ;
        /*0060*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR5+0x6000], R77 ;
        /*0070*/              @!P2 BRA 0x60 ;
        /*0080*/                   BRA 0x30 ;
"""


def shape(**values: int) -> Shape:
    return Shape(**{"warps": 4, "pairs": 512, "pair_flop": 32, "chunks": 1, "steps": 1, **values})


def only_loop(disassembly: str, of: Shape) -> Loop:
    (loop,) = product_loops(disassembly, of)
    return loop


def test_the_loop_is_told_from_what_stands_around_it() -> None:
    assert [instruction.address for instruction in parse(AMPERE)] == list(range(0x90, 0x120, 0x10))
    loop = only_loop(AMPERE, shape(pairs=4 * 16 * 8))
    assert loop == Loop(
        pairs=512, warps=4, instructions=6, exp2=2, special=3, matrix=1, matrix_flop=4 * 2 * 16 * 8 * 16
    )
    assert loop.per_pair(loop.exp2) == 0.5


def test_an_inner_loop_runs_once_per_chunk() -> None:
    loop = only_loop(CHUNKED, shape(pairs=64 * 32, pair_flop=2 * 16 * 4, chunks=4))
    assert (loop.instructions, loop.exp2, loop.matrix) == (3 + 2 * 4, 1, 4)
    assert loop.matrix_flop == 64 * 32 * 2 * 16 * 4


def test_the_waits_for_copies_tell_how_often_an_inner_loop_runs() -> None:
    loop = only_loop(COPIED, shape(pairs=64 * 32, pair_flop=2 * 16 * 4, chunks=4))
    assert (loop.instructions, loop.exp2, loop.matrix) == (4 + 3 * 4, 1, 4)
    assert loop.matrix_flop == 64 * 32 * 2 * 16 * 4
    repeated = only_loop(COPIED, shape(pairs=64 * 32, pair_flop=2 * 16 * 2, chunks=4))
    assert (repeated.pairs, repeated.matrix_flop) == (64 * 32, 64 * 32 * 2 * 16 * 4)  # one tile, its products twice


def test_work_beyond_a_tile_is_more_tiles_or_repeated_work() -> None:
    for tile, pairs in ((512, 512), (256, 512), (384, 384)):  # one tile, two, one and a third of it again
        loop = only_loop(AMPERE, shape(pairs=tile))
        assert loop.pairs == pairs


def test_products_whose_shape_is_in_a_register_are_counted() -> None:
    one, two = (only_loop(BLACKWELL, shape(steps=steps)) for steps in (2, 1))
    assert (one.pairs, two.pairs, one.matrix_flop) == (512, 1024, 0)


def test_a_wait_behind_the_kernels_end_is_part_of_its_loop_and_none_of_its_own() -> None:
    loop = only_loop(WAITING, shape(steps=2))
    assert (loop.pairs, loop.instructions, loop.matrix) == (512, 4 + 3, 2)


def test_a_loop_with_less_than_a_tile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must hold the products of a tile, 32768 of them; got 16384; state the"):
        product_loops(AMPERE, shape(pairs=1024))
    assert product_loops("        /*0010*/                   MUFU.EX2 R31, R31 ;", shape()) == []


def test_flop_of_matrix_instructions() -> None:
    assert program_flop("HMMA.1688.F32.TF32", 8) == 8 * 2 * 16 * 8 * 8
    assert program_flop("HGMMA.64x128x16.F32.BF16", 8) == 2 * 2 * 64 * 128 * 16
    assert program_flop("FFMA", 8) == 0


@pytest.mark.parametrize(
    ("width", "products", "milliseconds"),
    [(64, 1, 1.16), (128, 1, 1.39), (64, 2, 1.39), (128, 2, 2.78), (256, 2, 5.57)],
)
def test_a_loop_of_nothing_but_its_mathematics_takes_the_floors_of_the_design(
    width: int, products: int, milliseconds: float
) -> None:
    loop = Loop(pairs=8192, warps=8, instructions=40, exp2=32, special=32, matrix=8, matrix_flop=0)
    flop = 2 * width * products
    bound = predict(loop, H200, pair_flop=flop, useful_flop=flop)
    assert f"{1e3 * 65536**2 * bound.seconds_per_pair:.2f}" == f"{milliseconds:.2f}"
    assert bound.limit == ("exp2" if (width, products) == (64, 1) else "matrix")


def test_a_bound_is_the_busiest_units() -> None:
    loop = Loop(pairs=8192, warps=8, instructions=752, exp2=32, special=32, matrix=8, matrix_flop=0)
    crowded = predict(loop, H200, pair_flop=256, useful_flop=256)
    assert crowded.limit == "issue"
    repeating = predict(loop._replace(instructions=40, matrix_flop=8192 * 512), H200, pair_flop=256, useful_flop=256)
    assert (repeating.limit, round(repeating.share, 3)) == ("matrix", 0.5)


def test_a_real_kernel_is_read_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    case = Build("scan", "bf16", 64, 90, False, True)
    (built,) = compile_apart([case])
    assert built.unread == ""
    assert built.far is not None
    assert built.near is not None
    assert built.far.pairs % (128 * 64) == 0
    assert built.far.per_pair(built.far.exp2) == 1.0
    assert built.far.matrix_flop == built.far.pairs * 2 * 64
    assert built.near.instructions > built.far.instructions  # it looks at each pair
    assert min(built.waits) >= 1
    bound = bound_of(case, built)
    assert bound is not None
    assert 0 < bound.share < 1
    assert bound_of(case._replace(capability=80), built) is None
    table = tmp_path / "static.csv"
    static.report(table, full=False, only=str(case))
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["exp2_per_pair"], row["spill_bytes"], row["wgmma"]) == ("1.00", "0", "yes")
    assert row["predicted_percent_of_790"] == f"{100 * bound.share:.1f}"
    assert float(row["far_per_pair"]) < float(row["weighted_per_pair"]) < float(row["near_per_pair"])
    assert "predicted, not measured" in capsys.readouterr().out
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], "old" + lines[1], lines[1].replace("," + row["commit"], ",old")]) + "\n")
    static.report(table, full=False, only=str(case))
    assert table.read_text().splitlines() == [lines[0], "old" + lines[1], lines[1]]  # its row anew, the other kept


def test_waits_outside_a_loop_are_none_of_its() -> None:
    code = """
    scf.for %i = %a to %b {
      %w = ttg.async_wait %c {num = 1 : i32}
      scf.if %d {
        %v = ttg.async_wait %c {num = 3 : i32}
      } else {
      }
    }
    %x = ttg.async_wait {num = 0 : i32}
    """
    assert waits_of(code) == (1, 3)


def test_a_tile_of_every_kind_is_weighted_as_often_as_it_comes() -> None:
    case = Build("mean", "bf16", 128, 90, False, True)
    pairs = tile_of(case).block_n * tile_of(case).block_m
    far, near = (Loop(pairs, 8, instructions * pairs // 256, 0, 0, 0, 0) for instructions in (5, 50))
    assert weighted(case, Built(far=far, near=near)) == pytest.approx(5.0)
    below = weighted(case._replace(negatives=True), Built(far=far, near=near))
    assert below is not None
    assert 5.0 * 17 / 19 < below < 5.0 + 45 * 3 / 19  # a class of 19 is left out, its edges are looked at
    assert weighted(case, Built()) is None


def test_predictions_grow_with_the_work_and_refuse_what_was_not_read() -> None:
    builds = {}
    for name in ("mean", "scan", "keys", "self"):
        case = Build(name, "bf16", 128, 90, False, True)
        pairs = tile_of(case).block_n * tile_of(case).block_m
        loop = Loop(pairs, 8, 6 * pairs // 256, pairs // 256, pairs // 256, 16, pairs * 512)
        builds[name, False] = (case, Built(registers=128, shared=65536, far=loop, near=loop))
    both, frozen, shared, few, fewest = (predicted(call, builds, negatives=False) for call in CALLS)
    assert both > shared > frozen > few > fewest > 0.02
    assert frozen >= 2.78  # what 790 TFLOP/s need for the products alone
    case, built = builds["mean", False]
    with pytest.raises(ValueError, match="no loops that could be read"):
        predicted(CALLS[1], {("mean", False): (case, built._replace(far=None))}, negatives=False)


def test_kinds_of_tiles_cover_all_pairs_once() -> None:
    tile = Tile(64, 64, 64, 64, 4, 2)
    assert kinds(256, 320, 3, tile, hole=False, positive=False, shared=False) == Kinds(20, 0)
    holed = kinds(256, 256, 2, tile, hole=True, positive=False, shared=False)
    assert holed == Kinds(8, 0)
    assert kinds(256, 256, 2, tile, hole=True, positive=True, shared=False) == Kinds(8, 8)
    ragged = kinds(250, 330, 3, tile, hole=False, positive=False, shared=False)
    assert ragged == Kinds(20, 4)


def test_the_report_fails_on_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "compile_apart", lambda wanted: [Built(stack=8, wgmma=True)] * len(wanted))
    with pytest.raises(SystemExit, match="scan-bf16-64-sm90-all-plain: spills 8 bytes"):
        static.report(tmp_path / "static.csv", full=False, only="scan-bf16-64-sm90-all")
    with pytest.raises(SystemExit, match="--kernel must be part of a configuration's name"):
        static.report(tmp_path / "static.csv", full=False, only="no such kernel")
