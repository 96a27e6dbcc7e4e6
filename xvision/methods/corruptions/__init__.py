"""Ways an image goes wrong before it reaches the model, in five severities each.

Written on torch tensors, batched; every case draws from its own seed, so a result does not depend on the batch, the order
or the device. Lengths are in pixels at a side (the shorter one) of 224 and scale with the side. A severity is a setting,
not a size of change: show it with the PSNR and SSIM that ``psnr`` and ``ssim`` measure.

Parameters from MedMNIST-C are those of Di Salvo et al. (2024), from ImageNet-C those of Hendrycks and Dietterich (2019);
the others were set here and no radiologist has graded them. ``kind`` says what a kind is, ``registry`` knows them all.
"""

from xvision.methods.corruptions.apply import corrupt
from xvision.methods.corruptions.kind import ANY, MODALITIES, REFERENCE_SIDE, Apply, Corruption, Parameter, Severities
from xvision.methods.corruptions.quality import psnr, ssim
from xvision.methods.corruptions.registry import (
    CORRUPTIONS,
    corruption_of,
    kind_of,
    kinds_of,
    register,
    severities_of,
    unregister,
)

__all__ = [
    "ANY", "CORRUPTIONS", "MODALITIES", "REFERENCE_SIDE", "Apply", "Corruption", "Parameter", "Severities",
    "corrupt", "corruption_of", "kind_of", "kinds_of", "psnr", "register", "severities_of", "ssim", "unregister",
]  # fmt: skip
