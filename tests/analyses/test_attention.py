"""The attention page on attention that is known: planted patterns, and a model whose queries are zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import xvision
from tests.analyses.subjects import SIDE, linear_model, square, subject
from xvision.analyses.attention import attention
from xvision.audit import Audit
from xvision.charts import HeatMap, Images, Lines
from xvision.methods.decision import Decision
from xvision.models.checkpoint import save_model
from xvision.models.llm.classifier import preset
from xvision.models.network import NetworkClassifier
from xvision.models.protocols import Attention, TokenMap
from xvision.result import Metric, Result

BOXES = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])
NAMES = ("cls", "register", "text", "image", "image", "image", "image")


class Patterned(NetworkClassifier):
    """Attention that is the same for every image: rows of the class token are given, the others attend to themselves."""

    rows: tuple[np.ndarray, ...]
    """Per layer (A, T)."""

    @property
    def token_map(self) -> TokenMap:
        readout = np.eye(len(NAMES))[0]
        return TokenMap(np.arange(3, 7), BOXES, readout, np.ones((7, 7), dtype=bool), NAMES)

    def attention(self, pixels: torch.Tensor) -> Attention:
        weights = []
        for rows in self.rows:
            layer = torch.eye(len(NAMES)).repeat(len(pixels), len(rows), 1, 1)
            layer[:, :, 0] = torch.from_numpy(rows).float()
            weights.append(layer)
        return Attention(tuple(weights), self.logits(pixels), self.token_map)


REGISTER = np.array([0, 1, 0, 0, 0, 0, 0.0])
SPLIT = np.array([0.5, 0, 0, 0, 0.5, 0, 0])
IMAGE = np.array([0, 0, 0, 0.25, 0.25, 0.25, 0.25])
TEXT = np.array([0, 0, 1, 0, 0, 0, 0.0])


def patterned(*rows: np.ndarray, masks: np.ndarray | None = None) -> Audit:
    """An audit of a model with two or more layers: rows (A, T) of each."""
    plain = linear_model(np.ones((SIDE, SIDE)))
    model = Patterned(plain.module, plain.facts, plain.device)
    model.rows = rows
    pixels = np.random.default_rng(0).uniform(0.2, 0.6, (8, SIDE, SIDE))
    return replace(subject(np.ones((SIDE, SIDE)), pixels, masks), model=model, task="attention")


def values(result: Result, name: str) -> dict[str, float | None]:
    return {str(item.where["tokens"]): item.value for item in result.metrics if item.name == name}


def figure(result: Result, name: str) -> Metric:
    (metric,) = [item for item in result.metrics if item.name == name]
    return metric


def test_shares_of_each_kind_of_token_by_layer_and_head() -> None:
    """Layer 1: one head on the register, one half on the class token and half on a patch. Layer 2: the image alone."""
    result = attention(patterned(np.stack([REGISTER, SPLIT]), IMAGE[None]))
    assert values(result, "attention_share") == pytest.approx({
        "image": (0.25 + 1) / 2, "cls": 0.25 / 2, "register": 0.5 / 2, "text": 0.0, "first token": 0.25 / 2,
    })  # fmt: skip
    (lines,) = [chart for chart in result.charts if isinstance(chart, Lines)]
    by_name = {series.name: series for series in lines.series}
    assert by_name["all image tokens"].y == pytest.approx((0.25, 1.0))
    assert by_name["register tokens"].y == pytest.approx((0.5, 0.0))
    assert by_name["register tokens"].low == pytest.approx((0.5, 0.0))
    (heads,) = [chart for chart in result.charts if isinstance(chart, HeatMap)]
    assert heads.values == ((0.0, 0.5), (1.0, None))
    assert "1 of layer 2, 1.000" in heads.alt


def test_rollout_shares_in_closed_form() -> None:
    """Half stays in each layer: layer 2 keeps 1/2 on the class token, 1/8 on each patch; layer 1 halves the former again."""
    result = attention(patterned(TEXT[None], IMAGE[None]))
    assert figure(result, "image_mass").value == pytest.approx(0.5)
    shares = values(result, "rollout_share")
    assert shares == pytest.approx({"cls": 0.25, "register": 0.0, "text": 0.25, "first token": 0.25})


@pytest.mark.parametrize(
    ("fusion", "register", "image"), [("max", 0.5, 0.25), ("mean", 0.5, 0.25), ("min", None, None)]
)
def test_heads_are_joined_as_asked(fusion: str, register: float | None, image: float | None) -> None:
    """The two heads have no token in common, so the least of them leaves nothing to share."""
    heads = np.stack([REGISTER, SPLIT])
    result = attention(patterned(heads, heads), head_fusion=fusion)
    shares = values(result, "attention_share")
    assert shares["register"] == pytest.approx(register)
    assert shares["image"] == pytest.approx(image)
    if fusion == "min":
        reasons = {item.reason for item in result.metrics if item.name == "attention_share"}
        assert reasons == {"in every case a layer's heads have no token in common"}


def test_much_attention_on_class_and_register_tokens_is_said() -> None:
    loud = attention(patterned(REGISTER[None], IMAGE[None]))
    assert any(caveat.startswith("0.500 of attention goes to class and register tokens") for caveat in loud.caveats)
    quiet = attention(patterned(IMAGE[None], IMAGE[None]))
    assert not any("class and register" in caveat for caveat in quiet.caveats)


def test_the_ratio_map_is_held_against_the_masks() -> None:
    """All attention on the upper left patch, one layer: 1/2 there against 1/14 without information, 0 on the others."""
    one = np.eye(7)[3][None]
    masks = np.broadcast_to(square(0, 0, 8), (8, SIDE, SIDE)).copy()
    result = attention(patterned(one, masks=masks))
    assert figure(result, "mass_lift").value == pytest.approx(4.0)
    assert figure(result, "mass_lift").n == 7
    assert figure(attention(patterned(one)), "mass_lift").reason == "no mask or box in the data"


def test_pictures_are_named_by_the_methods() -> None:
    result = attention(patterned(np.stack([REGISTER, SPLIT]), IMAGE[None]))
    (grid,) = [chart for chart in result.charts if isinstance(chart, Images)]
    assert grid.pictures == ("image", "corrected rollout", "raw attention")
    case = next(case for case in result.cases if case.id == grid.cases[0])
    np.testing.assert_allclose(case.maps["raw attention"], 0.25)


def test_a_model_whose_queries_are_zero_tells_nothing(phantoms: Path, tmp_path: Path) -> None:
    """Every token attends alike to all before it: no information, and shares that are those of the numbers of tokens."""
    module = preset("tiny-qwen3", seed=0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "q_proj" in name:
                weight.zero_()
    save_model(module, tmp_path / "model")
    model = xvision.load_model(tmp_path / "model", device="cpu")
    data = xvision.load_data(phantoms)
    result = attention(Audit(model, data, Decision(1, 0.5, True), 7, task="attention"), cases=6)
    tokens = len(model.token_map.names)
    shares = values(result, "attention_share")
    assert shares == pytest.approx(
        {"image": (tokens - 1) / tokens, "readout": 1 / tokens, "first token": 1 / tokens}, rel=1e-5
    )
    assert figure(result, "information").value == pytest.approx(0.0, abs=1e-6)
    assert figure(result, "mass_lift").value == pytest.approx(1.0, rel=1e-4)
    (heads,) = [chart for chart in result.charts if isinstance(chart, HeatMap)]
    assert np.array(heads.values) == pytest.approx((tokens - 1) / tokens, rel=1e-5)
