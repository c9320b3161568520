# SPDX-License-Identifier: Apache-2.0
"""The public surface of secl_ops: these names and no other, called as the contract fixed it."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

import secl_ops

LOSS = "temperature denominator normalize reduction backend validate"
SAMPLE = "num_classes ignore_index strategy"

# Arguments by place, in order, and keywords that a caller may count on; more keywords may follow.
CONTRACT: dict[str, tuple[str, str]] = {
    "ClassQueue": ("num_classes size dim", ""),
    "ContrastParts": ("loss lse count", ""),
    "PixelContrastLoss": ("per_class num_classes", f"ignore_index strategy queue seed {LOSS}"),
    "PixelSample": ("index label", ""),
    "backends": ("", ""),
    "class_means": ("rows labels num_classes", ""),
    "cuda_absence": ("", ""),
    "cuda_archs": ("", ""),
    "gather_pixels": ("features index", "normalize dtype unique backend validate"),
    "info_nce": (
        "anchors keys",
        "anchor_labels key_labels weights positives positive_labels positive_groups anchor_groups key_groups exclude "
        + LOSS,
    ),
    "info_nce_parts": (
        "anchors keys",
        "anchor_labels key_labels lse temperature denominator normalize anchor_groups key_groups exclude backend "
        "validate",
    ),
    "pixel_contrast": (
        "features labels key_features key_labels",
        f"per_class seed eligible key_eligible scores queue {SAMPLE} {LOSS}",
    ),
    "pool_regions": ("features grid", ""),
    "sample_pixels": ("labels per_class", f"eligible scores seed backend {SAMPLE}"),
}


def test_these_names_and_no_other_are_public() -> None:
    assert set(secl_ops.__all__) == {*CONTRACT, "__version__"}
    visible = {name: value for name, value in vars(secl_ops).items() if not name.startswith("_")}
    assert {name for name, value in visible.items() if not isinstance(value, ModuleType)} == set(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_a_call_by_the_contract_stays_right(name: str) -> None:
    parameters = inspect.signature(getattr(secl_ops, name)).parameters.values()
    by_place = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    keywords = {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    places, named = (part.split() for part in CONTRACT[name])
    assert by_place == places
    assert set(named) <= keywords, set(named) - keywords


@pytest.mark.parametrize("name", CONTRACT)
def test_a_public_name_explains_itself(name: str) -> None:
    value = getattr(secl_ops, name)
    first = (inspect.getdoc(value) or "").partition("\n")[0]
    assert first.endswith((".", ":", ";")), first
    assert value.__doc__ != tuple.__doc__
