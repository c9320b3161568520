# SPDX-License-Identifier: Apache-2.0
"""What the pages are made of: numbers, charts with their legends, and the templates that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent


def render(template: str, context: Mapping[str, Any]) -> str:
    """The text of a page.

    Args:
        template: Name of a file beside this one.
        context: Everything that the template names.
    """
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**context)


def number(value: float) -> str:
    """One decimal, or a dash where there is no number."""
    return f"{value:.1f}" if math.isfinite(value) else "-"


def figure(name: str, value: float, unit: str) -> dict[str, str]:
    """One of the large numbers at the top of a page."""
    return {"name": name, "value": number(value), "unit": unit}


def score_row(
    structure: str,
    run: str,
    shade: str,
    measures: Sequence[tuple[str, float, float]],
    counts: Sequence[tuple[str, int]],
) -> dict[str, Any]:
    """A line of a table of scores.

    Args:
        structure: Its name, or `mean`.
        run: Whose scores.
        shade: Colour of the structure; empty for `mean`.
        measures: Name, mean and standard deviation, which may be NaN.
        counts: Name and number of what the means hide.
    """
    cells = [
        {"name": name, "mean": number(mean), "sd": number(sd) if math.isfinite(sd) else ""}
        for name, mean, sd in measures
    ]
    return {"structure": structure, "run": run, "colour": shade, "cells": cells, "counts": counts}


def chart(title: str, text: str, svg: str, legend: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """A picture with its heading.

    Args:
        title: Heading.
        text: What is shown, in a sentence.
        svg: An element made by `report.pictures`, of numbers and of text that matplotlib escapes.
        legend: See `legend`.
    """
    return {"title": title, "text": text, "svg": Markup(svg), "legend": legend}


def legend(names: Iterable[str], colours: Sequence[str]) -> list[dict[str, str]]:
    """Names with their colours, which repeat where there are more names."""
    return [{"name": name, "colour": colours[i % len(colours)]} for i, name in enumerate(names)]
