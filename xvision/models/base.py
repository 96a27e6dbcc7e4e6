"""What every classifier around a torch module has in common."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, Self

import torch
from torch import nn

from xvision.errors import ModelError
from xvision.models.parts import Parts, parameters_of, parts_of, shuffle
from xvision.models.protocols import InputSpec, Task


class ModuleClassifier:
    """Classes, an input and a module; a subclass says how pixels become logits. A RandomisableClassifier."""

    bounds: tuple[float, float] = (0.0, 1.0)
    classes: tuple[str, ...]
    module: Any
    """A torch module; what else it is, a subclass knows."""
    _parts: Parts | None = None

    @property
    def multilabel(self) -> bool:
        """Whether every class is a finding of its own."""
        return False

    @property
    def task(self) -> Task:
        if self.multilabel:
            return "multilabel"
        return "binary" if len(self.classes) == 2 else "multiclass"

    @property
    def input(self) -> InputSpec:
        raise NotImplementedError

    @property
    def description(self) -> dict[str, str | int]:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        device: torch.device = self.module.device
        return device

    @property
    def parts(self) -> tuple[str, ...]:
        """The blocks that together hold every parameter, in the order in which an image meets them; found with a grey image."""
        return tuple(self._known_parts())

    def randomised(self, seed: int, parts: Sequence[str] | None = None) -> Self:
        """The same network with every weight tensor of these parts (None: of all) shuffled: same scale, nothing learned.

        A control for explanations. Each tensor's order follows from the seed and its name: the same part is shuffled alike,
        alone or with others. Raises ModelError for a part that is not there.
        """
        names = [name for name, _ in self.module.named_parameters()]
        if parts is not None:
            names = parameters_of(self._known_parts(), parts)
        twin = copy(self)
        with warnings.catch_warnings():  # copying an exported program meets torch's own deprecations
            warnings.simplefilter("ignore", FutureWarning)
            twin.module = deepcopy(self.module)
        shuffle(twin.module, names, seed)
        return twin

    def _known_parts(self) -> Parts:
        if self._parts is None:
            grey = self._grey()
            self._parts = parts_of(self.module, lambda: self.logits(grey))
        return self._parts

    def _grey(self) -> torch.Tensor:
        """One image without content (1, C, H, W)."""
        return torch.full((1, self.input.channels, self.input.height, self.input.width), 0.5, device=self.device)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) in float32 for pixels (B, C, H, W) in [0, 1]; raises ModelError for another shape."""
        raise NotImplementedError

    def _checked(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in float32; ModelError for a shape that the model does not take."""
        expected = (self.input.channels, self.input.height, self.input.width)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected:
            raise ModelError(
                f"The pixels have shape {tuple(pixels.shape)}; this model takes (B, {', '.join(map(str, expected))})."
            )
        return pixels.float()

    def _facts(self, architecture: str, source: str) -> dict[str, str | int]:
        """What the report says of any of them."""
        return {
            "architecture": architecture,
            "input": " × ".join(map(str, (self.input.channels, self.input.height, self.input.width))),
            "parameters": sum(weights.numel() for weights in self.module.parameters()),
            "source": source,
        }


def hash_weights(digest: hashlib._Hash, module: nn.Module) -> None:
    """Adds name, type, shape and value of every weight and buffer."""
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def two_sided(logits: torch.Tensor) -> torch.Tensor:
    """(B, K) float32; one output z, read as the log-odds of its class, becomes the two logits (0, z)."""
    logits = logits.float()
    return torch.cat((torch.zeros_like(logits), logits), dim=1) if logits.shape[1] == 1 else logits
