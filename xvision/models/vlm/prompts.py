"""Prompts as data: what a vision-language model is asked, read from TOML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import NamedTuple, Protocol, Self

from xvision import codec
from xvision.config import PromptPlan, read_toml
from xvision.errors import ConfigError, nearest
from xvision.models.protocols import Classifier

PLACEHOLDERS = {"options": "all label words, in order", "finding": "the second of two classes"}
"""What a template may leave open."""
_FOLDER = Path(str(files("xvision.models.vlm"))) / "templates"


@codec.record
class PromptTemplate:
    """A question and how its answer starts; the label words follow. Placeholders: {options}, {finding}."""

    name: str
    text: str = ""
    """What is asked beside the image; empty for a template that only starts a sentence."""
    answer: str = ""
    """The beginning of the answer, the same for every label."""


class Question(NamedTuple):
    """A template with its placeholders filled: ``text`` is asked, ``answer`` starts what the label words continue."""

    name: str
    text: str
    answer: str


class AskedClassifier(Classifier, Protocol):
    """A classifier that is asked a question and answers with one of the label words."""

    @property
    def plan(self) -> PromptPlan: ...

    def with_question(self, question: Question, labels: Mapping[str, str]) -> Self:
        """The same model asked otherwise; labels: each of its classes, in their order, to the words that stand for it now.

        Raises ConfigError for a question or words that cannot be asked.
        """


def known_templates() -> tuple[str, ...]:
    """Names of the templates that come with xvision."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def read_template(name: str) -> PromptTemplate:
    """The template of that name, or in the TOML file of that path; ConfigError when there is none or it is wrong."""
    is_path = name.endswith(".toml") or "/" in name
    if not is_path and name not in known_templates():
        raise ConfigError(
            f"prompt.template is {name!r}, which is no template here. {nearest(name, known_templates())} "
            "Your own is given by its path, ending in .toml."
        )
    path = Path(name) if is_path else _FOLDER / f"{name}.toml"
    template = codec.read(PromptTemplate, read_toml(path), str(path), ConfigError)
    if not (template.text.strip() or template.answer.strip()):
        raise ConfigError(f"{path}: text and answer are both empty: write what the model is asked.")
    for text in (template.text, template.answer):
        _check_placeholders(path, text)
    return template


def read_question(plan: PromptPlan) -> Question:
    """What the plan asks; raises ConfigError for labels, template or temperature that cannot be used."""
    check_labels(plan.labels)
    if not 0 < plan.temperature < float("inf"):
        raise ConfigError(f"prompt.temperature is {plan.temperature}: give a number above 0.")
    return fill(read_template(plan.template), plan.labels)


def fill(template: PromptTemplate, labels: Mapping[str, str], listed: Sequence[str] = ()) -> Question:
    """The template as a question. listed: the classes in the order in which {options} names them, else that of the labels."""
    text, answer = (_filled(template, part, labels, listed).strip() for part in (template.text, template.answer))
    return Question(template.name, text, answer)


def placeholders(template: PromptTemplate) -> set[str]:
    """What the template leaves open."""
    return {name for text in (template.text, template.answer) for _, name, _, _ in Formatter().parse(text) if name}


def check_labels(labels: Mapping[str, str]) -> None:
    """ConfigError for fewer than two classes, or one without words."""
    if len(labels) < 2:
        raise ConfigError(
            f"prompt.labels names {len(labels)} classes: write the words that stand for each of at least two, "
            'e.g. labels = { normal = "no", pneumonia = "yes" }.'
        )
    for name, words in labels.items():
        if not words.strip():
            raise ConfigError(f"prompt.labels.{name} is empty: write the words that stand for this class.")


def _check_placeholders(path: Path, text: str) -> None:
    known = ", ".join(f"{{{name}}} ({meaning})" for name, meaning in PLACEHOLDERS.items())
    try:
        parts = list(Formatter().parse(text))
    except ValueError as problem:
        raise ConfigError(f"{path}: {text!r} has a stray brace ({problem}). Placeholders: {known}.") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in PLACEHOLDERS or form or conversion):
            raise ConfigError(f"{path}: the placeholder {{{name}}} is unknown. Placeholders: {known}.")


def _filled(template: PromptTemplate, text: str, labels: Mapping[str, str], listed: Sequence[str]) -> str:
    if "finding" in placeholders(template) and len(labels) != 2:
        raise ConfigError(
            f"The template {template.name!r} asks for one {{finding}} but prompt.labels names {len(labels)} classes: "
            "use a template with {options}, such as 'finding'."
        )
    options = _listed([labels[name].strip() for name in listed or labels])
    return text.format(options=options, finding=list(labels)[-1])


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
