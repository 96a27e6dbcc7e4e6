"""Images and labels on their way to the device: kept there when they fit, sent batch by batch when they do not."""

from __future__ import annotations

import numpy as np
import torch

from xvision.models.preprocessing import Preprocessing
from xvision.recipe import TrainingPlan
from xvision.training.record import Arrays

_SHARE = 0.25
"""Of the device's free memory that the images may take."""


class Batches:
    """Batches of one split by the indices of its images."""

    def __init__(self, arrays: Arrays, preprocessing: Preprocessing, device: torch.device) -> None:
        self.arrays, self.device = arrays, device
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )
        self._scale = preprocessing.scale
        self._resident = (
            torch.from_numpy(np.ascontiguousarray(arrays.pixels)).to(device) if _fits(arrays, device) else None
        )

    def pixels(self, chosen: np.ndarray) -> torch.Tensor:
        """(B, C, H, W) float32 in [0, 1] on the device."""
        if self._resident is not None:
            found = self._resident[torch.from_numpy(chosen).to(self.device, non_blocking=True)]
        else:
            found = self._sent(self.arrays.pixels[chosen])
        return found.float() / 255 if found.dtype == torch.uint8 else found

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """As ``Preprocessing.normalise``, with its numbers already on the device."""
        return (pixels * self._scale - self._mean) / self._std

    def labels(self, chosen: np.ndarray) -> torch.Tensor:
        """(B,) or (B, K) on the device."""
        return self._sent(self.arrays.labels[chosen])

    def text(self, chosen: np.ndarray) -> torch.Tensor | None:
        """(B, T) on the device, None for a model without text."""
        return None if self.arrays.text is None else self._sent(self.arrays.text[chosen])

    def _sent(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def precision(plan: TrainingPlan, device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic where the plan asks for it; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=plan.precision == "bfloat16")


def _fits(arrays: Arrays, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return arrays.pixels.nbytes < _SHARE * free
