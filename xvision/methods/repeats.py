"""The same image seen again: changes without clinical meaning, and what they do to the deployed decision.

Shapes: B images, C channels, H W image; N cases, T times, K classes. Everything drawn for a case depends on the seed, the
repeat and the case's key alone. A decision that flips here shows that it hung on something that no reader sees; one that does
not flip shows nothing about any other change.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.special import softmax
from torch import nn

from xvision.errors import DataError, ModelError
from xvision.methods.corruptions import CORRUPTIONS
from xvision.methods.decision import Decision, decide, shifted_logits
from xvision.methods.randomness import case_generator, case_seed, require_keys

LEVEL = 1.0 / 255.0
"""One grey level of an 8-bit image; an image of 12 bits has 16 of its own levels in it."""
JPEG_QUALITY = 95.0
TOLERANCE = 1e-4
"""Change of a logit above which pixels that are the same count as answered differently (Croce and Hein 2020, AutoAttack's
check for random models), times the case's largest logit where that is above 1: rounding grows with the numbers."""

Apply = Callable[[torch.Tensor, Sequence[torch.Generator]], torch.Tensor]
"""(B, C, H, W) pixels in [0, 1] and one generator per image to pixels of the same shape in [0, 1]."""
Forward = Callable[[torch.Tensor], torch.Tensor]
"""(B, C, H, W) pixels to (B, K) logits."""
Ask = Callable[[Forward, torch.Tensor], torch.Tensor]
"""A model and pixels (B, C, H, W) to logits (B, K) of the same images in the same order, found in another way."""


@dataclass(frozen=True)
class Repeat:
    """A way of seeing an image again. stands_for: what happens in practice that this imitates."""

    name: str
    title: str
    stands_for: str


@dataclass(frozen=True)
class ImageRepeat(Repeat):
    """Other pixels of the same image. times: how often it is asked; None for one that is drawn, as often as the audit says."""

    apply: Apply
    times: int | None = 1


@dataclass(frozen=True)
class PassRepeat(Repeat):
    """The same pixels, computed in another way. fewest: images that a batch must hold for it to mean anything."""

    ask: Ask
    fewest: int = 1


def repeated(
    pixels: torch.Tensor, repeat: ImageRepeat, keys: Sequence[str], *, seed: int, draw: int = 0
) -> torch.Tensor:
    """The images (B, C, H, W), seen again: float32 in [0, 1]; ``draw`` counts the times.

    Raises DataError for images that are no batch or outside [0, 1], or another number of keys.
    """
    if pixels.ndim != 4 or len(pixels) == 0:
        raise DataError(f"found pixels of shape {tuple(pixels.shape)}: (B, C, H, W) with at least one image is needed")
    lowest, highest = pixels.min().item(), pixels.max().item()
    if not (lowest >= 0.0 and highest <= 1.0):
        raise DataError(f"found pixels from {lowest:.4g} to {highest:.4g}: they must be finite and in [0, 1]")
    require_keys(keys, len(pixels))
    generators = [case_generator(case_seed(seed, f"repeat {repeat.name}/{draw}", key)) for key in keys]
    return repeat.apply(pixels.detach().float(), generators)


def _same(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    return pixels


def _brighter(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    return (pixels + LEVEL).clamp(max=1.0)


def _darker(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    return (pixels - LEVEL).clamp(min=0.0)


def _random_level(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """One level up or down, drawn once per pixel and the same in all channels, because an X-ray is grey."""
    shape = (1, *pixels.shape[2:])
    signs = torch.stack([2.0 * torch.randint(0, 2, shape, generator=each) - 1.0 for each in generators])
    return (pixels + LEVEL * signs.to(pixels.device)).clamp(0.0, 1.0)


def _left(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    return torch.cat((pixels[..., 1:], pixels[..., -1:]), dim=3)


def _right(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    return torch.cat((pixels[..., :1], pixels[..., :-1]), dim=3)


def _up(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    return torch.cat((pixels[..., 1:, :], pixels[..., -1:, :]), dim=2)


def _down(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    return torch.cat((pixels[..., :1, :], pixels[..., :-1, :]), dim=2)


def _png(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    levels = (255.0 * pixels).round().to(torch.uint8).cpu().numpy()
    decoded = np.stack([[_through_png(channel) for channel in case] for case in levels])
    return torch.from_numpy(decoded).to(pixels.device, torch.float32) / 255.0


def _through_png(image: np.ndarray) -> np.ndarray:
    """One grey file per channel: without loss, so that it does not matter how they are packed."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return np.asarray(Image.open(buffer))


def _jpeg(pixels: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    return CORRUPTIONS["jpeg"].apply(pixels, JPEG_QUALITY, [0] * len(pixels))


# fmt: off
IMAGE_REPEATS: tuple[ImageRepeat, ...] = (
    ImageRepeat("same_image", "Same image again", "asking twice: a model that draws answers differently", _same, 5),
    ImageRepeat("level_up", "One grey level up", "rounding, a detector's offset", _brighter),
    ImageRepeat("level_down", "One grey level down", "rounding, a detector's offset", _darker),
    ImageRepeat("level_random", "One grey level, random sign", "quantisation and dither", _random_level, None),
    ImageRepeat("shift_left", "One pixel to the left", "another crop, the patient's position", _left),
    ImageRepeat("shift_right", "One pixel to the right", "another crop, the patient's position", _right),
    ImageRepeat("shift_up", "One pixel up", "another crop, the patient's position", _up),
    ImageRepeat("shift_down", "One pixel down", "another crop, the patient's position", _down),
    ImageRepeat("png", "Saved as 8-bit PNG", "export and import without loss beyond 8 bits", _png),
    ImageRepeat("jpeg", "Saved as JPEG, quality 95", "an archive that compresses mildly", _jpeg),
)
# fmt: on


def in_precision(dtype: torch.dtype) -> Ask:
    """The same pixels under torch's autocast to a 16-bit type; what it computes in it is torch's choice."""

    def ask(forward: Forward, pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(pixels.device.type, dtype=dtype):
            return forward(pixels).float()

    return ask


def alone(forward: Forward, pixels: torch.Tensor) -> torch.Tensor:
    """Each image in a batch of its own: B passes."""
    return torch.cat([forward(pixels[row : row + 1]) for row in range(len(pixels))])


def reversed_order(forward: Forward, pixels: torch.Tensor) -> torch.Tensor:
    """The batch from its last image to its first, the logits (B, K) put back in order."""
    return forward(pixels.flip(0)).flip(0)


PASS_REPEATS: tuple[PassRepeat, ...] = (
    PassRepeat("bfloat16", "16-bit arithmetic (bfloat16)", "faster hardware", in_precision(torch.bfloat16)),
    PassRepeat("float16", "16-bit arithmetic (float16)", "faster hardware", in_precision(torch.float16)),
    PassRepeat("alone", "Alone instead of in a batch", "one patient at a time", alone, fewest=2),
    PassRepeat("batch_order", "Batch in reversed order", "another order of patients", reversed_order, fewest=2),
)
DOUBLE = Repeat("float64", "64-bit arithmetic (float64)", "rounding of float32 itself")
"""By ``in_double``."""
RESAMPLING = Repeat("resampling", "Read with another resizing filter", "another library prepares the image")
"""By whoever can read the image again."""


def in_double(module: nn.Module, *, most_bytes: int) -> nn.Module:
    """A copy that computes in float64, whose floating-point inputs are cast to it; the module itself stays as it is.

    Raises ModelError where the copy's weights would take more than ``most_bytes``.
    """
    size = 8 * sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
    if size > most_bytes:
        raise ModelError(
            f"its weights would take {size / 2**20:.0f} MiB in float64, more than the {most_bytes / 2**20:.0f} allowed"
        )
    twin = deepcopy(module).double()
    twin.register_forward_pre_hook(_with_doubles, with_kwargs=True)
    return twin


def _with_doubles(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    return tuple(_doubled(value) for value in given), {name: _doubled(value) for name, value in named.items()}


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class Changes(NamedTuple):
    """What T repeats did to N cases, each (N, T).

    decided: the class, -1 where a logit is not finite, which is no decision. probability: the largest change of the
    probability of a class, NaN where a logit is not finite. logit: the largest change of a logit, infinite there.
    """

    decided: np.ndarray
    probability: np.ndarray
    logit: np.ndarray


def changes_of(logits: np.ndarray, again: np.ndarray, decision: Decision) -> Changes:
    """Logits (N, T, K) of repeats beside those of the images (N, K); raises ModelError where the latter are not finite."""
    decide(logits, decision)
    finite = np.isfinite(again).all(axis=2)
    kept = np.where(finite[..., None], again, logits[:, None]).astype(np.float64)
    decided = decide(kept.reshape(-1, logits.shape[1]), decision).reshape(finite.shape)
    moved = np.abs(softmax(kept, axis=2) - softmax(logits.astype(np.float64), axis=1)[:, None]).max(axis=2)
    steps = np.abs(kept - logits[:, None]).max(axis=2)
    return Changes(np.where(finite, decided, -1), np.where(finite, moved, np.nan), np.where(finite, steps, np.inf))


def answered_differently(logits: np.ndarray, changes: Changes) -> np.ndarray:
    """(N,) bool: did a logit move by more than ``TOLERANCE``, relative to the largest one (at least 1)?

    For repeats of the same pixels. On a GPU, kernels chosen by the size of the batch may do this without the model's doing.
    """
    scale = np.maximum(np.abs(logits).max(axis=1), 1.0)
    return np.asarray((changes.logit > TOLERANCE * scale[:, None]).any(axis=1))


def margins(logits: np.ndarray, decision: Decision) -> np.ndarray:
    """(N,) log-odds between the decided class and the next, 0 at the threshold; for logits (N, K)."""
    ordered = np.sort(shifted_logits(logits.astype(np.float64), decision), axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def turned(
    decided: np.ndarray, before: np.ndarray, labels: np.ndarray, healthy: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Flips that do harm: (N,) ill cases found before and missed now, (N,) healthy ones cleared before and called ill now.

    decided: (N, T) with -1 for no decision. before, labels: (N,) classes. healthy: the class without disease; without one,
    nothing is missed and nothing is a false alarm.
    """
    if healthy is None:
        nothing = np.zeros(len(labels), dtype=bool)
        return nothing, nothing
    ill, cleared = labels != healthy, before == healthy
    missed = (ill & ~cleared)[:, None] & (decided == healthy)
    alarm = (~ill & cleared)[:, None] & (decided != healthy) & (decided >= 0)
    return missed.any(axis=1), alarm.any(axis=1)
