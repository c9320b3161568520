# SPDX-License-Identifier: Apache-2.0
"""What this machine offers to the project, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

import secl_ops
from secl_models.method.origin import installed, instructions, processor

OK, MISSING = "ok", "missing"
NEEDED = (
    "numpy",
    "monai",
    "lightning-fabric",
    "nibabel",
    "pynrrd",
    "safetensors",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "h5py",
    "matplotlib",
    "tensorboard",
    "pyyaml",
    "jinja2",
)
EXTRAS = {
    "dicom": ("pydicom", "highdicom"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}  # of which a user may need none
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16")
CURES = {
    "native": "install g++ and make, then build again without SECL_BUILD=none (`make setup` in a checkout)",
    "triton": "not needed on a CPU; on Linux with an NVIDIA GPU: `pip install triton`",
    "reference": "install torch again: plain torch always serves",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `cure` is empty where nothing is missing."""

    name: str
    state: str
    detail: str
    cure: str = ""


def examine() -> list[Finding]:
    """Look at versions, processor, memory, GPUs, backends and packages; changes nothing.

    Returns:
        Findings in the order in which they are shown.

    Example:
        >>> "backend reference" in [finding.name for finding in examine()]
        True
    """
    return [*_versions(), *_processor(), *_devices(), *_backends(), *_cuda_half(), *_packages(), *_extras(), *_build()]


def findings_table(findings: Iterable[Finding]) -> Table:
    """Findings for the terminal: a mark, what, what was found, and the cure where something is missing.

    Args:
        findings: What `examine` returned.

    Returns:
        A rich table.
    """
    table = Table(title="secl doctor", title_justify="left")
    for name in ("", "what", "found", "how to get it"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.state == OK else "[yellow]--[/]"
        table.add_row(mark, *map(escape, (finding.name, finding.detail, finding.cure)))
    return table


def _versions() -> list[Finding]:
    return [
        Finding("secl", OK, secl_ops.__version__),
        Finding("python", OK, f"{platform.python_version()} on {platform.platform(terse=True)}"),
        Finding("torch", OK, torch.__version__),
    ]


def _processor() -> list[Finding]:
    known = [name for name in FEATURES if name in instructions()]
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        Finding("processor", OK, processor()),
        Finding("instructions", OK, f"{', '.join(known) or 'unknown'}; torch uses {capability}"),
        Finding("threads", OK, threads + "; set OMP_NUM_THREADS or --set train.threads=N"),
        Finding("memory", OK, _memory()),
    ]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def _after(lines: Iterable[str], key: str) -> str:
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _memory() -> str:
    lines = _lines(Path("/proc/meminfo"))
    sizes = [_after(lines, key).split() for key in ("MemAvailable", "MemTotal")]
    if not all(sizes):
        return "unknown"
    free, total = (int(size[0]) / 2**20 for size in sizes)
    return f"{free:.1f} of {total:.1f} GiB free"


def _devices() -> list[Finding]:
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPU only"
        cure = "not needed; for a GPU install a torch built for CUDA and NVIDIA's driver"
        return [Finding("CUDA", MISSING, f"no usable GPU; {built}", cure)]
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        detail = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, sm_{about.major}{about.minor}"
        found.append(Finding(f"CUDA {index}", OK, detail))
    return found


def _backends() -> list[Finding]:
    return [
        Finding(f"backend {name}", OK, "usable")
        if reasons is None
        else Finding(f"backend {name}", MISSING, "; ".join(reasons), CURES.get(name, ""))
        for name, reasons in secl_ops.backends().items()
    ]


def _cuda_half() -> list[Finding]:
    """What the extension holds for GPUs, whatever this machine has."""
    absence = secl_ops.cuda_absence()
    if absence is None:
        return [Finding("CUDA kernels", OK, f"built for {', '.join(f'sm_{arch}' for arch in secl_ops.cuda_archs())}")]
    cure = "not needed on a CPU; install the CUDA toolkit and build again with SECL_BUILD=cuda"
    return [Finding("CUDA kernels", MISSING, absence, cure)]


def _packages() -> list[Finding]:
    found = {name: installed(name) for name in NEEDED}
    present = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    missing = [name for name, number in found.items() if number is None]
    findings = [Finding("packages", OK, present)] if present else []
    if missing:
        cure = "`pip install '.[train]'` in the source folder"
        findings.append(Finding("packages", MISSING, ", ".join(missing), cure))
    return findings


def _extras() -> list[Finding]:
    findings = []
    for extra, packages in EXTRAS.items():
        found = {name: installed(name) for name in packages}
        detail = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
        state = OK if all(found.values()) else MISSING
        cure = "" if state == OK else f"only where wanted: `pip install 'secl[{extra}]'`"
        findings.append(Finding(f"extra {extra}", state, detail, cure))
    return findings


def _build() -> list[Finding]:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    choice = f"SECL_BUILD={os.environ.get('SECL_BUILD', 'not set')}"
    if compiler is None:
        cure = "only to build the native backend: install g++ (`apt-get install g++ make`)"
        return [Finding("compiler", MISSING, f"none; {choice}", cure)]
    return [Finding("compiler", OK, f"{Path(compiler).name}; {choice}")]
