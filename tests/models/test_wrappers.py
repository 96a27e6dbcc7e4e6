"""Wrappers offer what the classifier inside offers, and no more; the meter counts every pass."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from tests.models.archives import Net
from tests.models.builders import RGB, TEXTS, VISION, WITHOUT_MAP, pixels, seeded, vit
from tests.models.test_parts import network
from xvision.errors import ModelError
from xvision.models.finding import finding_view
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import preset
from xvision.models.metered import Meter, MeteredClassifier
from xvision.models.protocols import InputSpec

OFFERS = (
    "attention", "token_map", "embedded", "from_embedded", "read_out", "convolutional", "features", "embed", "parts", "randomised",
    "words",
)  # fmt: skip
SEVERAL = {
    "id2label": {0: "effusion", 1: "nodule", 2: "lesion"}, "label2id": None, "problem_type": "multi_label_classification",
}  # fmt: skip


def metered(inner: Any) -> MeteredClassifier:
    return MeteredClassifier(inner, Meter())


def several() -> Any:
    return adapt(seeded(lambda: vit(**SEVERAL)), RGB, source="here")


@pytest.mark.parametrize("view", [lambda model: model, lambda model: finding_view(model, model.classes[1])])
@pytest.mark.parametrize(
    ("build", "missing"),
    [
        (several, set()),
        (lambda: adapt(seeded(WITHOUT_MAP["resnet"]), RGB, source="here"), set(OFFERS[:5])),
        (lambda: network(Net(), InputSpec(1, 8, 8)), {*OFFERS[:5], "embed", "words"}),
    ],
)
def test_what_is_offered_is_what_the_model_offers(build: Any, missing: set[str], view: Any) -> None:
    model = view(build())
    for wrapped in (model, metered(model)):
        assert {name for name in OFFERS if not hasattr(wrapped, name)} == missing


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("attention", "has no attention that can be read"),
        ("token_map", "has no tokens that map to image patches"),
        ("embedded", "has no tokens that can be read"),
        ("from_embedded", "has no tokens that can be left out"),
        ("read_out", "has no head that could read other states"),
        ("convolutional", "has no layers that are known"),
        ("features", "has no feature map that can be read"),
        ("embed", "has no embeddings that can be read"),
        ("words", "has no text"),
        ("parts", "has no parts that can be told apart"),
        ("randomised", "has no weights that can be shuffled"),
    ],
)
def test_what_is_missing_is_said_by_either_error(name: str, message: str) -> None:
    for kind in (ModelError, AttributeError):
        with pytest.raises(kind, match=f"Bare {message}"):
            getattr(metered(Bare()), name)


class Bare:
    """A classifier with nothing more than logits."""

    classes, task, bounds, access, input = ("a", "b"), "binary", (0.0, 1.0), "black-box", InputSpec(1, 2, 2)
    description: dict[str, str | int] = {"architecture": "Bare"}  # noqa: RUF012  # nobody writes to it

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), 2)


def test_passes_are_counted_where_layers_run() -> None:
    model, pictures = metered(several()), pixels(3)
    tokens = model.embedded(pictures)
    model.read_out(tokens)
    assert (model.meter.forward, model.meter.backward) == (0, 0)
    assert model.token_map.names[0] == "cls"
    assert len(model.parts) == 5
    assert not model.convolutional
    assert model.meter.forward == 0
    kept = torch.tensor([[0, *range(2, 65)]]).expand(3, -1)
    found = model.from_embedded(tokens[:, kept[0]].detach().requires_grad_(), kept)
    assert (model.meter.forward, model.meter.backward) == (3, 0)
    found.sum().backward()
    assert (model.meter.forward, model.meter.backward) == (3, 3)
    model.randomised(0, ["classifier"]).logits(pictures)
    assert model.meter.forward == 6


def test_a_finding_reads_its_own_logit_everywhere() -> None:
    whole, pictures = several(), pixels(2)
    view: Any = finding_view(whole, "nodule")
    again = pickle.loads(pickle.dumps(view))  # noqa: S301  # our own bytes
    expected = view.logits(pictures)
    assert torch.equal(expected[:, 1], whole.logits(pictures)[:, 1])
    tokens = view.embedded(pictures)
    torch.testing.assert_close(view.from_embedded(tokens), expected)
    found = view.attention(pictures)
    torch.testing.assert_close(view.read_out(found.hidden[-1]), found.logits)
    torch.testing.assert_close(found.logits, expected)
    assert view.parts == whole.parts
    assert view.words == ()
    assert torch.equal(view.randomised(1, ["classifier"]).logits(pictures)[:, 1],
                       whole.randomised(1, ["classifier"]).logits(pictures)[:, 1])  # fmt: skip
    assert torch.equal(again.logits(pictures), expected)
    assert hasattr(again, "from_embedded")


def test_the_feature_map_of_a_finding_belongs_to_its_logit() -> None:
    module = seeded(WITHOUT_MAP["resnet"])
    module.config.update({key: value for key, value in SEVERAL.items() if value})
    module.classifier[-1] = torch.nn.Linear(16, 3)
    whole = adapt(module, RGB, source="here")
    view: Any = metered(finding_view(whole, "lesion"))
    assert view.convolutional
    found = view.features(pixels(2))
    (slope,) = torch.autograd.grad(found.logits[:, 1].sum(), found.maps)
    other = whole.features(pixels(2))
    (expected,) = torch.autograd.grad(other.logits[:, 2].sum(), other.maps)
    assert torch.equal(slope, expected)
    assert (view.meter.forward, view.meter.backward) == (2, 2)


def test_words_of_the_bound_text_one_for_each_text_token() -> None:
    module = preset("tiny-qwen3", image_size=16, patch_size=4, text_tokens=6, texts=TEXTS, seed=0)
    model = metered(adapt(module, preprocessing_of(module.config), source="here"))
    assert model.words == ()
    bound = model.with_text(["Fever and gout, male."])
    assert bound.words == ("fever", "and", "[unknown]", ",", "male", ".")
    assert bound.token_map.names[:6] == ("text",) * 6
    assert model.with_text([""]).words == ()
    assert model.with_text(["cough and fever and cough and smoking"]).words == (
        "cough",
        "and",
        "fever",
        "and",
        "cough",
        "and",
    )
    with pytest.raises(ModelError, match="2 texts are bound: bind one to read its words"):
        model.with_text(["cough", "fever"]).words  # noqa: B018  # a property that raises


def test_other_models_read_no_words() -> None:
    assert adapt(seeded(VISION["vit"]), RGB, source="here").words == ()
