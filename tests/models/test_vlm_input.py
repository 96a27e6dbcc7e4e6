"""Vision-language models that cannot be asked: one clear sentence for each wrong prompt, template and folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from xvision.config import PromptPlan
from xvision.errors import ConfigError, ModelError
from xvision.models.vlm.classifier import load_vlm
from xvision.models.vlm.prompts import read_question

from .builders import edit_config, save_folder, vit
from .vlm_builders import (
    ID,
    WORDS,
    load,
    pixels,
    save_vlm,
)  # fmt: skip

YES_NO = {"clear": "no", "pneumonia": "yes"}


@pytest.mark.parametrize(
    ("labels", "plan", "message"),
    [
        ({}, {}, r"prompt.labels names 0 classes: write the words that stand for each of at least two"),
        ({"one": "yes"}, {}, r"prompt.labels names 1 classes"),
        ({"one": "yes", "two": "  "}, {}, r"prompt.labels.two is empty"),
        ({"one": "yes", "two": "∅"}, {}, r"prompt.labels.two: the tokenizer makes no token of '∅'"),
        ({"one": "yes", "two": "no", "three": " yes "}, {}, r"prompt.labels.one and prompt.labels.three have the same tokens"),
        ({"one": "clear", "two": "clear lungs"}, {}, r"prompt.labels.two \('clear lungs'\) starts with all of prompt.labels.one"),
        ({"one": "yes", "two": "<image>"}, {"template": "open"}, r"prompt.labels.two contains '<image>'.* as a command"),
        (YES_NO, {"temperature": 0.0}, r"prompt.temperature is 0.0: give a number above 0"),
        (YES_NO, {"temperature": float("nan")}, r"prompt.temperature is nan"),
        (YES_NO, {"template": "findings"}, r"'findings', which is no template here. Did you mean 'finding'\?"),
        (YES_NO, {"template": "nowhere/mine.toml"}, r"nowhere/mine.toml: no such file"),
        (WORDS, {"template": "yes-no"}, r"asks for one \{finding\} but prompt.labels names 5 classes"),
        ({**YES_NO, "long": "nodule " * 250}, {}, r"The prompt with its image and longest label has \d+ tokens but .* reads 256"),
    ],
)  # fmt: skip
def test_wrong_prompts_are_named(saved_vlm: Path, labels: dict[str, str], plan: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_vlm(saved_vlm, PromptPlan(labels=labels, **plan), torch.device("cpu"))


def test_an_opening_may_win_where_length_is_accounted_for(saved_vlm: Path) -> None:
    model = load(saved_vlm, {"one": "clear", "two": "clear lungs"}, normalise="pmi")
    torch.testing.assert_close(model.scores(pixels()), model.naive_scores(pixels()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\ntext = "Is it {disease}?"', r"the placeholder \{disease\} is unknown. Placeholders: \{options\}"),
        ('name = "x"\ntext = "{}?"', r"the placeholder \{\} is unknown"),
        ('name = "x"\ntext = "{options.__class__}"', r"the placeholder \{options.__class__\} is unknown"),
        ('name = "x"\ntext = "{options:>99}"', r"the placeholder \{options\} is unknown"),
        ('name = "x"\nanswer = "It is {"', r"has a stray brace"),
        ('name = "x"\ntext = " "', r"text and answer are both empty"),
        ('name = "x"\ntekst = "?"', r"unknown key 'tekst'. Did you mean 'text'\?"),
        ('name = "x', r"not a readable TOML file"),
    ],
)
def test_wrong_templates_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_question(PromptPlan(labels=YES_NO, template=str(path)))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("special", [True, False])
def test_a_question_with_a_command_is_refused(vlm_folder: Path, tmp_path: Path, special: bool) -> None:
    data = json.loads((vlm_folder / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token["special"] = special
    (vlm_folder / "tokenizer.json").write_text(json.dumps(data))
    path = tmp_path / "mine.toml"
    path.write_text('name = "x"\ntext = "Is this <image> clear?"')
    with pytest.raises(ConfigError, match=r"The prompt contains '<image>', which this model reads as a command"):
        load(vlm_folder, YES_NO, template=str(path))


def test_a_classifier_is_no_vision_language_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds a vit model, which takes no prompt: remove \[model.prompt\]"):
        load(save_folder(tmp_path / "vit", vit()))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"has no tokenizer.json: save the model's fast tokenizer there"),
        ("tokenizer.json", "{}", r"tokenizer.json cannot be read \(.*\): save the tokenizer again"),
        ("tokenizer_config.json", "[", r"tokenizer_config.json is not readable JSON"),
        ("preprocessor_config.json", None, r"has no preprocessor_config.json: add it"),
        ("chat_template.jinja", "{% for %}", r"the chat template cannot be used \(.*\): restore it"),
        ("chat_template.jinja", "{{ raise_exception('no') }}", r"the chat template cannot be used \(no\)"),
        ("chat_template.jinja", "{{ ''.__class__.__mro__ }}", r"the chat template cannot be used \(.*unsafe.*\)"),
        ("chat_template.jinja", "hello", r"does not write '<image>' once where the image is"),
        ("chat_template.jinja", "\udcff", r"chat_template.jinja is not UTF-8 text"),
        ("model.py", "", r"model.py is Python code, which xvision never runs"),
    ],
)  # fmt: skip
def test_damaged_folders_are_named(vlm_folder: Path, name: str, content: str | None, message: str) -> None:
    (vlm_folder / name).unlink(missing_ok=True)
    if content is not None:
        (vlm_folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=message):
        load(vlm_folder)


@pytest.mark.parametrize(("name", "most"), [("tokenizer.json", 128), ("chat_template.jinja", 1)])
def test_files_too_large_to_be_meant_are_refused(vlm_folder: Path, name: str, most: int) -> None:
    with (vlm_folder / name).open("r+b") as file:
        file.truncate(most * 2**20 + 1)
    with pytest.raises(ModelError, match=rf"{name} has more than {most} MiB"):
        load(vlm_folder)


def test_a_model_whose_image_token_the_tokenizer_lacks_is_refused(vlm_folder: Path) -> None:
    edit_config(vlm_folder, image_token_index=5000)
    with pytest.raises(ModelError, match=r"image_token_id = 5000, which the tokenizer does not have"):
        load(vlm_folder)


def test_a_model_without_begin_of_image_is_refused(tmp_path: Path) -> None:
    saved = save_vlm(tmp_path / "model", "gemma3")
    edit_config(saved, boi_token_index=5000)
    with pytest.raises(ModelError, match=r"boi_token_id = 5000, which the tokenizer does not have"):
        load(saved)


def test_a_tokenizer_that_splits_the_image_token_is_refused(vlm_folder: Path) -> None:
    # The text of the token is in the vocabulary, but no longer kept whole.
    data = json.loads((vlm_folder / "tokenizer.json").read_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<image>"]
    (vlm_folder / "tokenizer.json").write_text(json.dumps(data))
    assert Tokenizer.from_file(str(vlm_folder / "tokenizer.json")).id_to_token(ID["<image>"]) == "<image>"
    with pytest.raises(ModelError, match=r"the tokenizer makes 0 image tokens of 16"):
        load(vlm_folder)


def test_an_image_size_that_the_model_cannot_take_is_named(vlm_folder: Path) -> None:
    edit_config(vlm_folder, "preprocessor_config.json", size={"height": 24, "width": 24})
    with pytest.raises(
        ModelError, match=r"LlavaForConditionalGeneration cannot be asked with one image of 3 × 24 × 24"
    ):
        load(vlm_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 8}, r"the processor has patch_size = 8 but the model 4"),
        ({"size": {"height": 20, "width": 16}}, r"is no multiple of 8 pixels"),
        ({"size": {"shortest_edge": 65, "longest_edge": 100}}, r"takes images of 65 to 100 pixels, and no square"),
        ({"size": None}, r"takes images of None to None pixels"),
    ],
)
def test_qwen_processors_that_contradict_the_model_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    saved = save_vlm(tmp_path / "model", "qwen2_vl")
    edit_config(saved, "preprocessor_config.json", **changes)
    with pytest.raises(ModelError, match=message):
        load(saved)


def test_pan_and_scan_is_refused(tmp_path: Path) -> None:
    saved = save_vlm(tmp_path / "model", "gemma3")
    edit_config(saved, "preprocessor_config.json", do_pan_and_scan=True)
    with pytest.raises(ModelError, match=r"asks for do_pan_and_scan = True, a step that xvision does not reproduce"):
        load(saved)
