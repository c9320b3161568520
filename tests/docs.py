# SPDX-License-Identifier: Apache-2.0
"""Pages of the public names, from their docstrings, into a folder; where pdoc warns of anything, it fails.

python -m tests.docs build/docs
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pdoc
import pdoc.render

PACKAGES = ("secl_ops", "secl_ops.compat", "secl_models")


def modules() -> Iterator[ModuleType]:
    """What the pages import."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield package
        if not hasattr(package, "__all__"):  # else pdoc shows the names that it lists, and no module below
            for found in pkgutil.walk_packages(package.__path__, f"{name}."):
                if not found.name.endswith(".__main__"):
                    yield importlib.import_module(found.name)


def name_fields(module: ModuleType) -> None:
    """Put real types on the constructors of named tuples, whose texts pdoc cannot look up."""
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
            value.__new__.__annotations__ = typing.get_type_hints(value)


def write(out: Path) -> list[str]:
    """Write the pages; what pdoc warned of."""
    os.environ["PDOC_ALLOW_EXEC"] = "1"  # an import may ask the system for its processor
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for module in modules():
            name_fields(module)
        pdoc.pdoc(*PACKAGES, output_directory=out)
    return [str(warning.message) for warning in seen if "pdoc" in Path(warning.filename).parts]


if __name__ == "__main__":
    sys.exit("\n".join(write(Path(sys.argv[1]))) or 0)
