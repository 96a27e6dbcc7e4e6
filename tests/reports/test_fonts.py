import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.fonts import clean, clean_all, coverage, files


def test_ascii_and_common_signs_stay_as_they_are():
    letters = "".join(chr(code) for code in range(0x20, 0x7F)) + "äéøß αβγ ≤≥±−×∞ →✓✗ 4/255"
    assert clean(letters) == letters


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a\tb\nc\u00a0d", "a b c d"),
        ("a\x00b", "a[U+0000]b"),
        ("\u200b\ufeff\u202e", "[U+200B][U+FEFF][U+202E]"),
        ("\ue000", "[U+E000]"),
        ("肺", "[U+80BA]"),
        ("ไ", "[U+0E44]"),
        ("\ud800", "[U+D800]"),
        ("e\u0301", "é"),
    ],
)
def test_what_cannot_be_printed_is_spelled_out(text, printed):
    assert clean(text) == printed


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_cleaned_text_is_printable_and_cleaning_again_changes_nothing(text):
    cleaned = clean(text)
    assert all(ord(letter) in coverage() for letter in cleaned)
    assert not any(unicodedata.category(letter).startswith("C") for letter in cleaned)
    assert clean(cleaned) == cleaned


def test_plain_data_is_cleaned_at_every_depth_and_keys_stay():
    assert clean_all({"a\t": ["\x00", ("\x01", 1, None)]}) == {"a\t": ["[U+0000]", ["[U+0001]", 1, None]]}


def test_endless_text_is_cut_and_says_how_much_is_missing():
    assert clean_all(["x" * 1500, "x" * 1502]) == ["x" * 1500, "x" * 1500 + "… (2 further characters)"]


def test_the_faces_whose_coverage_is_known_exist():
    assert all(path.is_file() for path in files())
    assert len(coverage()) > 5000
