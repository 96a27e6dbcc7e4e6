"""Maps against captum, pytorch-grad-cam and the textbook form of rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradCam, Occlusion
from torch import nn

from tests.benchmarks.explanations_models import asked, bert, gpt, images, resnet
from tests.benchmarks.explanations_peers import compared, open_grad_cam, paired, relative, seconds
from tests.benchmarks.harness import Row, row
from xvision.explain.catalogue import methods
from xvision.explain.method import Settings
from xvision.methods.rollout import rollout
from xvision.methods.target import score_of
from xvision.models.huggingface import HuggingFaceClassifier
from xvision.models.metered import Meter, MeteredClassifier

TOKENS, LAYERS, HEADS = 197, 12, 12
WINDOWS_AT_ONCE = (1, 8, 16, 32, 64)
"""Settings of captum's ``perturbations_per_eval`` that are tried; it is then timed at its best."""
Shown = Callable[[], np.ndarray]


def rollout_rows(pairs: int) -> Iterator[Row]:
    """The read-out row carried down the layers, against the product of their matrices."""
    for heads in (1, HEADS):
        generator = torch.Generator().manual_seed(0)
        weights = [
            torch.softmax(3 * torch.randn(4, heads, TOKENS, TOKENS, generator=generator), dim=-1) for _ in range(LAYERS)
        ]
        readout = np.eye(TOKENS)[0]
        own, peer = (lambda: rollout(weights, readout)), (lambda: _product(weights, readout))  # noqa: B023  # called at once
        what = "heads already joined" if heads == 1 else f"joining {heads} heads included"
        yield from compared(
            f"Rollout row form, {what}", paired(own, peer, 4 * pairs), 5 if heads == 1 else 0, relative(own(), peer()),
            1e-6, "no pass on either side", f"4 images, {TOKENS} tokens × {LAYERS} layers, {what}; the peer's matrices in float32",
        )  # fmt: skip


def _product(weights: list[torch.Tensor], readout: np.ndarray) -> np.ndarray:
    """As published: every layer's matrix, multiplied up, and the read-out row of the product."""
    skip = torch.eye(TOKENS)
    mixed = [0.5 * skip + 0.5 * layer.mean(dim=1) for layer in weights]
    total, *others = [layer / layer.sum(dim=-1, keepdim=True) for layer in mixed]
    for layer in others:
        total = layer @ total
    result: np.ndarray = (torch.from_numpy(readout).float() @ total).numpy()
    return result


def grad_cam_rows(name: str, pairs: int) -> Iterator[Row]:
    """Grad-CAM of four images: maps of full size on both sides."""
    model, shown = resnet(name), images(4, 3, 224)
    peer, network = cam_peer(model, shown)
    own = mapped("grad_cam", model, shown)
    weights, left = list(network.parameters()), "gradients left on"
    apart = float(np.abs(stretched(own()) - peer()).max())
    how = (
        f"4 images of 224 × 224, transformers {name} with random weights; the peer's maps are stretched to 0 and 1, which is done "
        f"to these before comparing"
    )
    passes = f"{counted('grad_cam', model, shown)} to the last feature map, peer 4 forward + 4 backward through all layers and weights"
    yield from compared(f"Grad-CAM {name}, pytorch-grad-cam", paired(own, peer, pairs), 2.5, apart, 1e-3, passes, how)
    mine = sum(each.grad is not None for each in model.module.parameters())
    theirs = sum(each.grad is not None for each in weights)
    yield row(f"Grad-CAM {name}: {left} weights", mine, "0", mine == 0, f"pytorch-grad-cam leaves {theirs}")


def layer_rows(name: str) -> Iterator[Row]:
    """The same maps as captum's, whose map of the layer is enlarged here."""
    model, shown = resnet(name), images(4, 3, 224)
    apart = relative(mapped("grad_cam", model, shown)(), layer_grad_cam(model, shown))
    yield row(
        f"Grad-CAM {name}, captum: equal", float(f"{apart:.2g}"), "≤ 1e-05", apart <= 1e-5, "LayerGradCam, enlarged"
    )


def cam_peer(model: HuggingFaceClassifier, shown: torch.Tensor) -> tuple[Shown, nn.Module]:
    """pytorch-grad-cam of the same score, and the copy of the network it runs.

    Its hooks need weights that require gradients, which is how transformers loads them; the audited model has them frozen.
    """
    network = deepcopy(model.module).requires_grad_(True)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network(pixel_values=model.preprocessing.normalise(pixels)).logits

    cam = open_grad_cam().GradCAM(model=Logits(), target_layers=[network.resnet.encoder.stages[-1]])
    targets = [lambda logits: logits[1] - logits[0]] * len(shown)
    return (lambda: cam(input_tensor=shown, targets=targets)), network


def stretched(maps: np.ndarray) -> np.ndarray:
    """Each map from 0 to 1, as pytorch-grad-cam gives it."""
    low = maps.min(axis=(1, 2), keepdims=True)
    scaled: np.ndarray = (maps - low) / np.maximum((maps - low).max(axis=(1, 2), keepdims=True), 1e-30)
    return scaled


def layer_grad_cam(model: HuggingFaceClassifier, shown: torch.Tensor) -> np.ndarray:
    """captum's map of the last stage, enlarged."""
    peer = LayerGradCam(log_odds_of(model), model.module.resnet.encoder.stages[-1])
    small = peer.attribute(shown.clone().requires_grad_(), relu_attributions=True).detach()
    enlarged = nn.functional.interpolate(small, size=shown.shape[2:], mode="bilinear", align_corners=False)
    result: np.ndarray = enlarged[:, 0].numpy()
    return result


def occlusion_rows(pairs: int) -> Iterator[Row]:
    """What each of 196 patches is worth to models of tokens, against captum at its best setting.

    What can be saved depends on the model. In a causal one the tokens before the patch stay as they were. In one that
    looks both ways only the stem is saved, if every token is made from its own patch. The target is one for all.
    """
    shown, settings = images(2, 1, 224), Settings(baseline="black")
    models = {
        "causal GPT-2 body": gpt(224),
        "causal GPT-2 body, convolutional stem": gpt(224, stem="conv"),
        "BERT body": bert(224),
    }
    for name, model in models.items():
        own = mapped("patch_ablation", model, shown, settings)
        tried = {at_once: seconds(occlusion_peer(model, shown, at_once)) for at_once in WINDOWS_AT_ONCE}
        best = min(tried, key=lambda at_once: tried[at_once])
        peer = occlusion_peer(model, shown, best)
        times = ", ".join(f"{at_once} ({time:.2f} s)" for at_once, time in tried.items())
        how = (
            f"2 images, {name} 4 × 128, 224 px in patches of 16; captum Occlusion at perturbations_per_eval {best}, the best "
            f"of {times}"
        )
        passes = f"{counted('patch_ablation', model, shown, settings)}, peer {2 * 197} forward"
        check = f"Patch occlusion, {name}, captum"
        yield from compared(check, paired(own, peer, pairs), 2, relative(own(), peer()), 1e-5, passes, how)


def occlusion_peer(model: HuggingFaceClassifier, shown: torch.Tensor, at_once: int) -> Shown:
    """captum's Occlusion with windows the size of a patch, black, so many of them in one pass."""
    side = int(np.ptp(model.token_map.boxes[0, ::2]))

    def peer() -> np.ndarray:
        with torch.no_grad():
            found = Occlusion(log_odds_of(model)).attribute(
                shown, sliding_window_shapes=(1, side, side), strides=(1, side, side), baselines=0.0,
                perturbations_per_eval=at_once,
            )  # fmt: skip
        result: np.ndarray = found[:, 0].numpy()
        return result

    return peer


def mapped(name: str, model: Any, shown: torch.Tensor, settings: Settings | None = None) -> Shown:
    """A method of this library, ready to be called."""
    method, question = methods()[name], asked(model, shown, settings)
    return lambda: method.run(question).values


def counted(name: str, model: HuggingFaceClassifier, shown: torch.Tensor, settings: Settings | None = None) -> str:
    """What one call asks of the model, in words."""
    meter = Meter()
    mapped(name, MeteredClassifier(model, meter), shown, settings)()
    return f"{meter.forward} forward + {meter.backward} backward"


def log_odds_of(model: HuggingFaceClassifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """The score that every method explains here, of pixels alone."""
    score = score_of(model.logits)
    return lambda pixels: score(pixels, torch.ones(len(pixels), dtype=torch.int64))
