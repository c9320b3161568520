# SPDX-License-Identifier: Apache-2.0
"""The operations of the extension on AArch64: cross-compiled, linked with a stand-in for torch, run under qemu-user.

A `Machine` serves in the place of `torch.ops.secl_native`, so that the tests of the native backend can run on it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import setup
from tests.compiling import REPOSITORY, all_compiled, alone, include_flags, linked, old_headers

FOLDER = Path(__file__).parent
BUILD = REPOSITORY / "build" / "aarch64"
COMPILER, EMULATOR, OBJDUMP = "aarch64-linux-gnu-g++", "qemu-aarch64", "aarch64-linux-gnu-objdump"
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)*)", re.MULTILINE)
INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t([\w.]+)(?:\t(?:[^<\n]*?\b)?([0-9a-f]+) <)?", re.MULTILINE)
CURE = "on Debian or Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user"
NATIVE = torch.ops.secl_native
DTYPES = {
    torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.float16: 5, torch.float32: 6,
    torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}  # fmt: skip
BY_NUMBER = {number: dtype for dtype, number in DTYPES.items()}
KINDS = {"Tensor": "T", "bool": "b", "str": "s"}


def absence(*tools: str) -> str | None:
    """Which of the tools, by default both, is missing, and how to get it, or what of torch; None where nothing is."""
    if reason := old_headers():
        return reason
    missing = [tool for tool in tools or (COMPILER, EMULATOR) if shutil.which(tool) is None]
    return f"AArch64 needs {' and '.join(missing)}; {CURE}" if missing else None


def sources() -> list[Path]:
    """Those of the extension on a CPU, and the stand-in for torch."""
    csrc = REPOSITORY / "csrc"
    return sorted([*csrc.glob("*.cpp"), *(csrc / "cpu").glob("*.cpp"), *FOLDER.glob("*.cpp")])


@functools.cache
def program() -> Path:
    """Compile what has changed into the program that serves calls.

    Raises:
        RuntimeError: A source does not compile, or only with warnings.
    """
    with alone(BUILD):
        setup.write_build_header(BUILD, [], "AArch64 has none")
        flags = [*setup.FLAGS, f"-DTORCH_TARGET_VERSION={setup.TORCH_TARGET}", *include_flags(FOLDER, BUILD)]
        objects = all_compiled(sources(), BUILD, [COMPILER, *flags])
        return linked(objects, BUILD / "serve", lambda names: [COMPILER, "-static", *names])


class Machine:
    """A processor that runs the operations: `Machine(cpu).name(...)` is what `torch.ops.secl_native.name(...)` is."""

    def __init__(self, cpu: str) -> None:
        command = [EMULATOR, "-cpu", cpu, str(program())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __getattr__(self, name: str) -> Operation:
        return Operation(self, name, getattr(NATIVE, name).default._schema)

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()

    def call(self, request: bytes) -> None:
        """Send one call; what it answers is then to be read.

        Raises:
            RuntimeError: The operation raised, or the program ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer will tell
            self._process.stdin.write(request)
            self._process.stdin.flush()
        verdict = self.line().split()
        if not verdict:
            raise RuntimeError(f"the AArch64 program ended with status {self._process.wait()}")
        if verdict[0] == "error":
            raise RuntimeError(self.read(int(verdict[1])).decode())

    def line(self) -> str:
        """The next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()

    def read(self, count: int) -> bytes:
        """The next so many bytes."""
        assert self._process.stdout is not None
        return self._process.stdout.read(count)


class Operation:
    """One operation, called as torch's own is."""

    def __init__(self, machine: Machine, name: str, schema: Any) -> None:
        self._machine, self._name, self._schema = machine, name, schema

    @property
    def default(self) -> Operation:
        """Its one overload."""
        return self

    def __call__(self, *arguments: Any) -> Any:
        described = list(zip(self._schema.arguments, arguments, strict=True))
        kinds = "".join(KINDS[str(each.type)] for each in self._schema.returns)
        head = f"{self._name} {len(described)} {kinds or '-'}\n".encode()
        self._machine.call(head + b"".join(_argument(each, value) for each, value in described))
        results = [self._result(kind) for kind in kinds]
        for each, value in described:
            if _is_written(each) and value is not None:
                _memory(value).copy_(self._tensor().flatten())
        return tuple(results) if len(results) > 1 else next(iter(results), None)

    def _result(self, kind: str) -> Tensor | bool | str:
        if kind == "T":
            return self._tensor()
        head = int(self._machine.line())
        return bool(head) if kind == "b" else self._machine.read(head).decode()

    def _tensor(self) -> Tensor:
        """The next tensor; of one that has gaps in memory all that lies there, in a row."""
        number, dimensions, *size, count = map(int, self._machine.line().split())
        dtype, data = BY_NUMBER[number], bytearray(self._machine.read(count))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return flat.view(size) if flat.numel() == math.prod(size[:dimensions]) else flat


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _memory(value: Tensor) -> Tensor:
    """All numbers from the first to the last, with those between that are not the tensor's."""
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.detach().as_strided((last + 1 if value.numel() else 0,), (1,))


def _argument(argument: Any, value: Any) -> bytes:
    kind = str(argument.type)
    if value is None:
        return b"none\n"
    if isinstance(value, Tensor):
        role = "optional" if kind.startswith("Optional") else "tensor"
        return f"{role} {int(_is_written(argument))} ".encode() + _described(value)
    if kind == "str":
        return f"str {len(value)}\n{value}\n".encode()
    return f"{kind} {float(value).hex() if kind == 'float' else int(value)}\n".encode()


def _described(value: Tensor) -> bytes:
    raw = _memory(value).contiguous().view(torch.uint8).numpy().tobytes()
    numbers = [DTYPES[value.dtype], value.ndim, *value.shape, *value.stride(), len(raw)]
    return " ".join(map(str, numbers)).encode() + b"\n" + raw + b"\n"


class Loop(NamedTuple):
    """An innermost loop of the machine code."""

    function: str
    instructions: tuple[str, ...]


def loops(source: str) -> list[Loop]:
    """The innermost loops of what a source of `csrc/cpu` has been compiled to."""
    command = [OBJDUMP, "-dC", "--no-show-raw-insn", str(BUILD / f"cpu.{source}.o")]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [loop for name, code in FUNCTION.findall(listing) for loop in _innermost(name, code)]


def _innermost(function: str, code: str) -> list[Loop]:
    lines = [(int(place, 16), name, target) for place, name, target in INSTRUCTION.findall(code)]
    back = [(int(target, 16), place) for place, _, target in lines if target and int(target, 16) <= place]
    inner = [
        one for one in back if not any(one != other and one[0] <= other[0] <= other[1] <= one[1] for other in back)
    ]
    return [Loop(function, tuple(name for place, name, _ in lines if first <= place <= last)) for first, last in inner]
