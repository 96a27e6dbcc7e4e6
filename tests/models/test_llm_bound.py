"""Clinical text under audit: bound views, the token map with text, and one text for each case in the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.builders import PRESETS, RGB, TEXTS, VISION, seeded
from tests.models.test_llm_text import MODES, reader, rows, small
from xvision.audit import Audit
from xvision.data.dataset import AuditDataset
from xvision.engine import Batch, Engine, Rows
from xvision.errors import ModelError
from xvision.methods.decision import Decision
from xvision.models.huggingface import HuggingFaceAttentionClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.llm.config import AttentionMode, LlmImageClassifierConfig, Readout
from xvision.models.metered import Meter, MeteredClassifier
from xvision.models.protocols import InputSpec, TextClassifier
from xvision.models.tokens import layout_of, token_map


def adapted(module: LlmImageClassifier) -> HuggingFaceAttentionClassifier:
    found = adapt(module, preprocessing_of(module.config), source="memory")
    assert isinstance(found, HuggingFaceAttentionClassifier)
    return found


def test_one_text_for_all_images_or_one_for_each() -> None:
    model = adapted(reader())
    assert isinstance(model, TextClassifier)
    assert model.takes_text
    images = small(2)
    each = model.with_text(["cough", "fever and cough"]).logits(images)
    for place, text in enumerate(["cough", "fever and cough"]):
        alone = model.with_text([text])
        assert (alone.logits(images)[place] - each[place]).abs().max() <= 1e-6
        repeated = alone.logits(images[[place]].repeat(3, 1, 1, 1))
        assert (repeated - each[place]).abs().max() <= 1e-6
        assert (
            alone.embed(images)[place] - model.with_text(["cough", "fever and cough"]).embed(images)[place]
        ).abs().max() <= 1e-5
    with pytest.raises(ModelError, match="2 texts are bound but there are 3 images: bind one text for all"):
        model.with_text(["a", "b"]).logits(small(3))
    assert torch.equal(model.with_text([""]).logits(images), model.logits(images))
    assert (model.logits(images) - each).abs().max() > 1e-3
    assert model.cut_texts(["cough", "a b c d e f"]) == 1


def test_a_model_without_text_says_so() -> None:
    for module in (preset("tiny-qwen3", channels=3, seed=0), seeded(VISION["vit"])):
        plain = adapt(module, RGB, source="memory")
        assert not plain.takes_text
        with pytest.raises(ModelError, match=f"{type(module).__name__} reads no text: it was trained on images alone"):
            plain.with_text(["cough"])
        with pytest.raises(ModelError, match="reads no text"):
            MeteredClassifier(plain, Meter()).with_text(["cough"])


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_token_map_with_text(name: str, attention: AttentionMode, readout: Readout) -> None:
    model = adapted(reader(name, attention=attention, readout=readout))
    found = model.with_text(["fever and cough"]).attention(small(2))
    after = ("readout",) if readout == "last" else ()
    assert found.tokens.names == ("text",) * 3 + ("image",) * 4 + after
    assert found.tokens.image.tolist() == [3, 4, 5, 6]
    assert found.tokens.readout.tolist() == ([0.0] * 7 + [1.0] if after else [0.0] * 3 + [0.25] * 4)
    count = len(found.tokens.names)
    assert all(layer.shape == (2, 4, count, count) for layer in found.weights)
    assert all((layer.sum(dim=-1) - 1).abs().max() <= 1e-5 for layer in found.weights)
    gradients = torch.autograd.grad(found.logits[:, 1].sum(), found.weights)
    assert all(gradient[..., :3].abs().sum() > 0 for gradient in gradients)
    assert (found.logits - model.with_text(["fever and cough"]).logits(small(2))).abs().max() <= 1e-5
    assert model.attention(small(2)).tokens.names == ("image",) * 4 + after
    with pytest.raises(ModelError, match="bound texts have different lengths: bind one text to read attention"):
        model.with_text(["cough", "fever and cough"]).attention(small(2))


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@pytest.mark.parametrize("name", ["tiny-gemma3", "tiny-gpt2", "tiny-bert"])
def test_text_stands_between_virtual_tokens_and_the_image(name: str, kind: str) -> None:
    plain = reader(name)
    settings = {**plain.config.to_dict(), "adapter": {"kind": kind, "virtual_tokens": 2}}
    module = seeded(lambda: LlmImageClassifier(LlmImageClassifierConfig.from_dict(settings)))
    module.vocabulary = plain.vocabulary
    model, images = adapted(module), small(2)
    found = model.with_text(["fever and"]).attention(images)
    assert found.tokens.names == ("virtual",) * 2 + ("text",) * 2 + ("image",) * 4 + ("readout",)
    together = model.with_text(["fever and", "fever and cough"]).logits(images)[0]
    assert (together - found.logits[0]).abs().max() <= 1e-5


def test_a_patch_is_still_found_behind_the_text() -> None:
    """Closed form of the map: noise in one box moves the input of that image token and of no other."""
    module = reader(stem="linear")
    tokens = token_map(layout_of(module, InputSpec(1, 16, 16), text=2))
    changed = small(1).clone()
    left, top, right, bottom = tokens.boxes[2]
    changed[..., top:bottom, left:right] = 0.0
    seen: list[torch.Tensor] = []
    hook = module.backbone.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["inputs_embeds"]), with_kwargs=True
    )
    for images in (small(1), changed):
        module(images, text=rows(module, "fever cough")[:, -2:])
    hook.remove()
    moved = (seen[0] - seen[1]).abs().sum(dim=-1)[0].nonzero().flatten()
    assert moved.tolist() == [int(tokens.image[2])]


def test_the_text_belongs_to_the_fingerprint_and_the_description() -> None:
    model = adapted(reader())
    assert model.with_text(["cough"]).fingerprint == model.fingerprint
    assert "reads up to 5 tokens of the column text before the image" in str(model.description["notes"])
    other = adapted(reader(texts=("Fever and cough, female.", *TEXTS[1:])))
    assert other.fingerprint != model.fingerprint
    assert model.with_text(["cough"]).randomised(1).logits(small()).shape == (2, 2)


class Pictures:
    """Random images, made when asked for."""

    def pixels(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        return np.stack([np.random.default_rng(int(name)).random((1, 16, 16), dtype=np.float32) for name in ids])

    def masks(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        raise NotImplementedError

    def unreadable(self, ids: Sequence[str]) -> tuple[str, ...]:
        return ()

    def digests(self, ids: Sequence[str], content: Literal["image", "mask"]) -> tuple[str, ...]:
        return tuple(ids)


CASES = ("cough", "fever and cough, male", "", "history of smoking, male, cough", "unheard-of")


def subject(texts: Sequence[str] | None) -> Audit:
    ids = [str(number) for number in range(len(CASES))]
    table = pd.DataFrame({"label": "normal", "patient": ids, "split": "all"}, index=pd.Index(ids, name="id"))
    if texts is not None:
        table["text"] = list(texts)
    data = AuditDataset(table, (), Pictures())
    return Audit(adapted(reader()), data, Decision(1, 0.5, True), 0, Engine(part=3))


def repeated(batch: Batch) -> Rows:
    """As attribution methods do: every image several times, in one pass."""
    logits = batch.model.logits(batch.pixels.repeat_interleave(2, dim=0))
    return {"logits": logits.detach().numpy()[::2], "cases": np.full(len(batch.ids), len(batch.ids))}


def test_every_case_is_measured_with_its_own_text() -> None:
    audit = subject(CASES)
    found = audit.map(repeated)
    assert found["cases"].tolist() == [1] * len(CASES)
    images = torch.from_numpy(audit.pixels(range(len(CASES))))
    model = adapted(reader())
    expected = torch.cat([model.with_text([text]).logits(images[[place]]) for place, text in enumerate(CASES)])
    np.testing.assert_allclose(found["logits"], expected.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(audit.predictions.logits, expected.detach().numpy(), atol=1e-6)
    assert audit.engine.meter.forward == 3 * len(CASES)


def test_without_a_text_column_the_image_is_read_alone() -> None:
    without, empty = subject(None).map(repeated), subject([""] * len(CASES)).map(repeated)
    np.testing.assert_allclose(without["logits"], empty["logits"], atol=1e-6)
    assert without["cases"].tolist() == [3, 3, 3, 2, 2]
    assert np.abs(without["logits"] - subject(CASES).map(repeated)["logits"]).max() > 1e-3


def test_texts_make_other_parts(tmp_path: Path) -> None:
    for texts in (CASES, CASES[::-1]):
        audit = subject(texts)
        audit.engine.folder = tmp_path
        audit.map(repeated)
    assert len(list(tmp_path.iterdir())) == 2
