# SPDX-License-Identifier: Apache-2.0
"""The only file that knows compilers: builds `secl_ops/_C.abi3.so` where SECL_BUILD and the machine allow it.

SECL_BUILD=auto|cpu|cuda|none says which halves: `auto` takes what can be built and this torch can run. SECL_CUDA_ARCHS,
such as "80;90a+PTX", says for which GPUs; by default those of this machine, or one that every later GPU can run where
there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import setup  # type: ignore[import-untyped]  # its stubs are a package of their own
from setuptools.command.sdist import sdist  # type: ignore[import-untyped]

CHOICES = ("auto", "cpu", "cuda", "none")
OLDEST_TORCH = (2, 11)  # that has the headers of the stable ABI, and that the shared object loads on
TORCH_TARGET = "0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH)
TORCH = "torch>={}.{}".format(*OLDEST_TORCH)
FLAGS = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra", "-g0"]
OLDEST_GLIBC = ["-include", str(Path("csrc/oldest_glibc.h").resolve())]  # torch's class compiles in another folder
CHECKED = ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", "-DSECL_SANITIZE"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined,float-cast-overflow,bounds-strict", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
CUDA_SOURCES = Path("csrc/cuda")
INTERFACE_SOURCES = (Path("csrc/operations.h"), Path("csrc/params.h"))
CUDA_FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
PORTABLE = "80+PTX"  # machine code for Ampere, and what every later driver makes its own of
ARCHITECTURE = re.compile(r"(?P<name>\d{2,3}[af]?)(?P<ptx>\+PTX)?")
OWN_ARCHITECTURE = re.compile(r"_sm(\d+[af]?)\.cu$")  # a source for one architecture alone


class SourceArchive(sdist):  # type: ignore[misc]  # untyped
    """Holds all of `csrc`, whichever half of it was built here, if any."""

    def make_distribution(self) -> None:
        found = {str(path) for path in Path("csrc").rglob("*") if path.is_file()}
        self.filelist.extend(sorted(found - set(self.filelist.files)))
        super().make_distribution()


def notice(text: str) -> None:
    """Say on the error stream what was not built, since a build's output stream is often hidden."""
    print(f"secl: {text}", file=sys.stderr, flush=True)


def obstacle() -> str | None:
    """Why the C++ extension cannot be built here, or None."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        return f"no C++ compiler ({compiler} or g++) was found; install g++, or set CXX"
    try:
        import torch.utils.cpp_extension
    except ImportError as error:
        return f"the build environment cannot import torch ({error}); build with --no-build-isolation where torch is"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return f"it needs {TORCH}, not {torch.__version__}, whose stable ABI is another; pip install --upgrade torch"
    return None


def idle() -> str | None:
    """Why CUDA kernels, which take minutes to compile, would never run here, or None."""
    import torch

    if torch.version.cuda is not None:
        return None
    return f"torch {torch.__version__} runs none; SECL_BUILD=cuda compiles them all the same"


def sanitizer() -> list[str]:
    """Flags of the sanitizer that SECL_SANITIZE names, of compiler and linker; none where it names none.

    Raises:
        SystemExit: SECL_SANITIZE is unknown.
    """
    choice = os.environ.get("SECL_SANITIZE", "")
    if choice and choice not in SANITIZERS:
        raise SystemExit(f"SECL_SANITIZE must be one of {', '.join(SANITIZERS)}; got {choice!r}")
    return SANITIZERS[choice] if choice else []


class Toolkit(NamedTuple):
    """A CUDA toolkit that can compile and link."""

    nvcc: str
    libraries: Path

    def compile(self, source: Path, target: Path, archs: Sequence[str], flags: Sequence[str]) -> str:
        """One source into one object with code for every architecture; what nvcc says.

        Raises:
            RuntimeError: nvcc failed; the message holds what it said.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [self.nvcc, *CUDA_FLAGS, *flags, *gencode(archs), "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
        return done.stdout + done.stderr


def toolkit() -> Toolkit | str:
    """The CUDA toolkit of this machine, or why there is none that builds."""
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    for home in filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")):
        nvcc = nvcc or shutil.which(f"{home}/bin/nvcc")
    if nvcc is None:
        return "nvcc was not found; install the CUDA toolkit, or set CUDA_HOME or CUDACXX"
    try:
        plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    except OSError as error:
        return f"{nvcc} does not run ({error}); install the CUDA toolkit again, or set CUDA_HOME or CUDACXX"
    includes, libraries = (
        [Path(path) for path in re.findall(pattern, plan.stderr)]
        for pattern in (r'INCLUDES=.*?"-I([^"]+)"', r'"-L([^"]+)"')
    )
    if plan.returncode or not includes:
        return f"{nvcc} does not work: {(plan.stderr + plan.stdout).strip() or f'exit status {plan.returncode}'}"
    for name, folders in (("cuda_runtime.h", includes), ("libcudart_static.a", libraries)):
        if not any((folder / name).is_file() for folder in folders):
            return f"{nvcc} comes without {name}; install the CUDA toolkit's development files"
    (place,) = [folder for folder in libraries if (folder / "libcudart_static.a").is_file()][:1]
    return Toolkit(nvcc, place)


def architectures() -> list[str]:
    """For which GPUs to compile: SECL_CUDA_ARCHS, else those of this machine, else one that later GPUs can run.

    Raises:
        SystemExit: SECL_CUDA_ARCHS names none, or not as "80", "90a" or "80+PTX".
    """
    given = os.environ.get("SECL_CUDA_ARCHS", "").replace(",", ";").replace(" ", "").replace(".", "")
    if given:
        archs = sorted({arch for arch in given.split(";") if arch})
        if not archs or not all(ARCHITECTURE.fullmatch(arch) for arch in archs):
            raise SystemExit(
                'SECL_CUDA_ARCHS must list architectures such as "80;90a+PTX"; '
                f"got {os.environ['SECL_CUDA_ARCHS']!r}; unset it to take those of this machine"
            )
        return archs
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        seen = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        seen = ""
    found = {line.replace(".", "") for line in seen.split() if re.fullmatch(r"\d+\.\d", line)}
    return sorted("90a" if arch == "90" else arch for arch in found if int(arch) >= 80) or [PORTABLE]


def gencode(archs: Sequence[str]) -> list[str]:
    """What tells nvcc the architectures: machine code for each, and PTX where it is asked for."""
    flags = []
    for arch in archs:
        match = ARCHITECTURE.fullmatch(arch)
        assert match is not None
        flags.append(f"-gencode=arch=compute_{match['name']},code=sm_{match['name']}")
        if match["ptx"]:
            flags.append(f"-gencode=arch=compute_{match['name']},code=compute_{match['name']}")
    return flags


def cuda_jobs(archs: Sequence[str]) -> dict[Path, list[str]]:
    """Every CUDA source with the architectures it is compiled for; without those for an architecture not asked for."""
    jobs = {}
    for source in sorted(CUDA_SOURCES.rglob("*.cu")):
        own = OWN_ARCHITECTURE.search(source.name)
        jobs[source] = [arch for arch in archs if own is None or arch.removesuffix("+PTX") == own[1]]
    return {source: wanted for source, wanted in jobs.items() if wanted}


def compile_cuda(tools: Toolkit, archs: Sequence[str], folder: Path, flags: Sequence[str]) -> dict[Path, str]:
    """All CUDA sources, as many at once as there are processors (or MAX_JOBS); the objects, and what nvcc said."""
    jobs = cuda_jobs(archs)
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        work = {
            folder / f"{source}.o": pool.submit(tools.compile, source, folder / f"{source}.o", wanted, flags)
            for source, wanted in jobs.items()
        }
        return {target: done.result() for target, done in work.items()}


def definitions(archs: Sequence[str]) -> list[str]:
    """Macros for the architectures that have kernels of their own, such as SECL_SM90A."""
    bare = sorted({arch.removesuffix("+PTX") for arch in archs})
    return [f"-DSECL_SM{arch.upper()}" for arch in bare if not arch.isdigit()]


def interface() -> str:
    """A digest of what Python and the extension must agree on: schemas, flags and choices, whatever their comments."""
    text = "".join(path.read_text() for path in INTERFACE_SOURCES)
    return hashlib.sha256(re.sub(r"//.*|\s", "", text).encode()).hexdigest()[:16]


def write_build_header(folder: Path, archs: Sequence[str], absence: str) -> None:
    """What the shared object knows of its own build: `secl_build.h`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {"SECL_CUDA_ARCHS": ";".join(archs), "SECL_CUDA_ABSENCE": absence, "SECL_INTERFACE": interface()}
    lines = [f"#define {name} {json.dumps(value)}\n" for name, value in text.items()]
    (folder / "secl_build.h").write_text("// SPDX-License-Identifier: Apache-2.0\n#pragma once\n" + "".join(lines))


def add_cuda(module: Any, tools: Toolkit, archs: Sequence[str], folder: Path, includes: Sequence[str]) -> None:
    """Compile the CUDA sources, and add them and what they need to the extension.

    Raises:
        RuntimeError: nvcc failed.
    """
    defined = ["-DUSE_CUDA", *definitions(archs)]
    flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *defined, *(f"-isystem={path}" for path in includes)]
    said = compile_cuda(tools, archs, folder, flags)
    print("".join(said.values()), file=sys.stderr, end="")
    module.extra_objects += map(str, said)
    module.sources += sorted(map(str, CUDA_SOURCES.rglob("*.cpp")))
    module.extra_compile_args += defined
    # Static, so that the shared object loads where no CUDA is; hidden, so that torch's own copy is not replaced.
    module.extra_link_args += ["-Wl,--exclude-libs,libcudart_static.a", f"-L{tools.libraries}"]
    module.extra_link_args += ["-lcudart_static", "-lrt", "-lpthread", "-ldl"]


def try_cuda(
    module: Any, tools: Toolkit, folder: Path, includes: Sequence[str], required: bool
) -> tuple[list[str], str]:
    """The architectures of the CUDA half, or none and why: where it is not required, the CPU half is built without it.

    Raises:
        SystemExit: It is required, and nvcc failed.
    """
    archs = architectures()
    try:
        add_cuda(module, tools, archs, folder, includes)
    except RuntimeError as error:
        if required:
            raise SystemExit(f"SECL_BUILD=cuda: {error}") from error
        notice(f"building without CUDA kernels: nvcc failed\n{error}")
        return [], "nvcc failed when it was built"
    return archs, ""


def wheel_options(cuda: Toolkit | None) -> dict[str, str]:
    """For which Pythons and platforms a wheel is: of a CPU half alone, for every Linux of glibc 2.28 or later."""
    options = {"py_limited_api": "cp311"}
    name, version = platform.libc_ver()
    here = tuple(int(number) for number in re.findall(r"\d+", version))
    if cuda is None and sys.platform == "linux" and name == "glibc" and here >= (2, 28):
        options["plat_name"] = f"manylinux_2_28_{platform.machine()}"
    return options


def extension(cuda: Toolkit | None, absence: str, required: bool) -> dict[str, Any]:
    """Arguments of `setup` that build the extension over torch's stable ABI.

    Args:
        cuda: The toolkit that compiles the CUDA half; None leaves it out.
        absence: Why it is left out.
        required: A CUDA half that does not compile fails the build; else the CPU half is built alone.
    """
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

    class Build(BuildExtension):
        """Compiles the CUDA half first, then the C++ sources as torch's own class does."""

        def build_extension(self, module: Any) -> None:
            archs: list[str] = []
            folder, reason = Path(self.build_temp), absence
            if cuda is not None:
                archs, reason = try_cuda(module, cuda, folder, include_paths(), required)
            write_build_header(folder, archs, reason)
            module.include_dirs.append(str(folder.resolve()))
            super().build_extension(module)

    checks = sanitizer()
    quiet = [f"-isystem{path}" for path in include_paths()]  # no warnings about headers that are not ours
    module = CppExtension(
        "secl_ops._C",
        sorted(str(path) for path in Path("csrc").rglob("*.cpp") if CUDA_SOURCES not in path.parents),
        depends=sorted(str(path) for ending in ("*.h", "*.cuh") for path in Path("csrc").rglob(ending)),
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        extra_compile_args=[*FLAGS, *OLDEST_GLIBC, *quiet, *(CHECKED if checks else []), *checks],
        extra_link_args=list(checks),
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": wheel_options(cuda)},
    }


def build() -> dict[str, Any]:
    """What SECL_BUILD asks for, or a clear refusal.

    Raises:
        SystemExit: SECL_BUILD is unknown, or names a build that is not possible.
    """
    choice = os.environ.get("SECL_BUILD", "auto")
    if choice not in CHOICES:
        raise SystemExit(f"SECL_BUILD must be one of {', '.join(CHOICES)}; got {choice!r}")
    if choice == "none":
        return {}
    if choice != "auto" and sys.argv[1:2] == ["egg_info"]:  # a build frontend asks what its environment must hold
        return {"setup_requires": [TORCH]}
    reason = obstacle()
    if reason is not None:
        if choice != "auto":
            raise SystemExit(f"SECL_BUILD={choice}: {reason}")
        notice(f"building without the C++ extension: {reason}. Every operation then runs on the reference backend")
        return {}
    if choice == "cpu":
        return extension(None, "it was built with SECL_BUILD=cpu", required=False)
    cuda = toolkit() if choice == "cuda" else idle() or toolkit()
    if isinstance(cuda, Toolkit):
        return extension(cuda, "", required=choice == "cuda")
    if choice == "cuda":
        raise SystemExit(f"SECL_BUILD=cuda: {cuda}")
    notice(f"building without CUDA kernels: {cuda}")
    return extension(None, cuda, required=False)


if __name__ == "__main__":  # tests import this file for its flags
    chosen = build()
    setup(**chosen | {"cmdclass": {"sdist": SourceArchive} | chosen.get("cmdclass", {})})
