"""Measurements that are not part of the tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def declare_detection_operators() -> None:
    """Names the two operators that torchvision describes on import, where its binary part does not bring them.

    A torchvision built for CUDA beside a torch built for the CPU does not load its binary part, then stops at operators
    that do not exist, and transformers with it. grad-cam imports it for resizing only, which is plain Python: nothing
    here ever calls the two. It must come before the first import of transformers.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        for binary in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(binary)
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


declare_detection_operators()
