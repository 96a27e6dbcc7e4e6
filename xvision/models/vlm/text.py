"""The text side of a vision-language model: tokenizer.json and the chat template, both read as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from xvision.errors import ConfigError, ModelError
from xvision.models.folder import read_json
from xvision.models.loading import DAMAGE, reason
from xvision.models.vlm.families import ImageFamily
from xvision.models.vlm.prompts import Question
from xvision.models.vlm.scoring import Tail

MAX_TOKENIZER_BYTES = 128 * 2**20
MAX_TEMPLATE_BYTES = 2**20
_PLAIN = "{image}\n{question}\nAnswer:"


class Asked(NamedTuple):
    """The prompt as text with one image placeholder, its token numbers, and those of each label's words after it."""

    text: str
    tokens: tuple[int, ...]
    tails: tuple[Tail, ...]


@dataclass(frozen=True)
class TextSide:
    """A tokenizer without padding or truncation, and how the folder writes a conversation.

    begin: the text that every prompt starts with, or "". names: bos_token and the like, for the chat template.
    """

    tokenizer: Tokenizer
    begin: str
    names: Mapping[str, str]
    chat: str | None

    def encode(self, text: str) -> tuple[int, ...]:
        """Token numbers; the beginning is added where a chat template has not written it already."""
        whole = text if text.startswith(self.begin) else self.begin + text
        return tuple(self.tokenizer.encode(whole, add_special_tokens=False).ids)

    def written(self, question: Question, family: ImageFamily, folder: Path) -> str:
        """The prompt with the image's placeholder, up to where the label words start."""
        self.refuse_commands("The prompt", f"{question.text}\n{question.answer}", family)
        if self.chat is None:
            asked = _PLAIN.format(image=family.plain, question=question.text) if question.text else family.plain
        else:
            asked = self._conversation(self.chat, question.text, family, folder)
        return asked + _gap(asked) + question.answer if question.answer else asked

    def refuse_commands(self, where: str, text: str, family: ImageFamily) -> None:
        """ConfigError when plain text holds a special token, such as the image's or the end of a turn."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        commands = (*(token.content for token in added if token.special and token.content), family.placeholder)
        if used := [command for command in commands if command in text]:
            raise ConfigError(f"{where} contains {used[0]!r}, which this model reads as a command: reword it.")

    def _conversation(self, chat: str, text: str, family: ImageFamily, folder: Path) -> str:
        """The chat template's own way; templates for text only get the image's placeholder as text."""
        words = [{"type": "text", "text": text}] if text else []
        contents = ([{"type": "image"}, *words], f"{family.plain}\n{text}".strip())
        problems: list[ModelError] = []
        for content in contents:
            try:
                rendered = _rendered(chat, content, self.names, folder)
            except ModelError as problem:
                problems.append(problem)
                continue
            if rendered.count(family.placeholder) == 1 and text in rendered:
                return rendered
        if len(problems) == len(contents):
            raise problems[0]
        raise ModelError(
            f"{folder}: the chat template does not write {family.placeholder!r} once where the image is: restore "
            "chat_template.jinja, or remove it to ask without a template."
        )


def read_text_side(folder: Path) -> TextSide:
    """The tokenizer and chat template of a checkpoint folder; ModelError when they are missing or damaged."""
    settings = _optional(folder / "tokenizer_config.json")
    names = {key: text for key, value in settings.items() if key.endswith("_token") and (text := _token_text(value))}
    tokenizer = _tokenizer(folder / "tokenizer.json")
    bos, adds = names.get("bos_token", ""), settings.get("add_bos_token")
    number = tokenizer.token_to_id(bos) if bos else None
    if not isinstance(adds, bool):
        adds = number is not None and tokenizer.encode("").ids[:1] == [number]
    return TextSide(tokenizer, bos if adds else "", names, _chat_template(folder, settings))


def ask(
    side: TextSide, question: Question, labels: Mapping[str, str], family: ImageFamily, count: int, folder: Path
) -> Asked:
    """The tokens of the prompt with ``count`` image tokens, and of each label's words.

    Prompt and words are cut into tokens together, as the model read them in training; what all have in common is the
    prompt. Raises ConfigError for words without tokens of their own.
    """
    text = side.written(question, family, folder)
    whole = text.replace(family.placeholder, family.expanded(count))
    alone = side.encode(whole)
    if alone.count(family.image) != count:
        raise ModelError(
            f"{folder}: the tokenizer makes {alone.count(family.image)} image tokens of {count}: tokenizer.json is not "
            "the one that this model was trained with."
        )
    for name, words in labels.items():
        side.refuse_commands(f"prompt.labels.{name}", words, family)
    full = {name: side.encode(whole + _gap(whole) + words.strip()) for name, words in labels.items()}
    for name, tokens in full.items():
        if tokens == alone:
            raise ConfigError(f"prompt.labels.{name}: the tokenizer makes no token of {labels[name]!r}: reword it.")
    shared = _common(alone, *full.values())
    tails = tuple(tokens[shared:] for tokens in full.values())
    _refuse_same(tuple(labels), tails)
    return Asked(text, alone[:shared], tails)


def refuse_openings(labels: Mapping[str, str], tails: tuple[Tail, ...]) -> None:
    """ConfigError when one label's words open another's: the sum of log-probabilities then never lets the longer win."""
    names = tuple(labels)
    for short, tail in zip(names, tails, strict=True):
        for long, other in zip(names, tails, strict=True):
            if short != long and other[: len(tail)] == tail:
                raise ConfigError(
                    f"prompt.labels.{long} ({labels[long]!r}) starts with all of prompt.labels.{short} ({labels[short]!r}), "
                    "so its sum of log-probabilities can never be the larger: reword it, or use normalise = 'pmi'."
                )


def _refuse_same(names: tuple[str, ...], tails: tuple[Tail, ...]) -> None:
    seen: dict[Tail, str] = {}
    for name, tail in zip(names, tails, strict=True):
        if tail in seen:
            raise ConfigError(
                f"prompt.labels.{seen[tail]} and prompt.labels.{name} have the same tokens, so they could never be told "
                "apart: use different words."
            )
        seen[tail] = name


def _common(*rows: tuple[int, ...]) -> int:
    """Length of the longest beginning that all rows share."""
    shortest = min(map(len, rows))
    return next((at for at in range(shortest) if len({row[at] for row in rows}) > 1), shortest)


def _gap(text: str) -> str:
    return "" if text[-1:].isspace() else " "


def _tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ModelError(f"{path.parent} has no tokenizer.json: save the model's fast tokenizer there.")
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise ModelError(f"{path} has more than {MAX_TOKENIZER_BYTES // 2**20} MiB: it is no tokenizer, replace it.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as problem:
        if type(problem) is not Exception:  # the library raises the base class itself
            raise
        raise ModelError(f"{path} cannot be read ({reason(problem)}): save the tokenizer again.") from problem
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The folder's template, in the order in which transformers' processors look for it."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ModelError(f"{path} has more than {MAX_TEMPLATE_BYTES // 2**20} MiB: it is no template, replace it.")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as problem:
            raise ModelError(f"{path} is not UTF-8 text ({problem.reason}): restore it.") from None
    for data in (*(_optional(folder / name) for name in ("chat_template.json", "processor_config.json")), settings):
        found = data.get("chat_template")
        if isinstance(found, list):
            found = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}.get("default")
        if isinstance(found, str):
            return found
    return None


def _rendered(chat: str, content: object, names: Mapping[str, str], folder: Path) -> str:
    """The conversation as text. The template runs in the sandbox of transformers and sees plain text only."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    special: dict[str, Any] = dict(names)
    render: Any = render_jinja_template  # annotated as text, but gives the texts and where answers are
    try:
        rendered, _ = render([messages], chat_template=chat, add_generation_prompt=True, **special)
    except (*DAMAGE, TemplateError) as problem:
        raise ModelError(f"{folder}: the chat template cannot be used ({reason(problem)}): restore it.") from problem
    return str(rendered[0])


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(value: object) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
