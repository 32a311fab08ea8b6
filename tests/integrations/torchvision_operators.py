"""Lets torchvision import beside another build of torch, so that timm and fastai import.

The operators of torchvision's wheel load beside one build of torch alone, and its Python code fails where they are
missing. Their names are enough for all that needs no such operator. `make test-integrations` keeps torchvision, timm
and fastai in a folder of their own, which only the tests of timm and fastai have on their path.
"""

from __future__ import annotations

import sys

import pytest
import torch

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    *(
        f"{name}(Tensor a) -> Tensor"
        for name in ("qnms", "roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_align")
    ),
    *(f"{name}(Tensor a) -> Tensor" for name in ("ps_roi_pool", "_ps_roi_align_backward", "deform_conv2d")),
)
library: torch.library.Library | None = None

try:
    pytest.importorskip("torchvision")
except RuntimeError:  # operator torchvision::nms does not exist
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(operator)
    pytest.importorskip("torchvision")
