# SPDX-License-Identifier: Apache-2.0
"""Pixel contrast as segmentation projects write it: a Python loop over images and classes picks the pixels.

Written from the published description of ContrastiveSeg (Wang et al., ICCV 2021, arXiv:2101.11939): per class of each
image half of the anchors are hard (predicted wrongly), half easy; equally many of each; then the dense loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Draw(NamedTuple):
    """The pixels that were picked, class by class of each image."""

    images: list[int]
    pixels: list[Tensor]  # of each image's class, [views]
    labels: Tensor  # [n]


def split_evenly(hard: int, easy: int, views: int) -> tuple[int, int]:
    """How many hard and easy pixels make `views`, where there are so many.

    Example:
        >>> split_evenly(9, 9, 4), split_evenly(1, 9, 4), split_evenly(9, 0, 4)
        ((2, 2), (1, 3), (4, 0))
    """
    if hard < views / 2:
        return hard, views - hard
    if easy < views / 2:
        return views - easy, easy
    return views // 2, views - views // 2


def pick(labels: Tensor, predicted: Tensor, most: int, most_views: int, ignore: int = -1) -> Draw:
    """Pick equally many pixels of every class of every image that has enough of them; labels [B, P]."""
    found = [
        (image, value)
        for image in range(len(labels))
        for value in torch.unique(labels[image]).tolist()
        if value != ignore and int((labels[image] == value).sum()) > most_views
    ]
    views = min(most // max(1, len(found)), most_views)
    pixels, classes = [], []
    for image, value in found:
        mine = labels[image] == value
        hard = (mine & (predicted[image] != value)).nonzero().squeeze(1)
        easy = (mine & (predicted[image] == value)).nonzero().squeeze(1)
        keep_hard, keep_easy = split_evenly(len(hard), len(easy), views)
        some_hard = hard[torch.randperm(len(hard), device=hard.device)[:keep_hard]]
        some_easy = easy[torch.randperm(len(easy), device=easy.device)[:keep_easy]]
        pixels.append(torch.cat([some_hard, some_easy]))
        classes.append(labels.new_full((len(pixels[-1]),), value))
    return Draw([image for image, _ in found], pixels, torch.cat(classes))


def contrastive(rows: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean over anchors of the mean over positives of -log(e^s / (e^s + sum of e^s over the negatives))."""
    same = (labels[:, None] == labels[None, :]).float()
    similarity = (rows @ rows.T).float() / temperature
    logits = similarity - similarity.amax(dim=1, keepdim=True).detach()
    exponentials = logits.exp()
    negatives = (exponentials * (1 - same)).sum(dim=1, keepdim=True)
    positive = same - torch.eye(len(same), device=same.device)
    log_probability = logits - (exponentials + negatives).log()
    return -((positive * log_probability).sum(dim=1) / positive.sum(dim=1)).mean()


def pixel_contrast(
    features: Tensor,  # [B, D, *spatial]
    labels: Tensor,  # [B, *spatial]
    predicted: Tensor,  # [B, *spatial]
    most: int,
    most_views: int,
    temperature: float,
    *,
    lean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a feature map, and number and label of the picked pixels.

    As published every pixel is normalised, by the projection head, and each class of each image is gathered by itself,
    which in the backward pass fills a map of zeros each time; `lean` gathers once and normalises the picked rows.
    """
    draw = pick(labels.flatten(1), predicted.flatten(1), most, most_views)
    count = labels[0].numel()
    number = torch.cat([image * count + each for image, each in zip(draw.images, draw.pixels, strict=True)])
    given = features if lean else normalize(features, dim=1)
    flat = given.flatten(2).transpose(1, 2).contiguous()  # [B, P, D]
    if lean:
        rows = normalize(flat.flatten(0, 1)[number], dim=1)
    else:
        rows = torch.cat([flat[image, each] for image, each in zip(draw.images, draw.pixels, strict=True)])
    return contrastive(rows, draw.labels, temperature), number, draw.labels
