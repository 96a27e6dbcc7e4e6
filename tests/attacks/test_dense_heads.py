"""Which models are dense layers that can be read whole, and which only look so."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import xvision
from xvision.attacks.bounds import linear_distance, read_dense
from xvision.attacks.goals import class_goal
from xvision.errors import ModelError
from xvision.methods.decision import Decision
from xvision.models.finding import finding_view
from xvision.models.llm.classifier import preset
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec


def network_model(module: nn.Module, classes: tuple[str, ...]) -> NetworkClassifier:
    facts = Facts(classes, False, InputSpec(1, 4, 4), "Small network", "a test", "small")
    return NetworkClassifier(module.eval(), facts, torch.device("cpu"))


PIXELS = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_dense_model_is_read_whole(outputs: int) -> None:
    torch.manual_seed(0)
    parts = (nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, outputs, bias=False))
    model = network_model(nn.Sequential(*parts), ("no", "yes"))
    found = read_dense(model, PIXELS)
    assert found.space == "pixels"
    assert [tuple(weight.shape) for weight, _ in found.layers] == [(8, 16), (2, 8)]
    assert torch.allclose(found.logits(PIXELS.flatten(1)).float(), model.logits(PIXELS), atol=1e-5)


def test_what_only_looks_dense_is_not_taken_for_it() -> None:
    torch.manual_seed(0)

    class Squared(nn.Sequential):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = super().forward(pixels) ** 2
            return outputs

    odd = (
        Squared(nn.Flatten(), nn.Linear(16, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.ReLU()),
    )
    with torch.no_grad():
        odd[3][1].bias += 10  # the last ReLU does nothing on these images, and may on others
    for module in odd:
        with pytest.raises(ModelError, match="no embeddings that can be read"):
            read_dense(network_model(module, ("no", "yes")), PIXELS)


def test_the_head_of_a_classifier_is_read_and_gives_its_logits(checkpoint: Path) -> None:
    model = xvision.load_model(checkpoint, device="cpu")
    spec = model.input
    pixels = torch.rand(4, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(1))
    found = read_dense(model, pixels)
    assert found.space == "embeddings"
    assert len(found.layers) == 1
    with torch.no_grad():
        points, logits = model.embed(pixels), model.logits(pixels)
    assert torch.allclose(found.logits(points).float(), logits, atol=1e-4)
    # Moving the embedding by the distance, and not by less, turns the decision.
    goal = class_goal(logits.argmax(dim=1), 2, Decision(1, 0.5))
    size = linear_distance(logits, found.layers[0], goal, "l2").size
    normal = found.layers[0][0][1] - found.layers[0][0][0]
    towards = -torch.sign(logits[:, 1] - logits[:, 0])[:, None].double() * normal / normal.norm()
    assert not goal.broken(found.logits(points.double() + 0.99 * size[:, None] * towards)).any()
    assert goal.broken(found.logits(points.double() + 1.01 * size[:, None] * towards)).all()


def test_one_finding_of_several_has_its_own_row(tmp_path: Path) -> None:
    from xvision.models.checkpoint import save_model

    module = preset("tiny-bert", classes=("a", "b", "c"), multilabel=True, seed=2)
    save_model(module, tmp_path / "findings")
    model = xvision.load_model(tmp_path / "findings", device="cpu")
    spec = model.input
    pixels = torch.rand(3, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(1))
    view = finding_view(model, "b")
    found = read_dense(view, pixels)
    with torch.no_grad():
        assert torch.allclose(found.logits(view.embed(pixels)).float(), view.logits(pixels), atol=1e-4)


def test_reasons_are_given_where_nothing_can_be_read() -> None:
    class Opaque:
        description: ClassVar = {"architecture": "Opaque"}

    with pytest.raises(ModelError, match="Opaque is no torch module"):
        read_dense(Opaque(), PIXELS)

    class Curved(NetworkClassifier):
        """A model whose embedding is not what its last linear layer reads."""

        def embed(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.flatten(1)

    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)).eval()
    facts = Facts(("no", "yes"), False, InputSpec(1, 4, 4), "Curved", "a test", "curved")
    with pytest.raises(ModelError, match="Curved has no linear layer"):
        read_dense(Curved(module, facts, torch.device("cpu")), PIXELS)
