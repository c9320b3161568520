# SPDX-License-Identifier: Apache-2.0
"""A message about bad input survives the way from a worker process."""

from __future__ import annotations

import pickle

from secl_models.options.errors import InputError


def test_an_error_is_the_same_after_a_process_boundary() -> None:
    error = InputError("a.nii", rule="b", got=(1, 2), cure="c")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InputError
    assert (str(copy), copy.what, copy.rule, copy.got, copy.cure) == (str(error), "a.nii", "b", "(1, 2)", "c")
