"""Questions of which only the end is run: how they are put together, and that any order and number gives the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.test_token_passes import images, language, reading
from xvision.explain.catalogue import units_of
from xvision.methods import removal, suffixes
from xvision.methods.perturbation import patch_ablation
from xvision.methods.removal import Operator, embedding_evaluator, pixel_evaluator
from xvision.methods.suffixes import Effort, effort_on, parts_of
from xvision.methods.target import score_of
from xvision.models.metered import Meter, MeteredClassifier

CAUSAL = ("tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2")


def test_questions_are_joined_until_another_pass_is_cheaper() -> None:
    """Ten positions; the second question of a part makes the first run one token for nothing, the third two more."""
    rows, starts = np.zeros(6, dtype=np.int64), np.arange(6)
    found = [
        (part.start, part.questions.tolist())
        for part in parts_of(rows, starts, 10, Effort(images=9, tokens=99, idle=3))
    ]
    assert found == [(3, [5, 4, 3]), (0, [2, 1, 0])]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 19)), max_size=40),
    st.integers(1, 9), st.integers(1, 90), st.integers(0, 30),
)  # fmt: skip
def test_every_question_is_asked_once_within_the_limits(
    pairs: list[tuple[int, int]], most: int, tokens: int, idle: int
) -> None:
    rows, starts = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    parts = list(parts_of(rows, starts, 20, Effort(most, tokens, idle)))
    assert sorted(np.concatenate([[], *(part.questions for part in parts)])) == list(range(len(pairs)))
    for part in parts:
        assert set(rows[part.questions]) == {part.row}
        assert starts[part.questions].min() == part.start
        size = len(part.questions)
        assert size == 1 or (size <= most and size * (20 - part.start) <= tokens)
        assert (starts[part.questions] - part.start).sum() <= idle


def questions(count: int, units: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """In no order: single patches, many at once, none and all."""
    rng = np.random.default_rng(seed)
    removed = rng.random((count, units)) < rng.choice([0.03, 0.1, 0.6], size=(count, 1))
    removed[:2] = np.array([[False], [True]])
    return rng.permutation(np.arange(count) % 3), removed


def both(model: object, operator: Operator, batch: int = 64) -> tuple[str, np.ndarray, np.ndarray]:
    pictures, targets = images(model), torch.tensor([0, 1, 1])
    given = {"seeds": (1, 2, 3), "batch": batch, "references": images(model, 5)}
    units = units_of(model)
    asked = questions(30, units.count)
    found = embedding_evaluator(model, pictures, targets, units, operator, **given)
    expected = pixel_evaluator(score_of(model.logits), pictures, targets, units, operator, **given)(*asked)
    assert np.ptp(expected) > 0.05
    return found.level, found.evaluate(*asked), expected


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    ("readout", "operator", "batch"), [("last", "mean", 64), ("mean", "blur", 4), ("last", "black", 1)]
)
def test_scores_of_later_tokens_are_those_of_filled_pixels(
    name: str, text: bool, readout: str, operator: Operator, batch: int
) -> None:
    given = {"readout": readout, "stem": "linear"}
    model = reading(name, **given) if text else language(name, **given)
    level, found, expected = both(model, operator, batch)
    assert level == "later embeddings"
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    ("readout", "operator", "batch"), [("last", "mean", 64), ("mean", "road", 4), ("last", "blur", 1)]
)
def test_filled_pixels_whose_later_tokens_are_run_score_the_same(
    name: str, text: bool, readout: str, operator: Operator, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stem that lets neighbours see each other, and questions in several blocks."""
    monkeypatch.setattr(removal, "FILLED_BYTES", 40_000)
    model = reading(name, readout) if text else language(name, readout=readout)
    level, found, expected = both(model, operator, batch)
    assert level == "pixels, later tokens"
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_only_tokens_that_saw_the_change_or_come_later_are_run() -> None:
    """Of 16 patches in rows of four, the convolutions of a patch see its neighbours, so the row above is run too."""
    model = language("tiny-qwen3")
    starts: list[int] = []
    resume = model.from_prefix
    model.from_prefix = lambda prefix, rows, start, tokens: starts.append(start) or resume(prefix, rows, start, tokens)
    given = (images(model), torch.tensor([0, 1, 1]), units_of(model), "black")
    found = embedding_evaluator(model, *given, seeds=(1, 2, 3))
    starts.clear()
    found.evaluate(np.array([0]), np.eye(16, dtype=bool)[[15]])
    assert starts == [10]
    assert found.why == "a token of this model depends on more than its own patch; none depends on a later one"


def test_a_model_that_looks_both_ways_runs_all_tokens_and_says_why() -> None:
    model = language("tiny-bert", attention="bidirectional", stem="linear")
    level, found, expected = both(model, "black")
    assert level == "embeddings"
    np.testing.assert_allclose(found, expected, atol=1e-5)
    why = embedding_evaluator(
        model, images(model), torch.tensor([0, 1, 1]), units_of(model), "black", seeds=(1, 2, 3)
    ).why
    assert why == "each token is made from its own patch; every token of this model sees every other"


def test_images_that_do_not_fit_into_memory_are_passed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suffixes, "PREFIX_BYTES", 1)
    level, found, expected = both(language("tiny-llama", stem="linear"), "mean")
    assert level == "later embeddings"
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_filling_like_the_image_costs_nothing() -> None:
    meter = Meter()
    model = MeteredClassifier(language("tiny-qwen3", stem="linear"), meter)
    pictures = images(model)
    pictures[:, :, :8] = 0.0
    units, targets = units_of(model), torch.tensor([0, 1, 1])
    evaluate = embedding_evaluator(model, pictures, targets, units, "black", seeds=(1, 2, 3)).evaluate
    values = patch_ablation(evaluate, 3, units)
    assert meter.forward == 3 + 3 * units.count // 2
    assert (values[:, : units.count // 2] == 0).all()
    assert (values[:, units.count // 2 :] != 0).all()


def test_a_pass_on_another_device_is_bounded_by_its_images_alone() -> None:
    assert effort_on(torch.device("cpu"), 7) == Effort(7, suffixes.CPU_TOKENS, suffixes.CPU_IDLE)
    assert effort_on(torch.device("meta"), 7)[::2] == (7, suffixes.IDLE_ELSEWHERE)
