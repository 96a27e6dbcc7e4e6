"""A plain torch network as the audit sees it: its input and its classes are known, its insides are not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from xvision.errors import ModelError
from xvision.models.base import hash_weights, two_sided
from xvision.models.feature_maps import FeatureReader
from xvision.models.loading import DAMAGE, reason
from xvision.models.protocols import Access, InputSpec


@dataclass(frozen=True)
class Facts:
    """What a network does not say of itself.

    classes: in the order of the outputs. structure: text that decides the numbers beside the weights; it goes into the
    fingerprint. notes: what had to be assumed.
    """

    classes: tuple[str, ...]
    multilabel: bool
    input: InputSpec
    architecture: str
    source: str
    structure: str
    notes: tuple[str, ...] = ()


class NetworkClassifier(FeatureReader):
    """A Classifier and a FeatureClassifier around ``module``, which takes pixels (B, C, H, W) in [0, 1] and gives outputs (B, K).

    One output z, read as the log-odds of its class, becomes the two logits (0, z). Access is white-box where gradients
    reach the pixels of a test image, else black-box.
    """

    def __init__(self, module: nn.Module, facts: Facts, device: torch.device) -> None:
        self.module, self.facts, self._device = module, facts, device
        self.module.requires_grad_(False)
        self.classes = facts.classes
        self.access = self._probed()

    @property
    def multilabel(self) -> bool:
        return self.facts.multilabel

    @property
    def input(self) -> InputSpec:
        return self.facts.input

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every weight, the structure, the classes and the input, as they are now."""
        facts = self.facts
        digest = hashlib.sha256(repr((facts.structure, facts.classes, facts.multilabel, facts.input)).encode())
        hash_weights(digest, self.module)
        return digest.hexdigest()

    @property
    def description(self) -> dict[str, str | int]:
        """Facts for the report: architecture, input, parameters, source and what was assumed."""
        facts = self._facts(self.facts.architecture, self.facts.source)
        return {**facts, "notes": "; ".join(self.facts.notes)} if self.facts.notes else facts

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) in float32 for pixels (B, C, H, W) in [0, 1]; raises ModelError for another shape."""
        return two_sided(self._run(self._checked(pixels)))

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.module(pixels)
        return outputs

    def _probed(self) -> Access:
        """How much the network gives, found with one noisy image; a model that cannot run is refused here."""
        spec, name = self.input, self.facts.architecture
        noise = torch.rand(1, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(0))
        pixels = noise.to(self.device).requires_grad_()
        try:
            outputs, again = self._run(pixels), self._run(pixels.detach())
        except DAMAGE as problem:
            size = f"{spec.channels} × {spec.height} × {spec.width}"
            raise ModelError(f"{name} cannot be run on an image of {size}: {reason(problem)}") from problem
        expected = 1 if len(self.classes) == 2 and outputs.shape[-1:] == (1,) else len(self.classes)
        if not isinstance(outputs, torch.Tensor) or tuple(outputs.shape) != (1, expected):
            raise ModelError(
                f"{name} gives outputs of shape {tuple(outputs.shape)} for one image; {len(self.classes)} classes need "
                f"(1, {len(self.classes)}): correct the classes {list(self.classes)}, or export one output of logits."
            )
        if not torch.isfinite(outputs).all():
            raise ModelError(f"{name} gives logits that are not finite for a noisy image: its weights are damaged.")
        if not torch.allclose(outputs.float(), again.float(), rtol=1e-3, atol=1e-3):
            raise ModelError(
                f"{name} gives other logits for the same image the second time: it was exported while training; put it in "
                "eval mode and export it again."
            )
        return "white-box" if _reaches(outputs, pixels) else "black-box"


def _reaches(outputs: torch.Tensor, pixels: torch.Tensor) -> bool:
    """Whether the outputs' gradient with respect to the pixels exists, is finite and is not zero."""
    if not outputs.requires_grad:
        return False
    try:
        (gradient,) = torch.autograd.grad(outputs[:, -1].sum(), pixels, allow_unused=True)
    except RuntimeError:  # an operator without a derivative: the model can be run, not differentiated
        return False
    return gradient is not None and bool(torch.isfinite(gradient).all()) and bool(gradient.any())


def two_sided_names(names: tuple[str, ...], outputs: int) -> tuple[str, ...]:
    """The classes of the logits: one output named X, which is the log-odds of X, means "not X" and X."""
    return (f"not {names[0]}", names[0]) if outputs == 1 and len(names) == 1 else names
