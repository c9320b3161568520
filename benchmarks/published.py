# SPDX-License-Identifier: Apache-2.0
"""What is timed: published sizes with their sources, the plain kinds of contrast, and the square sweep."""

from __future__ import annotations

from benchmarks.cases import SIGMOID, Case

ALL, NEGATIVES = "all", "negatives"


def _small_first(*cases: Case) -> tuple[Case, ...]:
    """In this order they are timed, printed and drawn."""
    return tuple(sorted(cases, key=lambda case: (case.pairs, case.width)))


# Per-anchor gathers (ReCo and its descendants, U2PL, Chaitanya) are timed as N anchors against as many negatives that
# all of them share: the same number of pairs as one matrix product. The prototype or pair is one more key.
PUBLISHED = _small_first(
    Case("chaitanya-local", 312, 128, 11, denominator=NEGATIVES, layout="prototype", title="Chaitanya local",
         source="NeurIPS 2020, domain_specific_cl@e5aae80: 13 regions x 24 images, 10 negatives, tau 0.1"),
    Case("ugpcl", 64, 256, 2000, denominator=NEGATIVES, temperature=0.07, classes=4, title="UGPCL",
         source="IJCAI 2022, UGPCL@5980405: 16 images x 4 classes, 4 x 500 segment means"),
    Case("u2pl", 256, 256, 51, denominator=NEGATIVES, temperature=0.5, layout="prototype", title="U2PL, a class",
         source="CVPR 2022, U2PL@ab3d2be: 256 anchors x 50 negatives of a class"),
    Case("reco", 256, 256, 513, denominator=NEGATIVES, temperature=0.5, layout="prototype", title="ReCo, a class",
         source="ICLR 2022, reco@71c1b73: 256 anchors x 512 negatives of a class"),
    Case("mona", 256, 512, 513, denominator=NEGATIVES, temperature=0.5, layout="prototype", title="MONA, a class",
         source="TPAMI 2024, MONA@3c70567, and ACTION, ARCO: 256 anchors x 512 negatives of a class, D 512"),
    Case("contrastiveseg", 1024, 256, denominator=NEGATIVES, temperature=0.07, classes=19, title="ContrastiveSeg",
         source="ICCV 2021, ContrastiveSeg@287e5d3: at most 1,024 anchors against themselves"),
    Case("contrastiveseg-memory", 1024, 256, 190_000, denominator=NEGATIVES, temperature=0.07, classes=19,
         title="ContrastiveSeg + memory", source="ICCV 2021, H_48_D_4_MEM.json: 19 x (5,000 + 5,000) keys"),
    Case("dycon", 2352, 256, denominator=NEGATIVES, temperature=0.6, classes=2, title="DyCON, a volume",
         source="CVPR 2025, DyCON@69c1384: bottleneck map of 112 x 112 x 96 at stride 8"),
    Case("zhao-within", 4225, 256, denominator=NEGATIVES, temperature=0.07, classes=21, title="Zhao, one image",
         source="ICCV 2021, supervised_pixel_contrastive_loss: all pixels of a 65 x 65 map"),
    Case("zhao-cross", 8450, 256, denominator=NEGATIVES, temperature=0.07, classes=21, title="Zhao, two images",
         source="ICCV 2021, supervised_pixel_contrastive_loss: all pixels of two 65 x 65 maps"),
    Case("hu", 12_800, 256, classes=8, title="Hu, MMWHS",
         source="MICCAI 2021, semi_cotrast_seg@71f1157: 160 / 4 squared, 4 images, 2 views"),
    Case("rcps", 15_680, 64, 15_680, denominator=NEGATIVES, layout="pairs", title="RCPS, left atrium",
         source="JBHI 2023, RCPS@a9c32f1: 28 x 28 x 20 voxels, the matrix from which it takes the top 400"),
    Case("cac", 12_800, 128, 51_200, denominator=NEGATIVES, layout="pairs", title="CAC",
         source="CVPR 2021, Context-Aware-Consistency@4fdec7a: 40 x 40 x 8 anchors on 2 GPUs"),
    Case("caml", 12_800, 64, 512, denominator=NEGATIVES, classes=2, title="CAML",
         source="MICCAI 2023, CAML@b635479, its shape alone: 12,800 voxels, 256 of each of 2 classes"),
    Case("densecl", 12_544, 128, 65_536, denominator=NEGATIVES, temperature=0.2, layout="pairs", title="DenseCL",
         source="CVPR 2021, DenseCL@b64bbb6: 49 cells x 256 images, a queue of 65,536"),
    Case("mona-queue", 1024, 512, 140_000, denominator=NEGATIVES, temperature=0.5, classes=4, title="MONA, whole queue",
         source="MONA@3c70567: 4 x 256 anchors, its queues of 3 x 30,000 + 50,000 as keys of all of them"),
    Case("acdc-every-4th", 98_304, 64, classes=4, title="ACDC, stride 4",
         source="every pixel of 24 slices of 256 x 256 at stride 4"),
    Case("acdc-every-pixel", 1_572_864, 64, classes=4, title="ACDC, every pixel",
         source="every pixel of 24 slices of 256 x 256"),
)  # fmt: skip

KINDS = (
    *(
        Case(
            f"self-{denominator}-N{rows}-D128",
            rows,
            128,
            denominator=denominator,
            title=f"Self-contrast, {denominator}, {rows:,}",
        )
        for denominator in (ALL, NEGATIVES)
        for rows in (1024, 4096)
    ),
    *(
        Case(
            f"frozen-{denominator}-N1024-M65536-D256",
            1024,
            256,
            65_536,
            denominator=denominator,
            title=f"Frozen keys, {denominator}",
        )
        for denominator in (ALL, NEGATIVES)
    ),
    Case("both-all-N4096-M4096-D128", 4096, 128, 4096, both=True, title="Both sides learn"),
    Case("pairs-all-N4096-M4096-D128", 4096, 128, 4096, both=True, layout="pairs", title="Pairs, both sides learn"),
    Case("self-sigmoid-N4096-D128", 4096, 128, denominator=SIGMOID, title="Self-contrast, sigmoid, 4,096"),
    Case(
        "both-sigmoid-N4096-M4096-D128",
        4096,
        128,
        4096,
        both=True,
        denominator=SIGMOID,
        layout="pairs",
        title="SigLIP's loss, both sides learn",
        source="ICCV 2023, arXiv:2303.15343: scale 10, bias -10 at its start",
    ),
)

CASES = _small_first(*PUBLISHED, *KINDS)

SQUARE_ROWS = tuple(1 << exponent for exponent in range(10, 19))  # 1k to 262k
SQUARE_WIDTHS = (64, 128, 256)


def square(rows: int, width: int, kind: str) -> Case:
    """One size of the sweep N = M: "self", "frozen" or "both"."""
    keys = 0 if kind == "self" else rows
    return Case(f"square-{kind}-N{rows}-D{width}", rows, width, keys, both=kind == "both")


def listing() -> str:
    """Every case with its shape and where that comes from, as a table."""
    lines = [f"{'case':24}{'N':>10}{'M':>10}{'D':>5}{'tau':>6}  {'contrast':10}{'denominator':13}{'GFLOP':>12}  source"]
    for case in CASES:
        keys = case.keys or case.rows
        lines.append(
            f"{case.name:24}{case.rows:>10,}{keys:>10,}{case.width:>5}{case.temperature:>6g}  {case.kind:10}"
            f"{case.denominator:13}{case.flop / 1e9:>12,.2f}  {case.source}".rstrip()
        )
    return "\n".join(lines)
