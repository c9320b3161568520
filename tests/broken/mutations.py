# SPDX-License-Identifier: Apache-2.0
"""What happens to people's files: half copies, edits, other programs, odd names, odd headers."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 3, 300, 1e400, float("nan"), 2**63, "", "x", "0", "1.5", "../../x", "\0", "é", "a\nb",
    [], [1], {}, {"0": "a"}, [[]], "x" * 5000,
)  # fmt: skip
TEXTS = (
    "", "\0", "é", ",", ";", "\n", "\r\n", '"', "{", "[" * 3000, "1e999", "-1", "nan", "inf", "3.0000000001", "../",
    "\ufeff", "x" * 200_000, "\u202e", "=", "None", "\udcff",
)  # fmt: skip
# Place and format of what readers of a NIfTI-1 header look at.
FIELDS = {
    "size": (0, "<i"), "dim": (40, "<8h"), "intent": (68, "<h"), "datatype": (70, "<h"), "bitpix": (72, "<h"),
    "pixdim": (76, "<8f"), "offset": (108, "<f"), "slope": (112, "<f"), "inter": (116, "<f"), "units": (123, "<B"),
    "qform": (252, "<h"), "sform": (254, "<h"), "quaternion": (256, "<3f"), "origin": (268, "<3f"),
    "srow": (280, "<12f"), "magic": (344, "4s"),
}  # fmt: skip
NUMBERS = (0, 1, -1, 2, 3, 7, 300, 32000, -32000)
FLOATS = (0.0, -1.0, 1.0, 1e-30, 1e30, float("nan"), float("inf"), 0.5, -8.0)


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 4, 40)) if content else 0):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content)


def _cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) + 1)])


def _append(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.choice((1, 100, 5000))))


def _replace(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.choice((b"", b"\0" * 400, draw.randbytes(400), b"<html>404</html>", b"\x1f\x8b")))


def _header(path: Path, draw: random.Random) -> None:
    """Another value in a header that is whole otherwise."""
    packed = path.name.endswith(".gz")
    try:
        content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    except (OSError, EOFError, zlib.error):  # broken already
        return
    content += b"\0" * max(0, 352 - len(content))
    for name in draw.sample(sorted(FIELDS), draw.choice((1, 1, 2, 4))):
        place, form = FIELDS[name]
        if form == "4s":
            values: tuple[Any, ...] = (draw.choice((b"ni1\0", b"n+2\0", b"\0\0\0\0")),)
        else:
            count = int(form[1:-1] or 1)
            choices = FLOATS if form.endswith("f") else NUMBERS if not form.endswith("B") else range(256)
            values = tuple(draw.choice(choices) for _ in range(count))
            if count > 1 and draw.random() < 0.6:  # one entry alone
                values_before = list(struct.unpack_from(form, content, place))
                one = draw.randrange(count)
                values_before[one] = values[one]
                values = tuple(values_before)
        struct.pack_into(form, content, place, *values)
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))


def _text(path: Path, draw: random.Random) -> None:
    content = path.read_bytes().decode("utf-8", "surrogateescape")
    place, length = draw.randrange(len(content) + 1), draw.choice((0, 0, 1, 10))
    text = content[:place] + draw.choice(TEXTS) + content[place + length :]
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def _all_of_a_kind(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    before, after = draw.choice(((b",", b";"), (b".", b","), (b"\n", b"\r"), (b"0", b"9"), (b'"', b"'"), (b":", b"=")))
    path.write_bytes(content.replace(before, after))


def _encoding(path: Path, draw: random.Random) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    path.write_bytes((text + "é").encode(draw.choice(("utf-16", "latin-1", "utf-8-sig")), "replace"))


def _json_node(path: Path, draw: random.Random) -> None:
    """Another value, a missing one or one more, somewhere in the tree."""
    try:
        tree = json.loads(path.read_text())
    except ValueError:
        return
    node: Any = tree
    while isinstance(node, dict | list) and node:
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if not isinstance(node[key], dict | list) or draw.random() < 0.4:
            if draw.random() < 0.3:
                del node[key]
            else:
                node[key] = draw.choice(JUNK)
            break
        node = node[key]
    path.write_text(json.dumps(tree if draw.random() < 0.95 else draw.choice(JUNK)))


def _line(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines:
        place = draw.randrange(len(lines))
        lines[place : place + 1] = draw.choice(([], [lines[place]] * 2, [b"\n"], [lines[0]]))
    path.write_bytes(b"".join(lines))


def _swap(path: Path, draw: random.Random) -> None:
    others = [other for other in sorted(path.parent.iterdir()) if other.is_file()]
    shutil.copy(draw.choice(others), path.with_name(".swap"))
    os.replace(path.with_name(".swap"), path)


def _rename(path: Path, draw: random.Random) -> None:
    stem, suffix = path.name.partition(".")[::2]
    names = (
        b"case_\xe9.nii.gz", b"-x.nii.gz", b"a b'\".nii.gz", b"a\nb.nii.gz", b"[red]x.nii.gz", b"%s{}.nii.gz",
        f"{stem}.NII.GZ".encode(), f"{stem}.mha".encode(), f"{stem}.hdr".encode(), f".{stem}.{suffix}".encode(),
        f"{stem}_0000.{suffix}".encode(), b"x" * 200 + b".nii.gz", f"{stem}.nii".encode(), stem.encode(),
        b"sub-01.nii.gz",
    )  # fmt: skip
    target = os.path.join(os.fsencode(path.parent), draw.choice(names))
    if os.path.lexists(target):
        return
    if draw.random() < 0.5:
        shutil.copy(path, os.fsdecode(target))
    else:
        os.rename(os.fsencode(path), target)


def _another_kind(path: Path, draw: random.Random) -> None:
    """A folder, a pipe or a link in the place of the file."""
    path.unlink()
    kind = draw.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        path.symlink_to("nowhere")


def _more(path: Path, draw: random.Random) -> None:
    """Something that nobody asked for beside it."""
    name = draw.choice(("notes.txt", "Thumbs.db", "evaluation_x", "new.partial", "x.nii.gz", "._case.nii.gz", "b.mha"))
    if os.path.lexists(path.with_name(name)):
        return
    if draw.random() < 0.5:
        path.with_name(name).mkdir()
    else:
        path.with_name(name).write_bytes(draw.choice((b"", b"mine", path.read_bytes())))


Mutation = Callable[[Path, random.Random], None]
ANY: tuple[Mutation, ...] = (_flip, _cut, _append, _replace, _swap, _rename, _another_kind, _more)
OF_SCANS: tuple[Mutation, ...] = (_header,) * 6
OF_TEXTS: tuple[Mutation, ...] = (_text, _text, _text, _all_of_a_kind, _encoding, _line)
OF_TREES: tuple[Mutation, ...] = (_json_node,) * 4


def mutate(path: Path, draw: random.Random) -> str:
    """Change a file, and say how."""
    choices = [*ANY]
    if ".nii" in path.name:
        choices += OF_SCANS
    elif path.suffix != ".pt":
        choices += OF_TEXTS
    if path.suffix == ".json":
        choices += OF_TREES
    chosen = draw.choice(choices)
    try:
        chosen(path, draw)
    except OSError:  # what the system refuses changes nothing
        return f"no {chosen.__name__.strip('_')} of {path.name}"
    return f"{chosen.__name__.strip('_')} of {path.name}"
