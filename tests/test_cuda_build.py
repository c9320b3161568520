# SPDX-License-Identifier: Apache-2.0
"""The build of the CUDA half: what is compiled for which GPU, what is refused, and what the machine code must show."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from secl_models.command import doctor
from secl_ops import library
from secl_ops.engines import native, select
from tests.conftest import REPOSITORY, skip_or_fail

ALL = ["80", "90a", "100"]
KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py, which knows the compilers."""
    spec = importlib.util.spec_from_file_location("secl_setup", REPOSITORY / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["secl_setup"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tools(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The CUDA toolkit of this machine."""
    monkeypatch.chdir(REPOSITORY)
    found = build.toolkit()
    if isinstance(found, str):
        skip_or_fail("nvcc", found)
    return found


def spills(said: str) -> list[str]:
    """Kernels, with their architecture, that keep registers in memory, in what `ptxas -v` says."""
    found, name = [], ""
    for line in said.splitlines():
        if match := KERNEL.search(line):
            name = f"{match[1]} on {match[2]}"
        if (match := SPILL.search(line)) and match[
            0
        ] != "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads":
            found.append(f"{name}: {match[0]}")
    return found


def machine_code(file: Path) -> str:
    """The disassembly by the cuobjdump of the toolkit, or of Triton's wheel."""
    program = shutil.which("cuobjdump")
    if program is None:
        knobs = pytest.importorskip("triton.knobs", reason="no cuobjdump: neither the toolkit's nor Triton's")
        program = knobs.nvidia.cuobjdump.path
    return subprocess.run([program, "-sass", str(file)], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("pattern", ["reduce.cu", pytest.param("*.cu", marks=pytest.mark.exhaustive)])
def test_every_kernel_compiles_for_every_architecture_without_a_spill(
    pattern: str, build: ModuleType, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = {source: archs for source, archs in build.cuda_jobs(ALL).items() if source.match(pattern)}
    monkeypatch.setattr(build, "cuda_jobs", lambda archs: jobs)
    include = [f"-isystem={path}" for path in _torch_includes()]
    flags = ["-Xptxas=-v", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={build.TORCH_TARGET}", *build.definitions(ALL)]
    said = build.compile_cuda(tools, ALL, tmp_path, [*flags, *include])
    everything = "".join(said.values())
    built = {match[2] for match in KERNEL.finditer(everything)}
    assert built == {f"sm_{arch}" for arch in ALL}
    assert spills(everything) == []
    assert "warning" not in everything
    hopper = [target for target in said if build.OWN_ARCHITECTURE.search(target.name.removesuffix(".o"))]
    for target in hopper:
        assert "HGMMA" in machine_code(target), f"{target.name} has lost the tensor cores of Hopper"


def _torch_includes() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return include_paths()


def test_a_spill_is_seen(tools: Any, tmp_path: Path) -> None:
    source = tmp_path / "spilling.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spilling(float* x) {\n"
        "  float kept[64];\n#pragma unroll\n  for (int i = 0; i < 64; ++i) kept[i] = x[i * 1024 + threadIdx.x];\n"
        "  __syncthreads();\n#pragma unroll\n"
        "  for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = kept[(i + 7) % 64] * kept[63 - i];\n}\n"
    )
    said = tools.compile(source, tmp_path / "spilling.o", ["80"], ["-Xptxas=-v"])
    (found,) = spills(said)
    assert "spilling" in found
    assert "on sm_80" in found


@pytest.mark.parametrize(
    ("by_version", "asked"), [(1, "cudaGetDriverEntryPointByVersion"), (0, "cudaGetDriverEntryPoint")]
)
def test_toolkits_before_12_5_find_the_driver_by_name_alone(
    by_version: int, asked: str, build: ModuleType, tools: Any, tmp_path: Path
) -> None:
    target = tmp_path / "runtime.o"
    tools.compile(build.CUDA_SOURCES / "runtime.cu", target, ["80"], [f"-DSECL_ENTRY_POINT_BY_VERSION={by_version}"])
    needed = subprocess.run(["nm", "-u", str(target)], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"\bcudaGetDriverEntryPoint\w*", needed) == [asked]


@pytest.mark.parametrize(
    ("archs", "source", "compiled"),
    [
        (["80+PTX", "90a"], "csrc/cuda/rows.cu", ["80+PTX", "90a"]),
        (["80", "90a"], "csrc/cuda/fast_sm90a.cu", ["90a"]),
        (["80"], "csrc/cuda/fast_sm90a.cu", None),
    ],
)
def test_a_source_for_one_architecture_is_left_out_elsewhere(
    archs: list[str], source: str, compiled: list[str] | None, build: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path(source).parent.mkdir(parents=True)
    Path(source).touch()
    assert build.cuda_jobs(archs).get(Path(source)) == compiled
    assert build.definitions(archs) == (["-DSECL_SM90A"] if "90a" in archs else [])


def test_architectures(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECL_CUDA_ARCHS", "9.0a; 8.0+PTX")
    assert build.architectures() == ["80+PTX", "90a"]
    assert build.gencode(["80+PTX", "90a"]) == [
        "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_80,code=compute_80",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]  # fmt: skip
    for wrong in ("hopper", ";"):
        monkeypatch.setenv("SECL_CUDA_ARCHS", wrong)
        with pytest.raises(SystemExit, match=r'SECL_CUDA_ARCHS must list architectures such as "80;90a\+PTX"; got'):
            build.architectures()
    monkeypatch.delenv("SECL_CUDA_ARCHS")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.architectures() == ["80+PTX"]
    fake(tmp_path / "nvidia-smi", "printf '9.0\\n9.0\\n8.6\\n7.5\\n'")
    assert build.architectures() == ["86", "90a"]
    fake(tmp_path / "nvidia-smi", "echo no devices; exit 6")
    assert build.architectures() == ["80+PTX"]


def fake(program: Path, script: str) -> None:
    """A program that runs these shell commands."""
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "nvcc was not found; install the CUDA toolkit, or set CUDA_HOME or CUDACXX"),
        ("echo broken >&2; exit 3", "nvcc does not work: broken"),
        ("echo '#$ INCLUDES=\"-I/nowhere\"' >&2", "nvcc comes without cuda_runtime.h; install the CUDA toolkit's"),
    ],
)
def test_a_toolkit_that_cannot_build_says_why(
    script: str | None, reason: str, build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    nvcc = tmp_path / "nvcc"
    monkeypatch.setenv("CUDACXX", str(nvcc))
    monkeypatch.setattr(build.shutil, "which", lambda name: str(nvcc) if script and name == str(nvcc) else None)
    if script:
        fake(nvcc, script)
    assert reason in build.toolkit()


def setup(tmp_path: Path, choice: str, script: str) -> subprocess.CompletedProcess[str]:
    """`setup.py --name` under this SECL_BUILD, with an nvcc that runs this script."""
    fake(tmp_path / "nvcc", script)
    environment = {**os.environ, "SECL_BUILD": choice, "CUDACXX": str(tmp_path / "nvcc")}
    command = [sys.executable, "setup.py", "--name"]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def test_an_nvcc_that_does_not_work_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    asked = setup(tmp_path, "cuda", "echo broken >&2; exit 3")
    assert asked.returncode != 0
    assert asked.stderr.strip().splitlines()[-1] == f"SECL_BUILD=cuda: {tmp_path / 'nvcc'} does not work: broken"
    assert setup(tmp_path, "auto", "echo broken >&2; exit 3").returncode == 0
    assert "broken" not in setup(tmp_path, "cpu", "echo broken >&2; exit 3").stderr


def test_a_half_that_does_not_compile_is_left_out_aloud_or_refused(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    fake(tmp_path / "nvcc", "echo 'unsupported GNU version' >&2; exit 1")
    tools = build.Toolkit(str(tmp_path / "nvcc"), tmp_path)
    module = SimpleNamespace(extra_objects=[], sources=["ops.cpp"])
    archs, reason = build.try_cuda(module, tools, tmp_path, [], required=False)
    assert (archs, reason) == ([], "nvcc failed when it was built")
    assert module == SimpleNamespace(extra_objects=[], sources=["ops.cpp"])
    said = capsys.readouterr().err
    assert "building without CUDA kernels: nvcc failed" in said
    assert "unsupported GNU version" in said
    with pytest.raises(SystemExit, match=r"SECL_BUILD=cuda: .*nvcc -O3 .*\nunsupported GNU version"):
        build.try_cuda(module, tools, tmp_path, [], required=True)
    build.write_build_header(tmp_path, archs, 'it said "no"')
    assert (tmp_path / "secl_build.h").read_text().splitlines()[2:] == [
        '#define SECL_CUDA_ARCHS ""', '#define SECL_CUDA_ABSENCE "it said \\"no\\""',
        f'#define SECL_INTERFACE "{library.INTERFACE}"',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["80"], (8, 0), True), (["80"], (8, 9), True), (["80"], (9, 0), False), (["86"], (8, 0), False),
        (["80+PTX"], (12, 0), True), (["90a"], (9, 0), True), (["90a+PTX"], (10, 0), False), (["100"], (10, 3), True),
        ([], (8, 0), False), (["80+PTX"], (7, 5), False),
    ],
)  # fmt: skip
def test_code_runs_where_it_was_made_for(archs: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert library.runs_on(archs, capability) == runs


@pytest.fixture
def on_gpu(built: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine with an H100 and a build for it, as far as questions go."""
    monkeypatch.setattr(library, "cuda_absence", lambda: None)
    monkeypatch.setattr(library, "cuda_archs", lambda: ("80", "90a"))
    monkeypatch.setattr(library, "has_cuda", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    for cached in (select._architecture, library._device_objections):
        cached.cache_clear()
    yield monkeypatch
    for cached in (select._architecture, library._device_objections):
        cached.cache_clear()


def test_objections_on_a_gpu(on_gpu: pytest.MonkeyPatch) -> None:
    def reasons() -> list[str]:
        library._device_objections.cache_clear()
        return native.objections("cuda", torch.bfloat16, "sample_pixels")

    assert reasons() == []
    on_gpu.setattr(torch.cuda, "get_device_capability", lambda index=None: (10, 0))
    assert reasons() == [
        "this build has CUDA code for 80, 90a, not for this GPU's sm_100; build with SECL_CUDA_ARCHS=100"
    ]
    on_gpu.setattr(torch.cuda, "get_device_capability", lambda index=None: (7, 5))
    assert reasons()[0].endswith("not for this GPU's sm_75; sm_80 is the oldest that the kernels serve")
    on_gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert reasons() == ["torch sees no CUDA device"]
    on_gpu.setattr(library, "has_cuda", lambda name: False)
    assert reasons() == ["this build has no CUDA kernels for sample", "torch sees no CUDA device"]
    on_gpu.setattr(library, "cuda_absence", lambda: "this build has no CUDA kernels: nvcc was not found")
    assert reasons() == ["this build has no CUDA kernels: nvcc was not found"]


def test_auto_takes_a_cuda_kernel_only_where_a_gpu_has_shown_it_right_and_faster(on_gpu: pytest.MonkeyPatch) -> None:
    on_gpu.setattr(select.MODULES["triton"], "objections", lambda device, dtype, operation: [])
    place = torch.device("cuda", 0)

    def taken(dtype: torch.dtype, operation: str, width: int) -> object:
        return select.select("auto", place, dtype, operation, width)

    assert taken(torch.bfloat16, "info_nce", 128) is select.MODULES["triton"]
    on_gpu.setattr(select, "VERIFIED", frozenset({("90", "bfloat16", 128, "info_nce")}))
    assert taken(torch.bfloat16, "info_nce", 128) is native
    for other in (
        (torch.float16, "info_nce", 128),
        (torch.bfloat16, "gather_pixels", 128),
        (torch.bfloat16, "info_nce", 64),
    ):
        assert taken(*other) is select.MODULES["triton"]
    on_gpu.setattr(select, "VERIFIED", frozenset({("80", "bfloat16", 128, "info_nce")}))
    assert taken(torch.bfloat16, "info_nce", 128) is select.MODULES["triton"]
    assert select.select("native", place, torch.bfloat16, "info_nce", 128) is native


def test_the_build_says_what_it_holds(built: None) -> None:
    library.cuda_absence.cache_clear()
    (found,) = [finding for finding in doctor.examine() if finding.name == "CUDA kernels"]
    if library.cuda_archs():
        assert library.cuda_absence() is None
        assert library.has_cuda("sample")
        assert found.detail == "built for " + ", ".join(f"sm_{arch}" for arch in library.cuda_archs())
    else:
        assert not library.has_cuda("sample")
        assert found.detail == library.cuda_absence()
        assert found.detail.startswith("this build has no CUDA kernels: ")
        assert "SECL_BUILD=cuda" in found.cure


def test_kernels_that_this_torch_cannot_run_are_not_compiled_unasked(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def choice(name: str) -> Any:
        monkeypatch.setenv("SECL_BUILD", name)
        return build.build()

    monkeypatch.setattr(build, "toolkit", lambda: build.Toolkit("nvcc", Path("lib")))
    monkeypatch.setattr(build, "extension", lambda cuda, absence, required: (cuda is not None, absence, required))
    monkeypatch.setattr(torch.version, "cuda", None)
    reason = f"torch {torch.__version__} runs none; SECL_BUILD=cuda compiles them all the same"
    assert choice("auto") == (False, reason, False)
    assert capsys.readouterr().err == f"secl: building without CUDA kernels: {reason}\n"
    assert choice("cuda") == (True, "", True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert choice("auto") == (True, "", False)
    monkeypatch.setattr(build, "toolkit", lambda: "nvcc does not work: broken")
    assert choice("auto") == (False, "nvcc does not work: broken", False)
    assert capsys.readouterr().err == "secl: building without CUDA kernels: nvcc does not work: broken\n"


@pytest.mark.exhaustive
def test_a_build_with_kernels_loads_under_a_torch_without_cuda_and_says_so(tools: Any, tmp_path: Path) -> None:
    def run(*command: object) -> str:
        environment = {**os.environ, "SECL_BUILD": "cuda", "SECL_CUDA_ARCHS": "80+PTX"}
        done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [f"--build-lib={tmp_path / 'lib'}", f"--build-temp={tmp_path / 'temp'}"]
    run(sys.executable, "setup.py", "-q", "build_ext", *where)
    binary = tmp_path / "lib" / "secl_ops" / "_C.abi3.so"
    asks = f"import torch; torch.ops.load_library({str(binary)!r}); print(torch.ops.secl_native.cuda_archs())"
    assert run(sys.executable, "-c", asks).strip() == "80+PTX"
    assert b"CUDA tensors need a torch that is built for CUDA" in binary.read_bytes()
    symbols = run("nm", "-D", "--undefined-only", binary)
    # What only a torch for CUDA has is looked up when it is needed: with these the file would not load elsewhere.
    assert "aoti_torch_get_current_cuda_stream" not in symbols
    assert not re.search(r"\bcuda[A-Z]", symbols)
