# SPDX-License-Identifier: Apache-2.0
"""The public surface of secl_ops: these names and no other, called as the contract fixed it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

import secl_ops
from secl_ops import compat

LOSS = "temperature denominator normalize reduction backend validate"
SAMPLE = "num_classes ignore_index strategy"

# Arguments by place, in order, and keywords that a caller may count on; more keywords may follow.
CONTRACT: dict[str, tuple[str, str]] = {
    "ClassQueue": ("num_classes size dim", ""),
    "ContrastParts": ("loss lse count", ""),
    "PixelContrastLoss": ("per_class num_classes", f"ignore_index strategy queue group seed {LOSS}"),
    "PixelSigmoidLoss": (
        "per_class num_classes",
        "ignore_index strategy head key_head queue scale bias normalize reduction backend validate seed",
    ),
    "PixelSample": ("index label", ""),
    "Tap": ("module name pick", ""),
    "backends": ("", ""),
    "class_means": ("rows labels num_classes", ""),
    "cuda_absence": ("", ""),
    "cuda_archs": ("", ""),
    "gather_pixels": ("features index", "normalize dtype unique backend validate"),
    "info_nce": (
        "anchors keys",
        "anchor_labels key_labels weights positives positive_labels positive_groups anchor_groups key_groups exclude "
        "key_weights " + LOSS + " group",
    ),
    "info_nce_parts": (
        "anchors keys",
        "anchor_labels key_labels lse temperature denominator normalize anchor_groups key_groups exclude key_weights "
        "backend validate",
    ),
    "pixel_contrast": (
        "features labels key_features key_labels",
        f"per_class seed eligible key_eligible scores queue group {SAMPLE} {LOSS}",
    ),
    "pool_regions": ("features grid", ""),
    "sample_pixels": ("labels per_class", f"eligible scores seed backend {SAMPLE}"),
    "sigmoid_contrast": (
        "anchors keys",
        "anchor_labels key_labels scale bias weights positives positive_labels positive_groups anchor_groups "
        "key_groups exclude normalize reduction backend validate",
    ),
    "tap": ("model name", "pick"),
}

# The same of the names of other projects, by module of secl_ops.compat: their arguments by place, then ours.
COMPAT: dict[str, dict[str, tuple[str, str]]] = {
    "contrastiveseg": {
        "PixelContrastLoss": ("temperature base_temperature max_samples max_views ignore_label", "backend"),
        "RegionPixelQueue": ("num_classes size dim pixels ignore_label", ""),
    },
    "dense": {
        "chaitanya_local": ("first second", "neighbours temperature backend"),
        "densecl": ("queries keys query_features key_features queue", "temperature backend"),
    },
    "lightly": {
        "NTXentLoss": ("temperature memory_bank_size gather_distributed", "backend"),
        "SupConLoss": ("temperature gather_distributed rescale", "backend"),
    },
    "monai": {"ContrastiveLoss": ("temperature batch_size", "backend")},
    "published": {
        "mona": (
            "anchors anchor_labels prototypes keys key_classes",
            "negatives strata antithetic temperature backend",
        ),
        "reco": ("queries query_labels keys key_labels", "num_classes negatives temperature backend"),
        "spcl": ("anchors anchor_labels inner inner_labels boundary boundary_labels", "subclass temperature backend"),
        "u2pl": ("anchors anchor_labels prototypes keys key_classes", "negatives temperature backend"),
    },
    "pytorch_metric_learning": {
        "CrossBatchMemory": ("loss embedding_size memory_size miner", ""),
        "NTXentLoss": ("temperature distance reducer", "reduction backend"),
        "SupConLoss": ("temperature distance reducer", "reduction backend"),
    },
    "supcontrast": {"SupConLoss": ("temperature contrast_mode base_temperature", "backend")},
}
FORWARD = {
    ("contrastiveseg", "PixelContrastLoss"): "feats labels predict queue",
    ("lightly", "NTXentLoss"): "out0 out1",
    ("lightly", "SupConLoss"): "out0 out1 labels",
    ("monai", "ContrastiveLoss"): "input target",
    ("pytorch_metric_learning", "CrossBatchMemory"): "embeddings labels indices_tuple enqueue_mask",
    ("pytorch_metric_learning", "NTXentLoss"): "embeddings labels indices_tuple ref_emb ref_labels",
    ("pytorch_metric_learning", "SupConLoss"): "embeddings labels indices_tuple ref_emb ref_labels",
    ("supcontrast", "SupConLoss"): "features labels mask",
}


def test_these_names_and_no_other_are_public() -> None:
    assert set(secl_ops.__all__) == {*CONTRACT, "__version__"}
    visible = {name: value for name, value in vars(secl_ops).items() if not name.startswith("_")}
    assert {name for name, value in visible.items() if not isinstance(value, ModuleType)} == set(CONTRACT)


def by_place_and_named(value: Callable[..., object]) -> tuple[list[str], set[str]]:
    """The arguments of a call, by place in order and by keyword alone."""
    parameters = inspect.signature(value).parameters.values()
    by_place = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return by_place, {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", CONTRACT)
def test_a_call_by_the_contract_stays_right(name: str) -> None:
    by_place, keywords = by_place_and_named(getattr(secl_ops, name))
    places, named = (part.split() for part in CONTRACT[name])
    assert by_place == places
    assert set(named) <= keywords, set(named) - keywords


@pytest.mark.parametrize("name", CONTRACT)
def test_a_public_name_explains_itself(name: str) -> None:
    value = getattr(secl_ops, name)
    first = (inspect.getdoc(value) or "").partition("\n")[0]
    assert first.endswith((".", ":", ";")), first
    assert value.__doc__ != tuple.__doc__


def of_compat(name: str) -> dict[str, Callable[..., object]]:
    """What a module of secl_ops.compat defines for its callers."""
    module = importlib.import_module(f"secl_ops.compat.{name}")
    found = {key: value for key, value in vars(module).items() if not key.startswith("_") and callable(value)}
    return {key: value for key, value in found.items() if value.__module__ == module.__name__}


def test_these_families_and_no_other_have_names_in_compat() -> None:
    families = {each.name for each in pkgutil.iter_modules(compat.__path__)}
    assert families == {*COMPAT, "common"}  # which serves the others


@pytest.mark.parametrize("family", COMPAT)
def test_the_names_of_a_family_are_called_as_its_project_calls_them(family: str) -> None:
    found = of_compat(family)
    assert set(found) == set(COMPAT[family])
    for name, (places, named) in COMPAT[family].items():
        assert by_place_and_named(found[name]) == (places.split(), set(named.split())), name
        forward = getattr(found[name], "forward", None)
        if forward is not None and (family, name) in FORWARD:
            assert by_place_and_named(forward)[0] == ["self", *FORWARD[family, name].split()]
        assert ">>>" in (found[name].__doc__ or ""), name
        assert (inspect.getdoc(found[name]) or "").partition("\n")[0].endswith((".", ":", ";")), name


def test_compat_is_imported_when_it_is_asked_for_and_imports_no_project_that_it_is_named_after() -> None:
    program = "import sys, secl_ops\nassert not any(name.startswith('secl_ops.compat') for name in sys.modules)\n"
    program += "".join(f"import secl_ops.compat.{family}\n" for family in COMPAT)
    program += f"assert not {{*{list(COMPAT)}}} & set(sys.modules), set(sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
