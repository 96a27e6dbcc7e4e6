"""Words of a clinical text as rows of a small vocabulary: only what occurs in the training texts is kept.

The only file that knows the ``tokenizers`` library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from xvision.errors import ModelError

FILE = "tokenizer.json"
NOTHING = -1
"""In a row of text: there is no token at this place."""
UNKNOWN_WORD = "[unknown]"
_UNKNOWN = "[UNK]"


class Encoded(NamedTuple):
    """rows: (N, T) int64 rows of the vocabulary, left-padded with −1. cut: texts that had more than T tokens, of which
    the first T are kept. unknown: tokens, among those kept, that no training text had; all of them share row 0."""

    rows: np.ndarray
    cut: int
    unknown: int


class TextVocabulary:
    """The tokens a model reads: row 0 is every token it does not know, row 1 + i is token ``ids[i]`` of the tokenizer.

    ``length`` is T, the tokens of the longest text that is read whole. A checkpoint holds the words of its training
    texts: leave names of patients out of them.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int], length: int) -> None:
        self.tokenizer, self.ids, self.length = tokenizer, tuple(ids), length
        self._rows = {number: row for row, number in enumerate(self.ids, start=1)}
        if len(self._rows) != len(self.ids) or not all(0 <= number < tokenizer.get_vocab_size() for number in self.ids):
            raise ModelError(
                f"text_ids of config.json and {FILE} do not belong together: restore both from the same checkpoint."
            )

    @classmethod
    def of_words(cls, texts: Iterable[str], length: int) -> TextVocabulary:
        """Whole words and punctuation marks, in lower case and without accents; Chinese character by character."""
        split, tidy = BertPreTokenizer(), BertNormalizer(lowercase=True)
        words = {word for text in texts for word, _ in split.pre_tokenize_str(tidy.normalize_str(text))}
        known = {_UNKNOWN: 0} | {word: number for number, word in enumerate(sorted(words), start=1)}
        tokenizer = Tokenizer(WordLevel(known, unk_token=_UNKNOWN))
        tokenizer.normalizer, tokenizer.pre_tokenizer = tidy, split
        return cls(tokenizer, _some(range(1, len(known))), length)

    @classmethod
    def of_tokens(cls, tokenizer: Tokenizer, texts: Iterable[str], length: int) -> TextVocabulary:
        """Those tokens of a pretrained tokenizer that occur in the texts."""
        found = {
            number for entry in tokenizer.encode_batch(list(texts), add_special_tokens=False) for number in entry.ids
        }
        return cls(tokenizer, _some(sorted(found - {unknown_id(tokenizer)})), length)

    @classmethod
    def read(cls, folder: Path, ids: Sequence[int], length: int) -> TextVocabulary:
        """As ``save`` left it; ModelError when the file is missing, damaged or of another checkpoint."""
        return cls(read_tokenizer(folder), ids, length)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json; the kept rows are in the model's configuration."""
        (folder / FILE).write_text(self.content, encoding="utf-8")

    @property
    def content(self) -> str:
        """tokenizer.json; equal tokenizers have equal contents."""
        return str(self.tokenizer.to_str())

    def __len__(self) -> int:
        """Rows, the unknown one included."""
        return 1 + len(self.ids)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Every text in ``length`` places. What is cut off is counted, so that the caller can say so."""
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        rows = np.full((len(found), self.length), NOTHING, dtype=np.int64)
        for place, entry in enumerate(found):
            kept = [self._rows.get(number, 0) for number in entry.ids[: self.length]]
            rows[place, self.length - len(kept) :] = kept
        return Encoded(rows, sum(len(entry.ids) > self.length for entry in found), int((rows == 0).sum()))

    def words(self, rows: Sequence[int]) -> tuple[str, ...]:
        """Each row as a word, or the piece of one that it is; what the model does not know is called so."""
        return tuple(self.tokenizer.decode([self.ids[row - 1]]) if row else UNKNOWN_WORD for row in rows)


def read_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json of a folder, without its own padding and truncation; it is data and runs no code."""
    path = folder / FILE
    if not path.is_file():
        raise ModelError(f"{folder} has no {FILE}: save its tokenizer there with AutoTokenizer's save_pretrained.")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as problem:  # the library raises bare Exception for whatever it cannot read
        raise ModelError(f"{path} is no readable tokenizer ({problem}): restore it.") from problem
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token that stands for what the tokenizer does not know; None where it can spell everything."""
    name = getattr(tokenizer.model, "unk_token", None)
    return tokenizer.token_to_id(name) if name else None


def word_ids(tokenizer: Tokenizer, words: Mapping[str, str]) -> dict[str, int]:
    """Class → its label word's token. The word is looked up as it stands in running text, after a space, then alone.

    Raises ModelError for a word that is several tokens or unknown, and for two words that are the same token.
    """
    found: dict[str, int] = {}
    for name, word in words.items():
        number = _single(tokenizer, name, word)
        same = [other for other, taken in found.items() if taken == number]
        if same:
            raise ModelError(
                f"The label words {words[same[0]]!r} of {same[0]!r} and {word!r} of {name!r} are the same token of this "
                "language model: choose words that differ, in backbone.label_words."
            )
        found[name] = number
    return found


def _single(tokenizer: Tokenizer, name: str, word: str) -> int:
    forms = [tokenizer.encode(form, add_special_tokens=False) for form in (f" {word}", word)]
    single = [entry.ids[0] for entry in forms if len(entry.ids) == 1]
    if not single:
        pieces = " + ".join(min(forms, key=lambda entry: len(entry.ids)).tokens)
        raise ModelError(
            f"The label word {word!r} of the class {name!r} is several tokens of this language model ({pieces}): choose "
            "a word that is one, in backbone.label_words."
        )
    if single[0] == unknown_id(tokenizer):
        raise ModelError(
            f"The label word {word!r} of the class {name!r} is unknown to this language model: choose another one, in "
            "backbone.label_words."
        )
    return single[0]


def _some(ids: Iterable[int]) -> tuple[int, ...]:
    found = tuple(ids)
    if not found:
        raise ModelError(
            "The training texts hold no word, but text_tokens asks for text: give texts or set text_tokens to 0."
        )
    return found
