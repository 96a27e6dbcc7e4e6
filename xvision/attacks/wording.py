"""Other words for the same clinical text: does the decision follow the wording? Shapes: B cases, K logits.

The edits are few, fixed and small, so that a reader can check each: letter case, blanks, the full stop, the order of sentences,
of clauses and of questions, and synonyms that the user names. Order is left alone where a word may refer to what stands before it
or negate what follows. That an edit keeps the meaning is a rule of thumb: read the text that is reported.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from xvision.attacks.cases import Cases
from xvision.errors import ConfigError, DataError
from xvision.result import NotApplicable

Edit = Callable[[str], str]


class Edited(NamedTuple):
    """text: after the edits, which are named in the order in which they were made."""

    text: str
    edits: tuple[str, ...]


class Wording(NamedTuple):
    """broken: (B,) bool. edits: per case the names of the fewest edits that broke it, () where none did. texts: the text that broke
    it, or the one it came with. tried: (B,) texts shown to the model for the case.
    """

    broken: torch.Tensor
    edits: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]
    tried: torch.Tensor


class _Bound(Protocol):
    def logits(self, pixels: torch.Tensor) -> torch.Tensor: ...


class Reader(Protocol):
    """A classifier to which texts can be bound, one for each image."""

    @property
    def takes_text(self) -> bool: ...

    def with_text(self, texts: Sequence[str]) -> _Bound: ...


def wording(
    model: Reader, cases: Cases, texts: Sequence[str], *, synonyms: Mapping[str, str], most: int, width: int
) -> Wording:
    """The fewest edits of each case's text that break its decision; the image stays as it is.

    model: read with the edited texts; ``Cases.forward`` is not. texts: (B,) as the cases came with. synonyms: word or phrase to what
    may stand for it, both ways; without them no word is replaced. most: edits made together, at most. width: texts in one batch.
    Single edits come first, and only cases that they do not break go on to pairs. Cost: about 15 passes per case with most = 1,
    about 100 with 2, fewer for short texts.

    Raises NotApplicable where the model reads no text or no case has one, DataError unless there is one text per case,
    ConfigError for most below 1.
    """
    if most < 1:
        raise ConfigError(f"found at most {most} edits of a text: allow at least 1")
    if not getattr(model, "takes_text", False):
        raise NotApplicable("the model reads no text beside the image, so there is nothing to word otherwise")
    if len(texts) != len(cases):
        raise DataError(
            f"found {len(texts)} texts for {len(cases)} cases: give one text per case, empty where there is none"
        )
    if not any(text.strip() for text in texts):
        raise NotApplicable("no case comes with a text, so there is nothing to word otherwise")
    broken = torch.zeros(len(cases), dtype=torch.bool)
    tried = torch.zeros(len(cases), dtype=torch.int64)
    edits: list[tuple[str, ...]] = [()] * len(cases)
    reached = list(texts)
    for place, text in enumerate(texts):
        waiting = variants(text, synonyms, most)
        while part := list(itertools.islice(waiting, width)):
            hit = _first_hit(model, cases, place, part)
            tried[place] += len(part)
            if hit is not None:
                broken[place], edits[place], reached[place] = True, hit.edits, hit.text
                break
    return Wording(broken, tuple(edits), tuple(reached), tried)


def _first_hit(model: Reader, cases: Cases, place: int, part: Sequence[Edited]) -> Edited | None:
    rows = torch.full((len(part),), place, device=cases.pixels.device)
    with torch.no_grad():
        logits = model.with_text([each.text for each in part]).logits(cases.pixels[rows])
    hits = cases.goal.rows(rows).broken(logits).tolist()
    return next((each for each, hit in zip(part, hits, strict=True) if hit), None)


def variants(text: str, synonyms: Mapping[str, str], most: int) -> Iterator[Edited]:
    """Every other wording within ``most`` edits, fewest first, each text once; none of a text without words."""
    if not text.strip():
        return
    edits = {**EDITS, **_replacements(synonyms)}
    seen, last = {text}, [Edited(text, ())]
    for _ in range(most):
        found = []
        for each in last:
            for name, edit in edits.items():
                changed = each.text if name in each.edits else edit(each.text)
                if changed not in seen:
                    seen.add(changed)
                    found.append(Edited(changed, (*each.edits, name)))
                    yield found[-1]
        last = found


def _replacements(synonyms: Mapping[str, str]) -> dict[str, Edit]:
    """One edit for each word of the mapping and each direction."""
    pairs = [*synonyms.items(), *((other, word) for word, other in synonyms.items())]
    return {f"{word} → {other}": _replacing(word, other) for word, other in pairs}


def _replacing(word: str, other: str) -> Edit:
    """Whole words only, in any letter case; a capital at the beginning stays one."""
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)

    def replace(found: re.Match[str]) -> str:
        return other[:1].upper() + other[1:] if found.group()[:1].isupper() else other

    return lambda text: pattern.sub(replace, text)


_SENTENCE = re.compile(r"(?<=\w{4}[.!?])\s+(?=[^\W\d_])")
"""Between sentences: after a word of four letters, a stop and a blank, before a letter, so that "Dr. B" and "vs. left" stay whole."""
_LEANING = re.compile(
    r"^(it|its|this|that|these|those|he|she|they|his|her|their|then|there|therefore|thus|hence|so|but|and|or|also|since|after"
    r"|before|later|now|however|instead|otherwise|both|same|which|who|latter|former)\b",
    re.IGNORECASE,
)
"""Beginnings that may refer to the sentence before."""
_BINDING = re.compile(
    r"\b(no|not|nor|neither|none|never|without|denies|denied|negative|absent|unless|except|and|or|but|then|because|since|after|before"
    r"|which|who|that|while|if|with|despite|followed)\b",
    re.IGNORECASE,
)
"""Words whose reach depends on the order of clauses."""


def _sentences_swapped(text: str) -> str:
    """Last sentence first, where none leans on another."""
    parts = _SENTENCE.split(text.strip())
    if len(parts) < 2 or any(_LEANING.match(part) for part in parts):
        return text
    return " ".join([_stopped(parts[-1]), *parts[:-1]])


def _questions_moved(text: str, *, first: bool) -> str:
    """All questions before, or after, everything else."""
    parts = _SENTENCE.split(text.strip())
    asked = [part for part in parts if part.endswith("?")]
    told = [part for part in parts if not part.endswith("?")]
    if not asked or not told or any(_LEANING.match(part) for part in parts):
        return text
    return " ".join([*asked, *told] if first else [*map(_stopped, told), *asked])


def _questions_reversed(text: str) -> str:
    """Two or more questions in the other order, in the places they had."""
    parts = _SENTENCE.split(text.strip())
    asked = [part for part in parts if part.endswith("?")]
    if len(asked) < 2 or any(_LEANING.match(part) for part in parts):
        return text
    back = iter(reversed(asked))
    return " ".join(next(back) if part.endswith("?") else part for part in parts)


def _clauses_swapped(text: str) -> str:
    """In each sentence that is a plain list, the items in the other order."""
    return " ".join(_list_reversed(part) for part in _SENTENCE.split(text.strip()))


def _list_reversed(sentence: str) -> str:
    stop = sentence[-1:] if sentence[-1:] in ".!?" else ""
    body = sentence.removesuffix(stop)
    mark = ";" if ";" in body else ","
    items = [item.strip() for item in body.split(mark)]
    if len(items) < 2 or not all(items) or _BINDING.search(body) or re.search(r"\d,\d", body):
        return sentence
    return f"{mark} ".join(reversed(items)) + stop


def _stopped(sentence: str) -> str:
    return sentence if sentence[-1:] in ".!?" else f"{sentence}."


def _stop_changed(text: str) -> str:
    """Without the full stop at the end; with one after a letter or a digit."""
    bare = text.rstrip()
    if bare.endswith("."):
        return bare[:-1]
    return f"{bare}." if bare[-1:].isalnum() else text


def _first_letter_changed(text: str) -> str:
    """Of a word that goes on in small letters: MRI and T2 stay as they are."""
    return text[:1].swapcase() + text[1:] if text[1:2].islower() else text


EDITS: Mapping[str, Edit] = {
    "full stop": _stop_changed,
    "blank at the end": lambda text: f"{text} ",
    "blank in front": lambda text: f" {text}",
    "double blanks": lambda text: re.sub(r"(?<=\S) (?=\S)", "  ", text),
    "first letter": _first_letter_changed,
    "lower case": str.lower,
    "upper case": str.upper,
    "sentences swapped": _sentences_swapped,
    "clauses swapped": _clauses_swapped,
    "questions first": lambda text: _questions_moved(text, first=True),
    "questions last": lambda text: _questions_moved(text, first=False),
    "questions reversed": _questions_reversed,
}
"""Edits by name, the least visible first; each returns the text unchanged where it does not apply."""
