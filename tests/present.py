# SPDX-License-Identifier: Apache-2.0
"""Whether an interpreter has what the tests of `secl_ops` need; says what is missing, and fetches nothing.

python -m tests.present
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

NEEDED = ("torch", "numpy", "scipy", "triton", "pytest", "hypothesis", "mpmath", "setuptools", "rich", "typer")
OLDEST = (3, 11)


def missing(packages: Iterable[str]) -> list[str]:
    """Print the version of each package that is there; the names of the others."""
    absent = []
    for name in packages:
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            absent.append(name)
    return absent


def main(packages: Iterable[str] = NEEDED) -> int:
    """Report, and 2 where something is missing."""
    print(f"python {sys.version.split()[0]} at {sys.executable}")
    absent = missing(packages)
    if sys.version_info < OLDEST:
        absent.append(f"Python >= {OLDEST[0]}.{OLDEST[1]}")
    if absent:
        print(f"make: {sys.executable} lacks {', '.join(absent)}; bring them, for example as wheels", file=sys.stderr)
    return 2 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
