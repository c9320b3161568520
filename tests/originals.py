# SPDX-License-Identifier: Apache-2.0
"""A command of nnU-Net, started as its console script starts it: `python -m tests.originals train ...`.

The registry's torchvision, which nnU-Net imports, is built for CUDA: beside a torch for CPUs alone its library does not
load, and then it fails over the names of two operators of detection, which no example calls.
"""

from __future__ import annotations

import importlib
import sys

import torch

COMMANDS = {
    "convert": "nnunetv2.dataset_conversion.convert_MSD_dataset:entry_point",
    "plan_and_preprocess": "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints:plan_and_preprocess_entry",
    "train": "nnunetv2.run.run_training:run_training_entry",
    "predict": "nnunetv2.inference.predict_from_raw_data:predict_entry_point",
}


def load_torchvision() -> None:
    """Import torchvision, beside a torch for CPUs alone too."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if torch.version.cuda is not None or "torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


if __name__ in ("__main__", "__mp_main__"):  # the processes that nnU-Net starts import this file too
    load_torchvision()

if __name__ == "__main__":
    module, _, function = COMMANDS[sys.argv.pop(1)].partition(":")
    getattr(importlib.import_module(module), function)()
