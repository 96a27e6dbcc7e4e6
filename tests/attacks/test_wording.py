"""Other words: each edit by hand, models that read one planted thing, and the real reader of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.attacks.cases import Cases, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.wording import EDITS, Wording, variants, wording
from xvision.errors import ConfigError, DataError
from xvision.methods.decision import Decision
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import preset
from xvision.result import NotApplicable

ILL = Decision(1, 0.5, True, ("missed disease",))


class Clerk:
    """A classifier of text alone: ill where the rule says so. It counts the texts that it was given."""

    takes_text = True

    def __init__(self, rule: Callable[[str], bool], texts: Sequence[str] = ()) -> None:
        self.rule, self.texts, self.read = rule, list(texts), list[str]()

    def with_text(self, texts: Sequence[str]) -> Clerk:
        bound = Clerk(self.rule, texts)
        bound.read = self.read
        return bound

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        assert len(self.texts) == len(pixels)
        self.read += self.texts
        return torch.tensor([[0.0, 1.0 if self.rule(text) else -1.0] for text in self.texts])


def cases(count: int) -> Cases:
    goal = class_goal(torch.ones(count, dtype=torch.int64), 2, ILL)
    keys = [str(place) for place in range(count)]
    return cases_of(lambda pixels: pixels.flatten(1)[:, :2], torch.full((count, 1, 2, 2), 0.5), goal, keys=keys, seed=0)


def worded(rule: Callable[[str], bool], *texts: str, most: int = 1, synonyms: dict[str, str] | None = None) -> Wording:
    return wording(Clerk(rule), cases(len(texts)), texts, synonyms=synonyms or {}, most=most, width=4)


@pytest.mark.parametrize(
    ("edit", "text", "expected"),
    [
        ("full stop", "Cough and fever", "Cough and fever."),
        ("full stop", "Cough and fever. ", "Cough and fever"),
        ("full stop", "Fever?", "Fever?"),
        ("blank at the end", "Cough", "Cough "),
        ("blank in front", "Cough", " Cough"),
        ("double blanks", "Cough and  fever", "Cough  and  fever"),
        ("first letter", "Cough", "cough"),
        ("first letter", "cough", "Cough"),
        ("first letter", "MRI of the knee", "MRI of the knee"),
        ("lower case", "Cough, MRI", "cough, mri"),
        ("upper case", "Cough", "COUGH"),
        ("sentences swapped", "Male smoker. Fever today. Chest pain", "Chest pain. Male smoker. Fever today."),
        ("sentences swapped", "Chest pain. It is worse.", "Chest pain. It is worse."),
        ("sentences swapped", "Seen by Dr. Brown and others", "Seen by Dr. Brown and others"),
        ("sentences swapped", "Chest pain", "Chest pain"),
        ("clauses swapped", "Cough, fever, chills. Smoker.", "chills, fever, Cough. Smoker."),
        ("clauses swapped", "Cough; fever, high", "fever, high; Cough"),
        ("clauses swapped", "No fever, cough", "No fever, cough"),
        ("clauses swapped", "Cough, fever and chills", "Cough, fever and chills"),
        ("clauses swapped", "Dose 1,5 mg, daily", "Dose 1,5 mg, daily"),
        ("questions first", "Smoker. Pneumonia?", "Pneumonia? Smoker."),
        ("questions first", "Smoker. Chest pain.", "Smoker. Chest pain."),
        ("questions first", "Smoker. This pneumonia?", "Smoker. This pneumonia?"),
        ("questions last", "Pneumonia? Smoker", "Smoker. Pneumonia?"),
        ("questions last", "Pneumonia?", "Pneumonia?"),
        ("questions reversed", "Mass? Smoker. Effusion?", "Effusion? Smoker. Mass?"),
        ("questions reversed", "Mass? Smoker.", "Mass? Smoker."),
    ],
)
def test_an_edit_by_hand(edit: str, text: str, expected: str) -> None:
    assert EDITS[edit](text) == expected


@settings(deadline=None, max_examples=100)
@given(text=st.text(alphabet="abé AB.,;?! 1\n", max_size=40))
def test_no_edit_adds_or_drops_a_word(text: str) -> None:
    def words(of: str) -> list[str]:
        cleaned = "".join(sign if sign.isalnum() else " " for sign in of)
        return sorted(cleaned.lower().split())

    for edit in EDITS.values():
        assert words(edit(text)) == words(text)


@settings(deadline=None, max_examples=50)
@given(text=st.text(alphabet="ab A.,?", max_size=20), most=st.integers(0, 2))
def test_wordings_are_other_texts_each_once_fewest_edits_first(text: str, most: int) -> None:
    found = list(variants(text, {"a": "b"}, most))
    texts = [each.text for each in found]
    assert len(set(texts)) == len(texts)
    assert text not in texts
    counts = [len(each.edits) for each in found]
    assert counts == sorted(counts)
    assert max(counts, default=0) <= most
    assert all(len(set(each.edits)) == len(each.edits) for each in found)
    assert list(variants(text, {"a": "b"}, 1)) == [
        each for each in list(variants(text, {"a": "b"}, 2)) if len(each.edits) == 1
    ]
    if not text.strip():
        assert not found


@pytest.mark.parametrize(
    ("rule", "edits"),
    [
        (lambda text: text.endswith("."), ("full stop",)),
        (lambda text: not text.isupper(), ("upper case",)),
        (lambda text: text.startswith("Male"), ("blank in front",)),
        (lambda text: "  " not in text, ("double blanks",)),
        (lambda text: text.index("Male") < text.index("Chest"), ("sentences swapped",)),
        (lambda text: "cough" in text.lower(), ()),
    ],
)
def test_the_planted_weakness_is_named(rule: Callable[[str], bool], edits: tuple[str, ...]) -> None:
    def safe(text: str) -> bool:
        try:
            return rule(text)
        except ValueError:
            return True

    found = worded(safe, "Male with cough. Chest pain.")
    assert found.edits == (edits,)
    assert found.broken.tolist() == [bool(edits)]
    assert rule(found.texts[0]) != bool(edits)


def test_a_synonym_of_the_user_is_tried_both_ways_and_only_as_a_whole_word() -> None:
    synonyms = {"cough": "tussis", "pain": "ache"}
    found = worded(lambda text: "ough" in text.lower(), "Cough, coughing?", "Coughing.", synonyms=synonyms)
    assert found.broken.tolist() == [False, False]
    found = worded(lambda text: "tussis" in text.lower(), "Tussis.", "a tussis b", synonyms=synonyms)
    assert found.edits == (("tussis → cough",),) * 2
    assert found.texts == ("Cough.", "a cough b")
    assert not worded(lambda text: "tussis" in text.lower(), "Tussis.").broken.any()


def test_two_edits_only_where_one_does_not_do() -> None:
    def rule(text: str) -> bool:
        return text.strip().endswith(".") or text.strip()[:1].isupper()

    assert not worded(rule, "Cough.", most=1).broken.any()
    found = worded(rule, "Cough.", "cough.", most=2)
    assert [len(each) for each in found.edits] == [2, 1]
    assert set(found.edits[0]) == {"full stop", "first letter"}
    assert found.texts == ("cough", "cough")


def test_cases_are_read_apart_and_leave_when_broken() -> None:
    clerk = Clerk(lambda text: text.endswith("."))
    texts = ["Cough.", "", "Fever today"]
    found = wording(clerk, cases(3), texts, synonyms={}, most=1, width=1)
    assert found.broken.tolist() == [True, False, True]
    assert found.tried.tolist()[:2] == [1, 0]
    assert found.texts[1] == ""
    assert len(clerk.read) == int(found.tried.sum())
    back = wording(clerk, cases(3), texts[::-1], synonyms={}, most=1, width=16)
    assert back.edits[::-1] == found.edits


def test_a_real_model_is_read_with_each_text() -> None:
    texts = ["fever and cough", "cough, fever"]
    module = preset("tiny-qwen3", image_size=16, text_tokens=8, texts=texts, seed=0)
    model = adapt(module, preprocessing_of(module.config), source="memory")
    pixels = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = model.with_text(texts).logits(pixels)
    margins = logits[:, 1] - logits[:, 0]
    # The threshold lies between the case's own wording and the nearest other one, so that some edit must break it.
    swapped = model.with_text(["fever, cough"]).logits(pixels[1:])
    other = float(swapped[0, 1] - swapped[0, 0])
    middle = torch.sigmoid((margins[1] + other) / 2).item()
    label = int(margins[1] >= other)
    goal = class_goal(torch.tensor([label]), 2, Decision(1, middle, True))
    case = cases_of(model.logits, pixels[1:], goal, keys=("a",), seed=0)
    found = wording(model, case, texts[1:], synonyms={}, most=1, width=8)
    assert found.broken.tolist() == [True]
    assert found.texts[0] != texts[1]
    bound = model.with_text(list(found.texts)).logits(pixels[1:])
    assert case.goal.broken(bound).all()


def test_where_there_is_no_text_it_says_why() -> None:
    module = preset("tiny-qwen3", image_size=16, seed=0)
    plain = adapt(module, preprocessing_of(module.config), source="memory")
    with pytest.raises(NotApplicable, match="reads no text"):
        wording(plain, cases(1), ["Cough"], synonyms={}, most=1, width=4)
    with pytest.raises(NotApplicable, match="no case comes with a text"):
        worded(lambda text: True, "", " ")
    with pytest.raises(DataError, match="1 texts for 2 cases"):
        wording(Clerk(lambda text: True), cases(2), ["Cough"], synonyms={}, most=1, width=4)
    with pytest.raises(ConfigError, match="allow at least 1"):
        worded(lambda text: True, "Cough", most=0)
