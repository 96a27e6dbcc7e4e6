"""Vision-language models as classifiers: what they promise an audit, how they are asked, and how their pixels are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import CLIPConfig, ViTConfig

from xvision.errors import ModelError
from xvision.models.protocols import AttentionClassifier, Classifier, EmbeddingClassifier, RandomisableClassifier
from xvision.models.vlm.classifier import VlmClassifier, content_free, is_vlm
from xvision.models.vlm.families import SIDE as PREFERRED
from xvision.models.vlm.families import ImageFamily, preprocessing_for
from xvision.models.vlm.prompts import Question, known_templates, read_template
from xvision.models.vlm.text import TextSide, ask

from .builders import edit_config, save_folder
from .vlm_builders import (
    FAMILIES,
    ID,
    SIDE,
    TOKENS,
    WORDS,
    gemma3,
    llava,
    load,
    paligemma,
    pixels,
    processor,
    qwen2_5,
    save_vlm,
    vipllava,
)  # fmt: skip

YES_NO = {"clear": "no", "pneumonia": "yes"}


@pytest.fixture(scope="module")
def model(saved_vlm: Path) -> VlmClassifier:
    return load(saved_vlm)


# What it promises


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_a_differentiable_classifier(family: str, tmp_path: Path) -> None:
    model = load(save_vlm(tmp_path / "model", family))
    assert isinstance(model, Classifier)
    assert isinstance(model, EmbeddingClassifier)
    assert isinstance(model, RandomisableClassifier)
    assert not isinstance(model, AttentionClassifier)
    images = pixels().requires_grad_()
    logits = model.logits(images)
    assert logits.shape == (3, 5)
    assert logits.dtype == torch.float32
    assert (model.access, model.task, model.bounds) == ("white-box", "multiclass", (0.0, 1.0))
    assert model.classes == tuple(WORDS)
    logits.sum().backward()
    assert images.grad is not None
    assert bool((images.grad.flatten(1).abs().sum(1) > 0).all())


def test_two_labels_make_a_binary_classifier(saved_vlm: Path) -> None:
    model = load(saved_vlm, YES_NO, template="yes-no")
    assert (model.task, model.classes) == ("binary", ("clear", "pneumonia"))
    assert "Does this image show pneumonia? Answer no or yes." in model.asked.text


def test_the_order_of_the_labels_only_orders_the_logits(saved_vlm: Path) -> None:
    order = [3, 0, 4, 1, 2]
    turned = {list(WORDS)[index]: list(WORDS.values())[index] for index in order}
    straight, permuted = (load(saved_vlm, labels, template="open").logits(pixels()) for labels in (WORDS, turned))
    torch.testing.assert_close(permuted, straight[:, order], atol=1e-5, rtol=0)


def test_temperature_and_length_normalise_as_defined(saved_vlm: Path, model: VlmClassifier) -> None:
    scores = model.scores(pixels())
    torch.testing.assert_close(model.logits(pixels()), scores)
    torch.testing.assert_close(load(saved_vlm, temperature=2.5).logits(pixels()), scores / 2.5)
    lengths = torch.tensor([2, 2, 1, 4, 1])
    torch.testing.assert_close(load(saved_vlm, normalise="mean").logits(pixels()), scores / lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mutual_information_with_no_content_is_zero(family: str, tmp_path: Path) -> None:
    model = load(save_vlm(tmp_path / "model", family), normalise="pmi")
    nothing = model.logits(content_free(model.preprocessing)).mean(0)
    torch.testing.assert_close(nothing, torch.zeros(5), atol=1e-5, rtol=0)
    assert model.logits(pixels()).abs().max() > 1e-3


def test_images_without_content_are_the_training_mean_and_the_same_noise(model: VlmClassifier) -> None:
    grey, noise = content_free(model.preprocessing)
    assert torch.equal(grey[:, 0, 0], torch.tensor([0.5, 0.4, 0.3]))
    assert torch.equal(model.preprocessing.normalise(grey[None]), torch.zeros(1, 3, SIDE, SIDE))
    assert torch.equal(noise, content_free(model.preprocessing)[1])
    assert 0 <= float(noise.min()) < float(noise.max()) <= 1


def test_embeddings_are_what_the_language_head_reads(model: VlmClassifier) -> None:
    read = model.embed(pixels())
    assert read.shape == (3, 32)
    likely = torch.log_softmax(model.module.lm_head(read), dim=-1)
    single = [index for index, tail in enumerate(model.asked.tails) if len(tail) == 1]
    expected = likely[:, [model.asked.tails[index][0] for index in single]]
    torch.testing.assert_close(model.scores(pixels())[:, single], expected, atol=1e-5, rtol=0)


def test_a_randomised_twin_has_the_same_weights_elsewhere(saved_vlm: Path) -> None:
    model = load(saved_vlm, normalise="pmi")
    before = model.logits(pixels())
    twin = model.randomised(1)
    assert torch.equal(model.logits(pixels()), before)
    assert not torch.allclose(twin.logits(pixels()), before)
    assert torch.equal(twin.logits(pixels()), model.randomised(1).logits(pixels()))
    torch.testing.assert_close(
        twin.logits(content_free(model.preprocessing)).mean(0), torch.zeros(5), atol=1e-5, rtol=0
    )
    pairs = zip(model.module.parameters(), twin.module.parameters(), strict=True)
    assert all(torch.equal(one.flatten().sort().values, other.flatten().sort().values) for one, other in pairs)


def test_the_fingerprint_covers_weights_and_prompt(saved_vlm: Path, model: VlmClassifier, tmp_path: Path) -> None:
    others = [
        load(saved_vlm, {**WORDS, "nodule": "few words"}, template="open"),
        load(saved_vlm, template="open"),
        load(saved_vlm, temperature=2.0),
        load(saved_vlm, normalise="mean"),
        load(saved_vlm, dict(zip(("a", "b", "c", "d", "e"), WORDS.values(), strict=True))),
        load(save_vlm(tmp_path / "other", "llava", seed=1)),
    ]
    assert load(saved_vlm).fingerprint == model.fingerprint
    assert len({model.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_the_description_says_how_it_was_scored(saved_vlm: Path) -> None:
    facts = load(saved_vlm, normalise="pmi", temperature=2.0).description
    assert facts["architecture"] == "LlavaForConditionalGeneration"
    assert (facts["backbone"], facts["layers"], facts["source"]) == ("llama", 2, str(saved_vlm))
    assert "pneumonia: pneumonia" in str(facts["labels"])
    notes = str(facts["notes"])
    assert "less that of images without content (mean grey and noise) over a temperature of 2" in notes
    assert "template finding; equal to naive scoring to" in notes


def test_prompt_and_words_are_cut_into_tokens_together(model: VlmClassifier) -> None:
    text = model.asked.text.replace("<image>", "<image>" * 16)
    for words, tail in zip(WORDS.values(), model.asked.tails, strict=True):
        assert [*model.asked.tokens, *tail] == TOKENS.encode(text + words, add_special_tokens=False).ids
    assert [len(tail) for tail in model.asked.tails] == [2, 2, 1, 4, 1]


def test_words_that_merge_with_the_end_of_the_prompt_take_it_along(tmp_path: Path) -> None:
    merging = Tokenizer(BPE({**{char: at for at, char in enumerate("?: yesno")}, ": ": 8}, [(":", " ")]))
    merging.add_special_tokens(["<image>"])
    side = TextSide(merging, "", {}, None)
    image = merging.token_to_id("<image>")
    question = Question("test", "", "no:")
    asked = ask(side, question, {"one": "yes", "two": "no"}, ImageFamily(image, "<image>"), 2, tmp_path)
    assert asked.text == "<image> no:"
    assert merging.decode(list(asked.tokens), skip_special_tokens=False).replace(" ", "") == "<image><image>no"
    assert [merging.id_to_token(tail[0]) for tail in asked.tails] == [": ", ": "]
    assert [len(tail) for tail in asked.tails] == [4, 3]


def test_other_shapes_are_refused(model: VlmClassifier) -> None:
    with pytest.raises(ModelError, match=r"shape \(1, 3, 8, 8\); this model takes \(B, 3, 32, 32\)"):
        model.logits(torch.zeros(1, 3, 8, 8))


# How it is asked


def test_without_a_chat_template_the_question_is_plain(tmp_path: Path) -> None:
    asked = load(save_vlm(tmp_path / "model", "qwen2_5_vl", template=False), template="open").asked
    assert asked.text == ("<soi><image><eoi>\nWhat is the main finding in this image? Answer in a few words.\nAnswer:")
    assert asked.tokens[0] == ID["<s>"]


def test_a_caption_continues_the_image(tmp_path: Path) -> None:
    plain = load(save_vlm(tmp_path / "plain", "gemma3", template=False), template="caption").asked
    assert plain.text == "<soi> This medical image shows"
    chatted = load(save_vlm(tmp_path / "chat", "gemma3"), template="caption").asked
    assert chatted.text == "<s><turn>user\n<soi><turn>model\nThis medical image shows"


def test_a_template_for_text_gets_the_image_as_text(vlm_folder: Path) -> None:
    (vlm_folder / "chat_template.jinja").write_text(
        "{% for m in messages %}USER: {{ m['content'] + ' ASSISTANT:' }}{% endfor %}"
    )
    assert load(vlm_folder, template="open").asked.text.startswith("USER: <image>\nWhat is the main finding")


@pytest.mark.parametrize(
    "value", ["T{{ messages[0]['content'][0]['type'] }}<image>{{ messages[0]['content'][1]['text'] }}"]
)
@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("named", [False, True])
def test_older_places_of_the_chat_template_are_read(vlm_folder: Path, name: str, value: str, named: bool) -> None:
    (vlm_folder / "chat_template.jinja").unlink()
    found = [{"name": "other", "template": "x"}, {"name": "default", "template": value}] if named else value
    before = json.loads((vlm_folder / name).read_text()) if (vlm_folder / name).exists() else {}
    (vlm_folder / name).write_text(json.dumps({**before, "chat_template": found}))
    assert load(vlm_folder, template="open").asked.text.startswith("Timage<image>What is the main")


def test_the_beginning_is_added_once(vlm_folder: Path) -> None:
    assert load(vlm_folder).asked.tokens.count(ID["<s>"]) == 1
    edit_config(vlm_folder, "tokenizer_config.json", add_bos_token=None)
    (vlm_folder / "chat_template.jinja").unlink()
    assert load(vlm_folder).asked.tokens.count(ID["<s>"]) == 0


@pytest.mark.parametrize("name", known_templates())
def test_every_template_can_be_asked(name: str, saved_vlm: Path) -> None:
    model = load(saved_vlm, YES_NO, template=name)
    assert torch.isfinite(model.logits(pixels())).all()
    assert read_template(name).name == name


def test_a_template_of_ones_own_is_read_by_its_path(saved_vlm: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntext = "Which: {options}?"')
    assert "Which: no or yes?" in load(saved_vlm, YES_NO, template=str(path)).asked.text


# Pixels


def test_a_range_of_areas_becomes_the_square_nearest_to_the_usual(tmp_path: Path) -> None:
    config = qwen2_5().config
    for size, expected in (
        ({"shortest_edge": 3136, "longest_edge": 12845056}, PREFERRED),
        ({"shortest_edge": 64, "longest_edge": 1100}, 32),
        ({"shortest_edge": 1000 * 1000, "longest_edge": 12845056}, 1000),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor("qwen2_5_vl"), "size": size}))
        found = preprocessing_for(tmp_path, config)
        assert (found.input.height, found.input.width) == (expected, expected)
        assert f"resized to {expected} × {expected}" in found.notes[-1]
    old = {key: value for key, value in processor("qwen2_5_vl").items() if key != "size"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**old, "min_pixels": 64, "max_pixels": 300}))
    assert preprocessing_for(tmp_path, config).input.height == 16


def test_a_stated_size_is_kept(tmp_path: Path) -> None:
    saved = save_vlm(tmp_path / "model", "qwen2_5_vl")
    edit_config(saved, "preprocessor_config.json", size={"height": 16, "width": 24})
    model = load(saved)
    assert (model.input.height, model.input.width) == (16, 24)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.scores(images), model.naive_scores(images), atol=1e-5, rtol=0)


def test_the_newer_processor_file_is_read(tmp_path: Path) -> None:
    saved = save_vlm(tmp_path / "model", "gemma3")
    (saved / "preprocessor_config.json").unlink()
    (saved / "processor_config.json").write_text(json.dumps({"image_processor": processor("gemma3")}))
    assert load(saved).preprocessing.mean == (0.5, 0.4, 0.3)


# Families that no test vouches for


def test_a_relative_goes_the_general_way(tmp_path: Path) -> None:
    model = load(save_vlm(tmp_path / "model", "llava", vipllava))
    assert model.access == "white-box"
    torch.testing.assert_close(model.scores(pixels()), model.naive_scores(pixels()), atol=1e-5, rtol=0)


def test_a_prompt_that_labels_change_is_refused(tmp_path: Path) -> None:
    saved = save_vlm(tmp_path / "model", "llava", paligemma)
    with pytest.raises(ModelError, match=r"does not score labels alike .* differ by .*Tested families: llava, gemma3"):
        load(saved)


def test_an_image_that_does_not_reach_the_model_is_refused(tmp_path: Path) -> None:
    saved = save_vlm(tmp_path / "model", "llava")
    model = load(saved).module
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.zero_()
    save_folder(saved, model, None)
    with pytest.raises(ModelError, match="the image does not reach the model"):
        load(saved)


def test_only_models_of_images_and_text_are_meant() -> None:
    assert is_vlm(type(llava().config))
    assert is_vlm(type(gemma3().config))
    assert not is_vlm(ViTConfig)
    assert not is_vlm(CLIPConfig)
