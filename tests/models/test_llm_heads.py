"""Two heads, two kinds of labels: losses in closed form, label words against the language model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from tests.models.builders import LANGUAGE_MODELS, PRESETS, TEXTS, edit_config, language_model
from xvision.errors import ModelError
from xvision.models.checkpoint import load_model, save_model
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.llm.config import Head, LlmImageClassifierConfig
from xvision.models.loading import quiet

HEADS: tuple[Head, ...] = ("linear", "label words")
WORDS = {"normal": "normal", "lesion": "lesion"}
THREE = ("normal", "effusion", "mass")


def images(count: int = 2, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def tiny(name: str = "tiny-qwen3", **changes: Any) -> LlmImageClassifier:
    return preset(**{"name": name, "image_size": 16, "seed": 3, **changes})


def pretrained(folder: Path, **changes: Any) -> LlmImageClassifier:
    settings = {"image_size": 16, "patch_size": 8, "channels": 1, "classes": ("normal", "lesion"), "seed": 7}
    return LlmImageClassifier.from_backbone(folder, **{**settings, **changes})


@pytest.mark.parametrize("text_tokens", [0, 4])
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", PRESETS)
def test_saved_and_loaded_logits_are_equal_to_the_last_bit(
    name: str, head: Head, multilabel: bool, text_tokens: int, tmp_path: Path
) -> None:
    texts = {"text_tokens": text_tokens, "texts": TEXTS if text_tokens else ()}
    module = tiny(name, head=head, multilabel=multilabel, classes=THREE, dropout=0.1, **texts)
    save_model(module, tmp_path / "model")
    pixels = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    models = (adapt(module, preprocessing_of(module.config), source="memory"), load_model(tmp_path / "model"))
    if text_tokens:
        models = tuple(model.with_text(["male cough", "fever, of unknown origin"]) for model in models)
    here, there = (model.logits(pixels) for model in models)
    assert (here - there).abs().max() == 0.0
    assert models[0].fingerprint == models[1].fingerprint
    assert models[1].task == ("multilabel" if multilabel else "multiclass")
    assert models[1].classes == THREE


def test_cross_entropy_of_the_classes() -> None:
    module, labels = tiny(classes=THREE), torch.tensor([0, 2])
    found = module(images(), labels=labels)
    expected = -found.logits.log_softmax(dim=1)[torch.arange(2), labels].mean()
    torch.testing.assert_close(found.loss, expected)


@pytest.mark.parametrize("head", HEADS)
def test_every_finding_has_its_own_cross_entropy(head: Head) -> None:
    """Closed form: −log p where the finding is there, −log(1 − p) where it is not, meant over all cells."""
    module, labels = tiny(classes=THREE, multilabel=True, head=head), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    found = module(images(), labels=labels)
    p = found.logits.sigmoid()
    torch.testing.assert_close(found.loss, -(labels * p.log() + (1 - labels) * (1 - p).log()).mean())
    torch.testing.assert_close(module(images(), labels=labels.long()).loss, found.loss)


def test_label_words_are_rows_against_the_last_hidden_state() -> None:
    """No norm and no projection of its own: hidden state · row, so that the loss is the words' NLL."""
    module = tiny(head="label words", classes=THREE)
    found = module(images(), labels=torch.tensor([1, 2]), output_hidden_states=True)
    rows = dict(module.named_parameters())["classifier.weight"]
    torch.testing.assert_close(found.logits, found.hidden_states[-1][:, -1] @ rows.T)
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {
        "backbone",
        "stem",
        "positions",
        "classifier",
    }
    assert module.classifier.bias is None
    assert module.config.label_words == {"normal": "normal", "effusion": "effusion", "mass": "mass"}


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "llama", "gemma3"])
def test_label_word_logits_are_the_language_models_own(family: str, tmp_path: Path) -> None:
    """The whole language model, given the same tokens, puts the same logits on the two words."""
    folder = language_model(tmp_path / "text", family)
    module = pretrained(folder, head="label words")
    with quiet():
        whole = AutoModelForCausalLM.from_pretrained(folder).eval()
    read: list[torch.Tensor] = []
    hook = module.backbone.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        found = module(images()).logits
        hook.remove()
        every = whole(inputs_embeds=read[0]).logits[:, -1]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    places = [tokenizer.token_to_id("Ġnormal"), tokenizer.token_to_id("Ġlesion")]
    assert None not in places
    torch.testing.assert_close(found, every[:, places], rtol=1e-5, atol=1e-5)
    nll = module(images(), labels=torch.tensor([0, 1])).loss
    expected = -every[:, places].log_softmax(dim=1)[torch.arange(2), torch.arange(2)].mean()
    torch.testing.assert_close(nll, expected)


def test_label_words_of_a_masked_language_model_are_its_word_embeddings(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "text", "bert")
    module = pretrained(folder, head="label words", attention="bidirectional")
    with quiet():
        whole = AutoModelForMaskedLM.from_pretrained(folder)
    assert torch.equal(module.classifier.weight, whole.get_input_embeddings().weight[[5, 6]])


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_a_pretrained_backbone_survives_saving(family: str, tmp_path: Path) -> None:
    attention = "bidirectional" if family == "bert" else "causal"
    folder = language_model(tmp_path / "text", family)
    module = pretrained(folder, head="label words", attention=attention, text_tokens=6, texts=TEXTS)
    save_model(module, tmp_path / "saved")
    pixels = torch.rand(1, 1, 16, 16)
    here = adapt(module, preprocessing_of(module.config), source="memory").with_text(["normal cough"]).logits(pixels)
    there = load_model(tmp_path / "saved").with_text(["normal cough"]).logits(pixels)
    assert (here - there).abs().max() == 0.0
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


def test_dropout_is_on_what_the_head_reads_and_in_training_only() -> None:
    module = tiny(dropout=0.5)
    reference = tiny()
    torch.testing.assert_close(module(images()).logits, reference(images()).logits)
    seen: list[torch.Tensor] = []
    module.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.train()(images(64))
    share = float((seen[0] == 0).float().mean())
    assert share == pytest.approx(0.5, abs=0.05)


def test_the_output_layer_must_be_one_matrix(tmp_path: Path) -> None:
    """A cap on the logits makes a row per class something else than the model's distribution."""
    folder = language_model(tmp_path / "capped", "gemma3", final_logit_softcapping=0.5)
    with pytest.raises(ModelError, match="whose distribution over words is more than one matrix"):
        pretrained(folder, head="label words")
    assert isinstance(pretrained(folder).classifier, nn.Linear)
    untied = language_model(tmp_path / "untied", "bert", tie_word_embeddings=False)
    with pytest.raises(ModelError, match="holds a BertModel, which has no output layer over words"):
        pretrained(untied, head="label words", attention="bidirectional")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"lesion": "effusion"}, r"'effusion' of the class 'lesion' is several tokens of this language model \(e \+ f"),
        ({"lesion": "normal"}, "'normal' of 'normal' and 'normal' of 'lesion' are the same token"),
        ({"lesion": " normal"}, "'normal' of 'normal' and ' normal' of 'lesion' are the same token"),
        ({"leison": "lesion"}, "label_words names 'leison', which is no class. Did you mean 'lesion'"),
    ],
)
def test_label_words_that_cannot_be_used(words: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = language_model(tmp_path / "text", "gpt2")
    with pytest.raises(ModelError, match=message):
        pretrained(folder, head="label words", label_words=words)


def test_an_unknown_label_word_is_refused(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "text", "bert")
    with pytest.raises(ModelError, match="'气胸' of the class 'lesion' is unknown to this language model"):
        pretrained(folder, head="label words", attention="bidirectional", label_words={"lesion": "气胸"})


def test_label_words_need_a_tokenizer(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "text", "gpt2")
    (folder / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(ModelError, match=r"tokenizer.json is no readable tokenizer"):
        pretrained(folder, head="label words")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer.json: save its tokenizer there"):
        pretrained(folder, head="label words")
    assert pretrained(folder).config.classes == ("normal", "lesion")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_words": {"normal": "a"}}, "label_words has no word for the class 'lesion'"),
        ({"label_words": None}, "label_words has no word for the class 'normal'"),
        ({"label_words": {**WORDS, "mass": "m"}}, r"label_words names \['mass'\]"),
        ({"label_words": {"normal": "a", "lesion": "a"}}, "give every class a word of its own"),
        ({"label_words": {"normal": "a", "lesion": " "}}, "give every class a word of its own"),
        ({"readout": "mean"}, 'The head "label words" reads one token, the last'),
        ({"head": "words"}, "head is 'words': choose one of linear, label words"),
        ({"classifier_dropout": 1.0}, "classifier_dropout is 1.0: give a share from 0 to below 1"),
        ({"id2label": {0: "normal", 2: "lesion"}}, "number different names 0, 1, 2"),
        ({"id2label": {0: "a", 1: "a"}}, "number different names 0, 1, 2"),
    ],
)
def test_configurations_that_contradict_themselves(changes: dict[str, object], message: str) -> None:
    good = tiny(head="label words").config
    settings = {"text_config": good.text_config, "image_size": 16, "head": "label words", "label_words": WORDS}
    with pytest.raises(ModelError, match=message):
        LlmImageClassifierConfig(**{**settings, "id2label": good.id2label, **changes})


def test_label_words_belong_to_their_head() -> None:
    with pytest.raises(ModelError, match="label_words were given for a linear head"):
        tiny(label_words=WORDS)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_of_another_size_is_never_made_up(head: Head, tmp_path: Path) -> None:
    module = tiny(head=head)
    save_model(module, tmp_path / "model")
    names = {"0": "normal", "1": "lesion", "2": "mass"}
    edit_config(tmp_path / "model", id2label=names, label2id=None, label_words={name: name for name in names.values()})
    with pytest.raises(ModelError, match=r"the head has 2 outputs but config\.json names 3 classes"):
        load_model(tmp_path / "model")
    with quiet(), pytest.raises(RuntimeError):
        LlmImageClassifier.from_pretrained(tmp_path / "model")


def test_training_label_words_learns() -> None:
    """A planted effect: bright against dark images, told apart after a few steps."""
    module = tiny(head="label words", stem="linear").train()
    labels = torch.arange(64) % 2
    pixels = images(64) * 0.3 + (labels * 2.0 - 1)[:, None, None, None] * 0.3
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        loss = module(pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = module.eval()(pixels).logits
    assert float((logits.argmax(dim=1) == labels).float().mean()) >= 0.95
    assert float(F.cross_entropy(logits, labels)) < 0.3
