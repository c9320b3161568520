# SPDX-License-Identifier: Apache-2.0
"""Makes Triton's interpreter quick enough for a test suite, and that of Triton 3.3 complete.

Half of its time goes into patching what is patched: at each call of a device function it looks through the whole
language again, though the launch around it has done so; and it builds its table of dtypes at each load. What it
computes stays its own.
"""

from __future__ import annotations

import functools
import inspect
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np


def quicken() -> None:
    """Patch the language once a launch, and look each dtype up once; nothing where Triton has no such functions."""
    if find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    if not hasattr(interpreter.InterpreterBuilder, "get_int1_ty"):
        _negate_masks(interpreter)
    if hasattr(interpreter, "_LangPatchScope") and not isinstance(interpreter._patch_lang, _Once):
        interpreter._patch_lang = _Once(interpreter)
        interpreter._get_np_dtype = _numpy_dtype(interpreter)


def _negate_masks(interpreter: ModuleType) -> None:
    """What the interpreter of Triton 3.3 lacks for `~`: the dtype of a mask, and all of its ones."""
    builder, boolean = interpreter.InterpreterBuilder, interpreter.tl.int1
    original = builder.get_all_ones_value

    def all_ones(self: Any, type: Any) -> Any:
        if type.scalar == boolean:
            return interpreter.TensorHandle(np.full(1, True), boolean)
        return original(self, type)

    builder.get_int1_ty, builder.get_all_ones_value = lambda self: boolean, all_ones


def _numpy_dtype(interpreter: ModuleType) -> Any:
    """Instead of `_get_np_dtype`: a block has the dtype of its elements, which is looked up once."""
    original, known = interpreter._get_np_dtype, functools.cache(interpreter._get_np_dtype)
    block, pointer = interpreter.tl.block_type, interpreter.tl.pointer_type

    def found(dtype: Any) -> Any:
        element = dtype.element_ty if isinstance(dtype, block) else dtype
        return original(dtype) if isinstance(element, pointer) else known(element)

    return found


class _Once:
    """Instead of `_patch_lang`: the languages that a launch under way has patched are not patched again."""

    def __init__(self, interpreter: ModuleType) -> None:
        self.original, self.scope = interpreter._patch_lang, interpreter._LangPatchScope
        self.languages = {interpreter.tl, interpreter.tl.core}
        self.under_way: set[ModuleType] = set()
        self.named = functools.cache(self._named)

    def _named(self, function: Any) -> set[ModuleType]:
        return self.languages.intersection(filter(inspect.ismodule, function.__globals__.values()))

    def __call__(self, function: Any) -> Any:
        named = self.named(function)
        if named and named <= self.under_way:
            return self.scope()
        scope, before = self.original(function), set(self.under_way)
        self.under_way |= named
        restore = scope.restore

        def restored() -> None:
            self.under_way = before
            restore()

        scope.restore = restored
        return scope
