"""Clinical text before the image: its vocabulary, its padding, its tokens, and how an audit binds it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, FNetConfig, PreTrainedConfig, RobertaConfig

from tests.models.builders import (
    PRESETS,
    TEXTS,
    byte_tokenizer,
    edit_config,
    language_model,
    save_folder,
    seeded,
)
from xvision.errors import ModelError
from xvision.models.checkpoint import load_model, save_model
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.llm.config import AttentionMode, LlmImageClassifierConfig, Readout
from xvision.models.llm.text import TextVocabulary
from xvision.models.loading import quiet

MODES: tuple[AttentionMode, ...] = ("causal", "bidirectional")
PLACES = 5


def reader(name: str = "tiny-qwen3", **changes: Any) -> LlmImageClassifier:
    return preset(**{"name": name, "image_size": 16, "text_tokens": PLACES, "texts": TEXTS, "seed": 0, **changes})


def rows(module: LlmImageClassifier, *texts: str) -> torch.Tensor:
    assert module.vocabulary is not None
    return torch.from_numpy(module.vocabulary.encode(texts).rows)


def small(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


# The vocabulary


def test_words_of_the_training_texts_are_kept_in_order() -> None:
    found = TextVocabulary.of_words(["Cough, FEVER", "fever 气胸"], 4)
    kept = [found.tokenizer.id_to_token(number) for number in found.ids]
    assert kept == [",", "cough", "fever", "气", "胸"]
    assert len(found) == 6


def test_text_is_left_padded_and_counted() -> None:
    found = TextVocabulary.of_words(["a b c d"], 3).encode(["a", "", "a b c d", "x d", "Á"])
    np.testing.assert_array_equal(found.rows, [[-1, -1, 1], [-1, -1, -1], [1, 2, 3], [-1, 0, 4], [-1, -1, 1]])
    assert found.rows.dtype == np.int64
    assert (found.cut, found.unknown) == (1, 1)


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text(alphabet="ab ,é气", max_size=12), min_size=1, max_size=5), length=st.integers(1, 6))
def test_training_texts_hold_nothing_unknown(texts: list[str], length: int) -> None:
    known = TextVocabulary.of_words([*texts, "a"], length)
    found = known.encode(texts)
    assert found.unknown == 0
    assert found.rows.shape == (len(texts), length)
    assert found.rows.max(initial=-1) < len(known)
    present = found.rows >= 0
    assert (present[:, 1:] >= present[:, :-1]).all()  # once a token, tokens to the end
    doubled = known.encode([f"{text} {text}" for text in texts])
    assert doubled.cut >= found.cut


def test_a_pretrained_tokenizer_keeps_only_what_occurs() -> None:
    tokenizer = byte_tokenizer()
    found = TextVocabulary.of_tokens(tokenizer, [" normal lesion", " normal x"], 4)
    kept = [tokenizer.id_to_token(number) for number in found.ids]
    assert sorted(kept) == sorted(["Ġnormal", "Ġlesion", "Ġ", "x"])
    assert found.ids == tuple(sorted(found.ids))
    encoded = found.encode([" lesion y", " normal"])
    assert encoded.rows[0].tolist() == [-1, 1 + kept.index("Ġlesion"), 1 + kept.index("Ġ"), 0]
    assert encoded.unknown == 1


def test_vocabulary_survives_saving_and_copying(tmp_path: Path) -> None:
    before = TextVocabulary.of_words(TEXTS, PLACES)
    before.save(tmp_path)
    after = TextVocabulary.read(tmp_path, before.ids, PLACES)
    texts = ["Fever of unknown origin", "male, cough"]
    np.testing.assert_array_equal(after.encode(texts).rows, before.encode(texts).rows)
    np.testing.assert_array_equal(copy.deepcopy(before).encode(texts).rows, before.encode(texts).rows)
    assert after.content == before.content


def test_a_vocabulary_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    save_model(reader(), tmp_path / "model")
    TextVocabulary.of_words(["other"], PLACES).save(tmp_path / "model")
    with pytest.raises(ModelError, match=r"text_ids of config\.json and tokenizer\.json do not belong together"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load_model(tmp_path / "model")


def test_a_table_of_another_size_is_refused(tmp_path: Path) -> None:
    module = reader()
    save_model(module, tmp_path / "model")
    edit_config(tmp_path / "model", text_ids=module.config.text_ids[:-1])
    with pytest.raises(ModelError, match=r"weights do not fit config\.json \(backbone\.embed_tokens\.weight"):
        load_model(tmp_path / "model")


def test_a_model_without_its_vocabulary_is_not_saved(tmp_path: Path) -> None:
    module = LlmImageClassifier(reader().config)
    with pytest.raises(ModelError, match="reads text but has no vocabulary to save"):
        module.save_pretrained(tmp_path)


# The model


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_padding_changes_nothing(name: str, attention: AttentionMode, implementation: str, readout: Readout) -> None:
    """A padded row equals the row alone without its empty places; an empty text equals no text at all."""
    module = reader(name, attention=attention, readout=readout)
    module.set_attn_implementation(implementation)
    images, text = small(3), rows(module, "cough", "fever and cough, male", "")
    with torch.no_grad():
        together = module(images, text=text).logits
        for place in range(3):
            alone = module(images[[place]], text=text[[place]][:, text[place] >= 0]).logits
            assert (together[[place]] - alone).abs().max() <= 1e-6
        assert torch.equal(module(images[[2]], text=text[[2]][:, :0]).logits, module(images[[2]]).logits)
        assert (together[1] - module(images[[1]]).logits[0]).abs().max() > 1e-3  # text is read


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_batch_mates_and_empty_places_are_not_read(name: str, attention: AttentionMode, implementation: str) -> None:
    module = reader(name, attention=attention)
    module.set_attn_implementation(implementation)
    images = small(2)
    with torch.no_grad():
        beside_short = module(images, text=rows(module, "cough", "")).logits[0]
        beside_long = module(images, text=rows(module, "cough", "fever and cough, male")).logits[0]
        assert (beside_short - beside_long).abs().max() <= 1e-6
        moved = hooked(module, images, rows(module, "cough", ""), place=0)
        still = hooked(module, images, rows(module, "cough", ""), place=None)
    assert (moved[0, PLACES - 1 :] - still[0, PLACES - 1 :]).abs().max() <= 1e-6


def hooked(
    module: LlmImageClassifier, images: torch.Tensor, text: torch.Tensor | None, place: int | None
) -> torch.Tensor:
    """The body's last states (B, T, D) after a random vector is added to the input token at ``place``."""
    states: list[torch.Tensor] = []

    def change(_: Any, __: Any, inputs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        tokens = inputs["inputs_embeds"].clone()
        if place is not None:
            tokens[:, place] += torch.randn(tokens.shape[-1], generator=torch.Generator().manual_seed(5))
        return (), {**inputs, "inputs_embeds": tokens}

    hooks = [
        module.backbone.register_forward_pre_hook(change, with_kwargs=True),
        module.backbone.register_forward_hook(lambda _, __, output: states.append(output.last_hidden_state)),
    ]
    with torch.no_grad():
        module(images, text=text)
    for hook in hooks:
        hook.remove()
    return states[0]


@pytest.mark.parametrize("text", ["none", "whole", "padded"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_causal_attention_leaks_nothing_and_bidirectional_attention_everything(
    name: str, attention: AttentionMode, implementation: str, text: Literal["none", "whole", "padded"]
) -> None:
    module = reader(name, attention=attention)
    module.set_attn_implementation(implementation)
    found = {"none": None, "whole": rows(module, "fever and cough, male"), "padded": rows(module, "and cough")}[text]
    first = {"none": 0, "whole": 0, "padded": PLACES - 2}[text]
    still = hooked(module, small(1), found, place=None)
    last = still.shape[1] - 1
    seen = (hooked(module, small(1), found, place=last)[:, first] - still[:, first]).abs().max()
    assert seen <= 1e-6 if attention == "causal" else seen > 1e-4
    assert (hooked(module, small(1), found, place=first)[:, last] - still[:, last]).abs().max() > 1e-4


@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_implementations_agree_and_gradients_are_finite(name: str, attention: AttentionMode) -> None:
    found = []
    for implementation in ("sdpa", "eager"):
        module = reader(name, attention=attention)
        module.set_attn_implementation(implementation)
        images = small(3).requires_grad_()
        out = module(images, text=rows(module, "cough", "fever and cough, male", ""), labels=torch.tensor([0, 1, 0]))
        out.loss.backward()
        assert images.grad is not None
        assert [key for key, weights in module.named_parameters() if weights.grad is None] == []
        gradients = [weights.grad for weights in module.parameters() if weights.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert bool((images.grad.abs().sum((1, 2, 3)) > 0).all())
        found.append((out.logits.detach(), images.grad))
    assert (found[0][0] - found[1][0]).abs().max() <= 1e-5
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_unused_words_and_empty_places_get_no_gradient() -> None:
    module = reader()
    module(small(2), text=rows(module, "cough", ""), labels=torch.tensor([0, 1])).loss.backward()
    table = module.backbone.get_input_embeddings()
    used = table.weight.grad.abs().sum(dim=1) > 0
    assert used.nonzero().flatten().tolist() == [0, 1 + int(rows(module, "cough")[0, -1])]
    assert len(table.weight) == 1 + len(module.vocabulary)


def test_text_longer_than_its_places_or_the_context_is_refused() -> None:
    module = reader()
    with pytest.raises(ModelError, match=r"text has 6 tokens but the model has places for 5 \(text_tokens\)"):
        module(small(1), text=torch.zeros(1, 6, dtype=torch.long))
    with pytest.raises(ModelError, match=r"text has 1 tokens but the model has places for 0"):
        preset("tiny-qwen3", image_size=16, seed=0)(small(1), text=torch.zeros(1, 1, dtype=torch.long))
    text = preset("tiny-gpt2", image_size=16, seed=0).config.text_config
    with pytest.raises(
        ModelError, match="image with 9 tokens of text makes 14 tokens but the backbone has 5 positions"
    ):
        LlmImageClassifierConfig(text_config=text, image_size=16, text_tokens=9, text_ids=[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_tokens": -1}, "text_tokens is -1: give 0, or how many"),
        ({"text_tokens": 2, "text_ids": None}, "text_ids does not say which tokens the vocabulary keeps"),
        ({"text_tokens": 2, "text_ids": ["a"]}, "text_ids does not say which tokens the vocabulary keeps"),
        ({"text_tokens": 0}, "text_ids keeps a vocabulary, but text_tokens is 0"),
    ],
)
def test_configurations_that_contradict_themselves(changes: dict[str, object], message: str) -> None:
    text = reader().config.text_config
    with pytest.raises(ModelError, match=message):
        LlmImageClassifierConfig(**{"text_config": text, "image_size": 16, "text_ids": [1], **changes})


def test_text_needs_training_texts() -> None:
    with pytest.raises(ModelError, match="training texts hold no word, but text_tokens asks for text"):
        reader(texts=("", " "))


# Pretrained backbones


def pretrained(folder: Path, **changes: Any) -> LlmImageClassifier:
    base = {"image_size": 16, "patch_size": 8, "channels": 1, "classes": ("a", "b"), "text_tokens": 8, "texts": TEXTS}
    return LlmImageClassifier.from_backbone(folder, **{**base, "seed": 7, **changes})


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3", "gpt2", "bert"])
def test_the_body_reads_a_text_as_the_language_model_reads_it(family: str, tmp_path: Path) -> None:
    """The states of the text's tokens, which come first, are the language model's own for the same ids."""
    folder = language_model(tmp_path / "text", family)
    module = pretrained(folder)
    decoder = {"is_decoder": True} if family == "bert" else {}
    with quiet():
        whole = AutoModel.from_pretrained(folder, **decoder)
    assert module.vocabulary is not None
    ids = module.vocabulary.tokenizer.encode("normal", add_special_tokens=False).ids
    assert set(ids) <= set(module.vocabulary.ids)
    states = hooked(module, small(1), rows(module, "normal"), place=None)
    with torch.no_grad():
        expected = whole.eval()(torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(states[:, 8 - len(ids) : 8], expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_word_starts_as_the_models_own_or_as_the_mean_word(tmp_path: Path) -> None:
    bert = pretrained(language_model(tmp_path / "bert", "bert"), attention="bidirectional")
    gpt2 = pretrained(language_model(tmp_path / "gpt2", "gpt2"))
    table = [model.backbone.get_input_embeddings().weight for model in (bert, gpt2)]
    assert not torch.equal(table[0][1], table[0][0])
    assert torch.equal(table[1][1], table[1][0])
    assert bert.vocabulary is not None
    assert 1 not in bert.vocabulary.ids
    assert rows(bert, "xyz")[0].tolist() == [-1] * 7 + [0]


def test_roberta_counts_its_positions_from_two(tmp_path: Path) -> None:
    config = RobertaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=300,
        max_position_embeddings=15, initializer_range=0.2,
    )  # fmt: skip
    folder = bare(tmp_path / "text", config)
    assert pretrained(folder, attention="bidirectional").config.tokens == 13
    with pytest.raises(ModelError, match="makes 14 tokens but the backbone has 13 positions: choose shorter text"):
        pretrained(folder, attention="bidirectional", text_tokens=9)


def test_backbones_that_know_no_mask_read_no_text(tmp_path: Path) -> None:
    config = FNetConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=32, vocab_size=300)
    with pytest.raises(ModelError, match="fnet cannot read texts of different lengths: set text_tokens to 0"):
        pretrained(bare(tmp_path / "text", config), attention="bidirectional")


def bare(folder: Path, config: PreTrainedConfig) -> Path:
    """A text model without a language head, with a tokenizer of bytes."""
    save_folder(folder, seeded(lambda: AutoModel.from_config(config)), None)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder
