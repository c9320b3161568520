# SPDX-License-Identifier: Apache-2.0
"""Which structures of a prediction are kept as one part, and the sentence that says so."""

from __future__ import annotations

import logging

from secl_models.method.checkpoint import LoadedModel
from secl_models.options.errors import InputError
from secl_models.options.events import NOTE, tell
from secl_models.options.parts import ALL, AUTO, CHOICES, NONE


def parts_to_keep(choice: str, model: LoadedModel) -> tuple[int, ...]:
    """The structures that `--largest-component` names, told once where it leaves the choice to the training.

    Args:
        choice: `none`, `auto` or `all`.
        model: Knows its structures, and which were one part in every labelled training case.

    Returns:
        Class indices.

    Raises:
        InputError: Another word.
    """
    if choice not in CHOICES:
        raise InputError("--largest-component", rule=f"one of {', '.join(CHOICES)}", got=choice, cure="choose one")
    if choice == NONE:
        return ()
    if choice == ALL:
        return tuple(range(1, len(model.classes) + 1))
    if model.one_part is None:
        sentence = (
            f"The checkpoint is older than --largest-component {AUTO}: nothing is removed. Train again, or: {ALL}"
        )
        tell("note", sentence, level=logging.WARNING)
        return ()
    names = model.one_part_names
    sentence = f"Kept as one part, as in every labelled training case: {', '.join(names) or 'no structure'}."
    tell("note", sentence, level=NOTE, structures=list(names))
    return model.one_part
