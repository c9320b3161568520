# SPDX-License-Identifier: Apache-2.0
"""What the forge reads parses, and calls what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

FORGE = REPOSITORY / ".github"
WORKFLOWS = sorted((FORGE / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (FORGE / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
TEXTS = [REPOSITORY / "README.md", *sorted(FORGE.rglob("*.md")), *sorted((REPOSITORY / "benchmarks").rglob("*.md"))]
TOP = {path.name for path in REPOSITORY.iterdir()}


def load(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def made(text: str) -> set[str]:
    """The targets that a text asks make for, in code."""
    code = "\n".join("".join(pair) for pair in re.findall(r"```sh\n(.*?)```|`(make [^`]*)`", text, flags=re.DOTALL))
    return set(re.findall(r"\bmake ([a-z][a-z-]*)", code))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_what_there_is_with_pinned_actions_and_few_rights(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text(encoding="utf-8")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    commands = [step["run"] for step in steps if "run" in step]
    targets = {name for command in commands for name in re.findall(r"\bmake ([a-z-]+)", command)}
    assert targets
    assert targets <= TARGETS
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_the_workflows_cover_each_platform_and_the_gpu() -> None:
    cpu, gpu = (load(FORGE / "workflows" / name)["jobs"] for name in ("cpu.yml", "gpu.yml"))
    assert cpu["linux"]["strategy"]["matrix"]["runner"] == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    assert cpu["macos"]["env"]["SECL_BUILD"] == "none"
    for job in cpu.values():
        assert any(step.get("run", "").startswith("make test ") for step in job["steps"])
    assert "self-hosted" in gpu["gpu"]["runs-on"]
    assert "'gpu'" in gpu["gpu"]["if"]
    assert {"run": "make test-gpu"} in gpu["gpu"]["steps"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_asks_what_can_be_answered(path: Path) -> None:
    form = load(path)
    assert form["name"]
    assert form["description"]
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)
    for field in form["body"]:
        assert field["type"] in ("textarea", "dropdown")
        assert field["attributes"]["label"]
        assert (field["type"] == "dropdown") == ("options" in field["attributes"])
    assert load(FORGE / "ISSUE_TEMPLATE" / "config.yml")["blank_issues_enabled"] is True


def missing_paths(text: str) -> list[str]:
    """Paths in code that start at the top of the repository and lead nowhere."""
    words = {word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()}
    return sorted(
        word
        for word in words
        if "/" in word and word.partition("/")[0] in TOP and not any(REPOSITORY.glob(word.rstrip("/")))
    )


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_every_path_and_target_that_a_text_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert missing_paths(text) == []
    assert made(text) <= TARGETS


def test_a_missing_path_or_target_is_seen() -> None:
    text = "see `secl_ops/nowhere.py`, `csrc/*.none` and `tests/`; `make coffee`, `make test`\n```sh\nmake tea\n```\n"
    assert missing_paths(text) == ["csrc/*.none", "secl_ops/nowhere.py"]
    assert made(text) - TARGETS == {"coffee", "tea"}
