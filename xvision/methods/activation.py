"""Class activation maps: where a network's last spatial features speak for the class.

Pure functions of a layer's activations and of the gradient of the explained score by them; nothing is rescaled to its own
minimum and maximum, so maps of different images can be compared. Shapes: B batch, D channels of the layer, h w its
places, H W image, P patches.
"""

from __future__ import annotations

import torch

from xvision.errors import DataError


def grad_cam(maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Channels weighted by their mean gradient, summed, negative sums set to 0 (Selvaraju et al. 2017).

    For convolution, global mean and one linear layer it is the class activation map of Zhou et al. (2016) over h × w,
    without its negative places. For other heads the mean lets one place's gradient speak for all: a place can light up
    that the score does not use (Draelos and Carin 2020), see ``hires_cam``. 0 does not mean unused: evidence against
    the class is cut off.

    Args:
        maps: (B, D, h, w) activations.
        gradients: same shape, of the score by the activations.

    Returns:
        (B, h, w), not negative.

    Raises:
        DataError: shapes that do not match.
    """
    _require_layers(maps, gradients)
    weights = gradients.mean(dim=(2, 3))
    return torch.einsum("bdhw,bd->bhw", maps, weights).relu()


def hires_cam(maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Activation times gradient at each place, summed over channels (Draelos and Carin 2020), (B, h, w).

    Signed. Where the head is linear in the layer the map sums to the score less its bias, so no place can light up that
    the head does not use. Arguments and errors as ``grad_cam``.
    """
    _require_layers(maps, gradients)
    return (maps * gradients).sum(dim=1)


def layer_cam(maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """As ``hires_cam`` with negative gradients set to 0, and negative sums too (Jiang et al. 2021), (B, h, w).

    Made for layers further from the head than the last. Not negative. Arguments and errors as ``grad_cam``.
    """
    _require_layers(maps, gradients)
    return (maps * gradients.relu()).sum(dim=1).relu()


def token_grad_cam(states: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Grad-CAM with the tokens of a transformer as places (after Selvaraju et al. 2017): (B, P), not negative.

    Args:
        states: (B, P, D) of the image tokens, as the layer passes them on.
        gradients: same shape, of the score by the states.
    """
    if states.ndim != 3 or states.shape != gradients.shape:
        raise DataError(
            f"found states of shape {tuple(states.shape)} and gradients of shape {tuple(gradients.shape)}: both must be"
            " the same (B, P, D)"
        )
    return torch.einsum("bpd,bd->bp", states, gradients.mean(dim=1)).relu()


def upsampled(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Maps (B, h, w) at the size of the image (B, H, W), bilinear between the centres of the places.

    Values keep their scale and sign, none goes beyond the largest or smallest given; the sum grows with the area.
    """
    if maps.ndim != 3 or not maps.numel():
        raise DataError(f"found maps of shape {tuple(maps.shape)}: (B, h, w) with at least one place is needed")
    bigger = torch.nn.functional.interpolate(
        maps.unsqueeze(1), size=(height, width), mode="bilinear", align_corners=False
    )
    return bigger.squeeze(1)


def _require_layers(maps: torch.Tensor, gradients: torch.Tensor) -> None:
    if maps.ndim != 4 or maps.shape != gradients.shape:
        raise DataError(
            f"found activations of shape {tuple(maps.shape)} and gradients of shape {tuple(gradients.shape)}: both must"
            " be the same (B, D, h, w)"
        )
