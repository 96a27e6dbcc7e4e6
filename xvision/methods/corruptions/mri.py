"""Artefacts of magnetic resonance: most arise in k-space, the Fourier transform of the image that the scanner samples.

Images are magnitudes, so what a changed k-space gives back is shown as its absolute value. The phase axis, along which
lines are sampled one after another, is the image's rows or columns, as drawn per case. All channels get the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from xvision.methods.corruptions.draws import normal, uniform
from xvision.methods.corruptions.kind import Corruption

_CENTRE_SHARE = 0.08  # of the lines: fully sampled around the centre, as in fastMRI's fourfold masks
_DEGREE = 3
_TERMS = [(down, across) for down in range(_DEGREE + 1) for across in range(_DEGREE + 1 - down)][1:]


def _gibbs(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """k-space cut beyond ``1 - share`` of the radius of its corners: edges blur and ring."""
    height, width = pixels.shape[2:]
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    kept = radius <= (1.0 - share) * math.sqrt(0.5) + 1e-6
    cut: torch.Tensor = torch.fft.irfft2(torch.fft.rfft2(pixels) * kept.to(pixels.device), s=(height, width))
    return cut.abs()


def _spike(pixels: torch.Tensor, strength: float, seeds: Sequence[int]) -> torch.Tensor:
    """One point of k-space, with its mirror, raised by ``strength`` times the central one: stripes across the image.

    The stripes are a plane wave whose amplitude is ``strength`` times the mean brightness. The point is drawn between
    0.2 and 0.6 of the highest frequency.
    """
    height, width = pixels.shape[2:]
    radius, angle, start = uniform(seeds, 3).unbind(dim=1)
    radius, angle = 0.1 + 0.2 * radius, 2.0 * math.pi * angle
    down, across = torch.round(radius * torch.sin(angle) * height), torch.round(radius * torch.cos(angle) * width)
    rows = torch.exp(2j * math.pi * (down[:, None] * torch.arange(height) / height + start[:, None]))
    columns = torch.exp(2j * math.pi * across[:, None] * torch.arange(width) / width)
    size = strength * pixels.mean(dim=(1, 2, 3), keepdim=True)
    # the real part of an outer product: a product of matrices with the two parts side by side
    down_parts = torch.stack([rows.real, -rows.imag], dim=2)
    across_parts = torch.stack([columns.real, columns.imag], dim=1)
    return pixels + size * (down_parts @ across_parts).unsqueeze(1).to(pixels.device)


def _ghosting(pixels: torch.Tensor, parameter: tuple[float, float], seeds: Sequence[int]) -> torch.Tensor:
    """Every n-th line of k-space weakened by an intensity: n copies of the image along the phase axis, 1/n of it apart.

    Each copy, the one in place included, is taken away with the share intensity / n and a phase of its own. Which of
    the n-th lines is drawn, without the central one, so that the mean brightness stays.
    """
    ghosts, intensity = parameter
    return along_drawn_axis(pixels, seeds, lambda part, keys: _weaken_lines(part, int(ghosts), intensity, keys))


def _weaken_lines(pixels: torch.Tensor, every: int, intensity: float, seeds: Sequence[int]) -> torch.Tensor:
    first = 1 + (uniform(seeds, 1) * (every - 1)).floor().int()
    weak = (_line_numbers(pixels.shape[2]) - first) % every == 0
    return filter_lines(pixels, 1.0 - intensity * weak.float())


def _bias_field(pixels: torch.Tensor, size: float, seeds: Sequence[int]) -> torch.Tensor:
    """Brightness times a smooth field of mean 1: the exponential of a drawn polynomial of degree 3, as a coil's reach.

    The nine coefficients (Legendre, without a constant) are as large as uniform ones in +-``size`` are in root mean
    square; only their proportions are drawn, so that no case gets a weak field by chance.
    """
    height, width = pixels.shape[2:]
    drawn = 2.0 * uniform(seeds, len(_TERMS)) - 1.0
    root_mean_square = drawn.square().mean(dim=1, keepdim=True).sqrt()
    coefficients = drawn * size / math.sqrt(3.0) / root_mean_square
    rows, columns = _legendre(height), _legendre(width)
    table = torch.zeros(len(seeds), _DEGREE + 1, _DEGREE + 1)
    for term, (down, across) in enumerate(_TERMS):
        table[:, down, across] = coefficients[:, term]
    field = (rows.T @ table @ columns).exp()
    field = field / field.mean(dim=(1, 2), keepdim=True)
    return pixels * field.unsqueeze(1).to(pixels.device)


def _legendre(length: int) -> torch.Tensor:
    """Legendre polynomials of degree 0 to 3 at the pixel centres of (-1, 1), shape (4, length)."""
    at = (2.0 * torch.arange(length) + 1.0) / length - 1.0
    return torch.stack([torch.ones(length), at, 1.5 * at**2 - 0.5, 2.5 * at**3 - 1.5 * at])


def _rician_noise(pixels: torch.Tensor, deviation: float, seeds: Sequence[int]) -> torch.Tensor:
    """Magnitude after normal noise in both parts of the complex signal: it brightens the dark, up to 1.25 deviations."""
    noise = deviation * normal(seeds, 2, *pixels.shape[2:]).to(pixels.device)
    return torch.hypot(pixels + noise[:, :1], noise[:, 1:])


def _thick_slices(pixels: torch.Tensor, thickness: float, seeds: Sequence[int]) -> torch.Tensor:
    """Averages over ``thickness`` pixels along one axis, with lines between them: a reformatted stack of thick slices."""
    return along_drawn_axis(pixels, seeds, lambda part, keys: _slicing(part.shape[2], thickness).to(part.device) @ part)


def _slicing(length: int, thickness: float) -> torch.Tensor:
    """(length, length) Weights of a line's pixels in its pixels after slicing."""
    slices = max(1, round(length / thickness))
    step = length / slices
    pixel, piece = torch.arange(length).double(), torch.arange(slices).double()
    overlap = torch.minimum(pixel[None] + 1.0, step * (piece[:, None] + 1.0)) - torch.maximum(
        pixel[None], step * piece[:, None]
    )
    position = ((pixel + 0.5) / step - 0.5).clamp(0.0, slices - 1.0)
    between = (1.0 - (position[:, None] - piece[None]).abs()).clamp(min=0.0)
    return (between @ (overlap.clamp(min=0.0) / step)).float()


def _undersampling(pixels: torch.Tensor, acceleration: float, seeds: Sequence[int]) -> torch.Tensor:
    """One of ``acceleration`` lines sampled, the others zero: noise-like aliasing along the phase axis.

    A twelfth of all lines around the centre is always sampled, the rest is drawn.
    """
    return along_drawn_axis(pixels, seeds, lambda part, keys: _undersample(part, acceleration, keys))


def _undersample(pixels: torch.Tensor, acceleration: float, seeds: Sequence[int]) -> torch.Tensor:
    length = pixels.shape[2]
    central = _line_numbers(length).abs().argsort(stable=True)[: max(1, round(_CENTRE_SHARE * length))]
    rank = uniform(seeds, length)
    rank[:, central] = 2.0 - torch.arange(len(central)) / length
    sampled = rank.topk(max(1, round(length / acceleration)), dim=1).indices
    return filter_lines(pixels, torch.zeros_like(rank).scatter_(1, sampled, 1.0))


def _fold_over(pixels: torch.Tensor, share: float, seeds: Sequence[int]) -> torch.Tensor:
    """A field of view too short by ``share`` along the phase axis: what lies outside comes in at the other side, on top."""
    return along_drawn_axis(pixels, seeds, lambda part, keys: _fold(part, share))


def _fold(pixels: torch.Tensor, share: float) -> torch.Tensor:
    length = pixels.shape[2]
    period = (1.0 - share) * length
    shift = math.floor(period)
    folded = pixels.clone()
    for rows, weight in ((shift, 1.0 - (period - shift)), (shift + 1, period - shift)):
        beyond = max(0, length - rows)
        folded[:, :, :beyond] += weight * pixels[:, :, length - beyond :]
        folded[:, :, length - beyond :] += weight * pixels[:, :, :beyond]
    return folded


def along_drawn_axis(
    pixels: torch.Tensor,
    seeds: Sequence[int],
    change: Callable[[torch.Tensor, Sequence[int]], torch.Tensor],
) -> torch.Tensor:
    """``change`` works along the rows' axis; the cases whose seed is odd (a fair coin: seeds are hashes) are turned first."""
    result = torch.empty_like(pixels)
    for odd in (0, 1):
        chosen = [case for case, seed in enumerate(seeds) if seed % 2 == odd]
        if chosen:
            part = pixels[chosen].transpose(2, 3) if odd else pixels[chosen]
            changed = change(part, [seeds[case] for case in chosen])
            result[chosen] = changed.transpose(2, 3) if odd else changed
    return result


def filter_lines(pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Magnitude after the lines of k-space along the rows' axis are weighted, ``weights`` (B, H) in the FFT's order."""
    spectrum = torch.fft.fft(pixels, dim=2) * weights.to(pixels.device)[:, None, :, None]
    signal: torch.Tensor = torch.fft.ifft(spectrum, dim=2)
    return signal.abs()


def _line_numbers(length: int) -> torch.Tensor:
    """Signed numbers of the lines of k-space in the FFT's order, the centre 0."""
    numbers: torch.Tensor = torch.fft.fftfreq(length, 1.0 / length).round().int()
    return numbers


# name, title, parameter, unit, source, severities 1 to 5, function
# fmt: off
KINDS = (
    Corruption("gibbs", "Ringing at edges (truncated k-space)", "k-space radius cut off", "share", "xvision",
               {"mr": (0.3, 0.45, 0.55, 0.65, 0.75)}, _gibbs),
    Corruption("spike", "Herringbone stripes (spike in k-space)", "amplitude of the stripes", "of mean brightness", "xvision",
               {"mr": (0.1, 0.2, 0.3, 0.45, 0.6)}, _spike),
    Corruption("ghosting", "Ghosts of periodic motion", "(ghosts, intensity)", "(number, share of lines)", "xvision",
               {"mr": ((2, 0.2), (4, 0.4), (6, 0.6), (8, 0.8), (10, 1.0))}, _ghosting),
    Corruption("bias_field", "Uneven coil sensitivity (bias field)", "range of coefficients", "of log brightness", "xvision",
               {"mr": (0.1, 0.2, 0.3, 0.4, 0.5)}, _bias_field),
    Corruption("rician_noise", "Scanner noise (Rician)", "standard deviation", "of full range", "xvision",
               {"mr": (0.02, 0.04, 0.08, 0.12, 0.16)}, _rician_noise),
    # relative to the pixels, as is all of k-space: slices in millimetres would vanish on small inputs
    Corruption("thick_slices", "Thick slices (partial volume)", "slice thickness", "pixels", "xvision",
               {"mr": (1.5, 2.0, 2.5, 3.5, 5.0)}, _thick_slices),
    Corruption("undersampling", "Skipped lines of k-space", "acceleration", "lines per sampled line", "xvision",
               {"mr": (1.1, 1.25, 1.5, 2.0, 3.0)}, _undersampling),
    Corruption("fold_over", "Wrap-around (field of view too small)", "missing field of view", "of side", "xvision",
               {"mr": (0.1, 0.15, 0.2, 0.25, 0.35)}, _fold_over),
)
# fmt: on
