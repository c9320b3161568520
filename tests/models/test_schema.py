# SPDX-License-Identifier: Apache-2.0
"""Options: presets load, everything survives a round trip, and each mistake is named with its cure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from secl_models.data.files import write_text
from secl_models.options.errors import InputError
from secl_models.options.schema import (
    PRESETS,
    AugmentConfig,
    ContrastConfig,
    DataConfig,
    NetworkConfig,
    RunConfig,
    TrainConfig,
    from_dict,
    load_preset,
    override,
    preset_names,
    to_dict,
    to_yaml,
)
from tests.draws import examples

EVERYTHING = RunConfig(
    preset="mine",
    labeled=7,
    seed=3,
    data=DataConfig(
        dims=3,
        spacing=(1.0, 0.5, 1e-05),
        patch=(16, 32, 48),
        window=(-160.0, 240.0),
        normalize="window",
        foreground=0.5,
    ),
    augment=AugmentConfig(flip=(0, 2), rotate=0.1 + 0.2),
    network=NetworkConfig(channels=(8, 16, 32), taps=(0, 2)),
    contrast=ContrastConfig(temperature=1 / 3, grid=(2, 2, 1)),
    train=TrainConfig(lr=5e-3, compile=True, method="mean-teacher"),
)


@pytest.mark.parametrize("axes", ["[1, 2]", "RAS", "[1, 0, 0, 0, 1, 0, 0, 0]"])
def test_orientations_that_do_not_exist(axes: str) -> None:
    with pytest.raises(InputError, match=r"data\.orientation: .* Cure: write \["):
        override(RunConfig(), [f"data.orientation={axes}"])


def test_a_preset_extends_another_option_by_option(tmp_path: Path) -> None:
    seven, one = load_preset("acdc-7"), load_preset("acdc-1")
    assert (seven.preset, seven.labeled, one.labeled) == ("acdc-7", 7, 1)
    assert replace(seven, preset="acdc-1", labeled=1) == one
    assert (one.train.steps, one.train.batch, one.train.unlabeled_batch, one.data.size) == (30000, 12, 12, (256, 256))
    file = tmp_path / "mine.yaml"
    file.write_text("extends: acdc-3\ntrain: {steps: 5}\n")
    mine = load_preset(file)
    assert (mine.labeled, mine.train.steps, mine.train.batch) == (3, 5, 12)
    for base in (str(file), "5", "[acdc]"):
        file.write_text(f"extends: {base}\n")
        with pytest.raises(InputError, match=r"mine\.yaml: extends: the name of another preset"):
            load_preset(file)
    file.write_text("extends: nothing\n")
    with pytest.raises(InputError, match="preset nothing"):
        load_preset(file)


def test_the_presets_of_the_package_are_these() -> None:
    assert preset_names() == [
        "acdc",
        "acdc-1",
        "acdc-3",
        "acdc-7",
        "acdc-study",
        "default",
        "demo",
        "hippocampus",
        "hippocampus-3d",
        "hippocampus-study",
        "sarcoma_ct",
    ]


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in ("acdc-1", "acdc-3", "acdc-7")])
def test_each_preset_loads_under_its_name_and_says_what_it_is_for(name: str) -> None:
    assert load_preset(name).preset == name
    first, second = (PRESETS / f"{name}.yaml").read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith("#   secl ")


def test_no_flip_where_it_swaps_structures() -> None:
    assert load_preset("hippocampus").augment.flip == ()
    assert load_preset("acdc").augment.flip == ()


@pytest.mark.parametrize("config", [RunConfig(), EVERYTHING, *map(load_preset, ["acdc", "default", "sarcoma_ct"])])
def test_dictionaries_and_files_give_back_exactly_what_went_in(config: RunConfig, tmp_path: Path) -> None:
    assert from_dict(to_dict(config)) == config
    assert from_dict(yaml.safe_load(to_yaml(config))) == config
    write_text(tmp_path / "config.yaml", to_yaml(config))
    assert load_preset(tmp_path / "config.yaml") == config
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.drawn
@examples(100, lr=st.floats(min_value=1e-300, max_value=1e300), steps=st.integers(1, 10**12))
def test_every_number_survives_yaml(lr: float, steps: int) -> None:
    config = RunConfig(train=TrainConfig(lr=lr, steps=steps))
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


def test_plain_dictionaries_hold_no_tuples() -> None:
    assert to_dict(RunConfig())["network"]["channels"] == [16, 32, 64, 128, 256]
    assert "!!" not in to_yaml(EVERYTHING)


def test_an_incomplete_file_keeps_the_defaults_and_takes_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("train:\n  steps: 5\n")
    assert load_preset(tmp_path / "short.yaml") == RunConfig(preset="short", train=TrainConfig(steps=5))


def test_overrides_act_together_and_last_one_wins() -> None:
    changed = override(
        RunConfig(),
        [
            "train.steps=200",
            "network.channels=[8,16,32]",
            "data.patch=[32,20]",
            "seed=1",
            "seed=2",
            "train.lr=5e-4",
        ],
    )
    assert changed == replace(
        RunConfig(),
        seed=2,
        data=DataConfig(patch=(32, 20)),
        network=NetworkConfig(channels=(8, 16, 32)),
        train=TrainConfig(steps=200, lr=0.0005),
    )


def test_overrides_read_null_true_and_whole_numbers_for_decimals() -> None:
    changed = override(
        EVERYTHING, ["data.window=null", "data.normalize=volume", "train.compile=false", "contrast.weight=1"]
    )
    assert changed.data.window is None
    assert changed.train.compile is False
    assert repr(changed.contrast.weight) == "1.0"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "train.stepz=5",
            "train.stepz: an option that exists; got an unknown name. Cure: the nearest are train.steps",
        ),
        ("lr=5", "the nearest are train.lr"),
        ("train=5", "train: an option that exists"),
        ("zzz=5", "the options are preset, labeled"),
        ("train.steps", "train.steps: key=value; got no ="),
        ("train.steps=[", r"train.steps: a value in yaml; got \["),
        ("train.steps=many", r"train.steps: of type int; got 'many' \(str\). Cure: write 3, for example"),
        ("train.steps=1.5", r"train.steps: of type int; got 1.5 \(float\)"),
        ("train.steps=true", r"train.steps: of type int; got True \(bool\)"),
        ("train.lr=fast", r"train.lr: of type float; got 'fast' \(str\)"),
        ("train.lr=true", r"train.lr: of type float; got True \(bool\)"),
        ("train.lr=.nan", r"train.lr: of type float; got nan \(float\)"),
        ("train.lr=.inf", r"train.lr: of type float; got inf \(float\)"),
        ("train.compile=1", r"train.compile: of type bool; got 1 \(int\)"),
        ("train.method=null", r"train.method: of type str; got None \(NoneType\)"),
        ("network.channels=8", r"network.channels: a list of int; got 8 \(int\)"),
        ("network.channels=[8,wide]", r"network.channels\[1\]: of type int; got 'wide'"),
        ("data.window=[1,2,3]", r"data.window: a list of 2 float; got \[1, 2, 3\]"),
    ],
)
def test_a_bad_override_names_the_key_and_the_cure(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(RunConfig(), [assignment])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"dims": 4}}, "data.dims: one of 2, 3; got 4"),
        ({"data": {"normalize": "max"}}, "data.normalize: one of auto, volume, slice, window; got max"),
        ({"data": {"normalize": "window"}}, 'data.normalize: "window" needs data.window'),
        ({"data": {"patch": [64, 64, 64]}}, "data.patch: 2 positive numbers"),
        ({"data": {"size": []}}, "data.size: 2 positive numbers"),
        ({"data": {"spacing": [1.0, -1.0]}}, "data.spacing: 2 positive numbers"),
        (
            {"data": {"spacing": [1.0, 1.0], "size": [64, 64]}},
            "data.size: a fixed size and a spacing exclude each other",
        ),
        ({"data": {"window": [240, -160]}}, "data.window: two intensities, the lower first"),
        ({"data": {"foreground": 1.5}}, "data.foreground: between 0 and 1; got 1.5"),
        ({"data": {"patch": [100, 128]}}, r"data.patch: multiples of 16, .* Cure: write \[96, 128\]"),
        ({"data": {"patch": [16, 16]}}, "data.patch: multiples of 16, .* and not 16 on every axis"),
        ({"data": {"dims": 3, "patch": [32, 32, 32]}}, "contrast.grid: 3 counts, one for each spatial axis"),
        (
            {"train": {"method": "secl"}, "data": {"patch": [64, 48]}, "network": {"taps": [4, 1]}},
            r"contrast.grid: no finer than the map of network.taps \[4, 1\], \[4, 3\]; got \(4, 4\). Cure: write ",
        ),
        ({"contrast": {"per_class": 1}}, "contrast.per_class: at least 2, half of which are hard anchors; got 1"),
        ({"augment": {"flip": [2]}}, "augment.flip: axes between 0 and 1"),
        ({"augment": {"flip": [0, 0]}}, "augment.flip: each axis at most once"),
        ({"augment": {"scale": 1.0}}, "augment.scale: between 0 and 0.9"),
        ({"augment": {"noise": -1.0}}, "augment.noise: at least 0"),
        ({"network": {"channels": [16]}}, "network.channels: positive widths, at least 3 for unet"),
        ({"network": {"taps": [5]}}, "network.taps: levels of network.channels, between 0 and 4"),
        ({"network": {"taps": []}}, "network.taps: levels"),
        ({"network": {"projection": 0}}, "network.projection: at least 1"),
        ({"network": {"last": 5}}, "network.last: between 0 and 4; got 5"),
        ({"contrast": {"temperature": 0}}, "contrast.temperature: above 0; got 0"),
        ({"contrast": {"denominator": "some"}}, "contrast.denominator: one of negatives, all"),
        ({"contrast": {"strategy": "best"}}, "contrast.strategy: one of auto, uniform, stratified, hard"),
        ({"contrast": {"backend": "cuda"}}, "contrast.backend: one of auto, reference, native, triton"),
        ({"contrast": {"confidence": 2}}, "contrast.confidence: between 0 and 1"),
        ({"prototype": {"count": 0}}, "prototype.count: at least 1; got 0"),
        ({"prototype": {"decay": 1.5}}, "prototype.decay: between 0 and 1; got 1.5"),
        ({"prototype": {"temperature": 0}}, "prototype.temperature: above 0; got 0.*Cure: write 0.1"),
        ({"prototype": {"contrast": -1}}, "prototype.contrast: at least 0; got -1"),
        ({"centroid": {"weight": -1}}, "centroid.weight: at least 0; got -1"),
        ({"centroid": {"bank": 0}}, "centroid.bank: at least 1; got 0"),
        ({"centroid": {"unsure": 2}}, "centroid.unsure: between 0 and 1; got 2"),
        ({"centroid": {"boundary_temperature": 0}}, "centroid.boundary_temperature: above 0; got 0"),
        ({"disagreement": {"weight": -1}}, "disagreement.weight: at least 0; got -1"),
        ({"disagreement": {"share": 2}}, "disagreement.share: between 0 and 1; got 2"),
        ({"disagreement": {"dropout": 1}}, "disagreement.dropout: between 0 and 0.99; got 1"),
        ({"train": {"method": "magic"}}, "train.method: one of supervised, mean-teacher, copy-paste, secl-region"),
        ({"train": {"steps": 0}}, "train.steps: at least 1"),
        ({"train": {"lr": 0}}, "train.lr: above 0"),
        ({"train": {"decay": 1.1}}, "train.decay: between 0 and 1"),
        ({"train": {"precision": "fp8"}}, "train.precision: one of auto, 32-true"),
        ({"labeled": 0}, "labeled: at least 1; got 0"),
        ({"seed": -1}, "seed: at least 0; got -1"),
        ({"train": 5}, r"train: a section with options; got 5 \(int\)"),
        ({"train": {"step": 5}}, "train.step: an option that exists.* the nearest are train.steps"),
        ({"trian": {}}, "trian: an option that exists"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dict(values)


def test_an_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(InputError, match=f"preset hipocampus: one of {', '.join(preset_names())}, or the path"):
        load_preset("hipocampus")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "readable yaml"),
        ("- 1\n- 2\n", "a yaml mapping of options; got list"),
        ("", "mapping of options; got NoneType"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"broken.yaml: .*{message}"):
        load_preset(path)


@pytest.mark.parametrize("text", ["2024-13-45", "[" * 3000, "1" * 5000, "!!timestamp x", "{[1]: 2}", "!!int x"])
def test_what_yaml_itself_stumbles_over_is_refused_by_the_key(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.steps: "):
        override(RunConfig(), [f"train.steps={text}"])
    (tmp_path / "p.yaml").write_text(f"seed: {text}")
    with pytest.raises(InputError, match=r"p\.yaml: readable yaml|seed: of type int"):
        load_preset(tmp_path / "p.yaml")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_preset_that_no_file_can_be(name: str) -> None:
    with pytest.raises(InputError, match="no such preset"):
        load_preset(name)
