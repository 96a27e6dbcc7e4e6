"""@analysis: one decorated function is one question, one page and one section.

Its keyword-only parameters are its options, the first line of its docstring is its question, and the rest says what its
numbers mean and do not mean.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from xvision import codec
from xvision.errors import ConfigError, nearest
from xvision.result import PILLARS, Result

if TYPE_CHECKING:
    from xvision.audit import Audit

Need = Literal["scores", "pixels", "gradients", "attention", "embeddings", "words"]
AnalysisFunction = Callable[..., Result]


@dataclass(frozen=True)
class Option:
    """A keyword-only parameter of an analysis."""

    name: str
    kind: Any
    default: Any


@dataclass(frozen=True)
class Analysis:
    """A registered analysis. ``passes`` says what it costs per image, in passes through the model."""

    name: str
    title: str
    pillar: str
    need: Need
    passes: str
    question: str
    reference: str
    options: tuple[Option, ...]
    run: AnalysisFunction
    follows: str = ""
    """Another analysis whose options this one works under, too (``Audit.options``)."""

    def bind(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their values; ConfigError for an unknown name or a value of the wrong type."""
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                raise ConfigError(f"analysis.{self.name}: unknown option {name!r}. {nearest(name, known)}")
        return {
            name: codec.read(option.kind, given[name], f"analysis.{self.name}.{name}", ConfigError)
            if name in given
            else option.default
            for name, option in known.items()
        }

    def __call__(self, audit: Audit, options: Mapping[str, Any]) -> Result:
        return self.run(audit, **options)


_ANALYSES: dict[str, Analysis] = {}


def analysis(
    title: str, *, pillar: str, need: Need, passes: str, follows: str = ""
) -> Callable[[AnalysisFunction], AnalysisFunction]:
    """Registers ``function(audit, *, option=default, …) -> Result`` under its own name.

    follows: another analysis whose options it works under, too, and finds as ``options_of(audit, name)``.
    """

    def register(function: AnalysisFunction) -> AnalysisFunction:
        name = function.__name__
        documentation = inspect.getdoc(function) or ""
        if not documentation:
            raise TypeError(f"analysis {name!r} has no docstring; its first line is the question it answers")
        if pillar not in PILLARS:
            raise TypeError(f"analysis {name!r}: pillar {pillar!r} is none of {', '.join(PILLARS)}")
        if name in _ANALYSES and _ANALYSES[name].run.__module__ != function.__module__:
            raise TypeError(f"two analyses are called {name!r}")
        question = documentation.splitlines()[0]
        _ANALYSES[name] = Analysis(
            name, title, pillar, need, passes, question, documentation, _options(function), function, follows
        )
        return function

    return register


def analyses() -> Mapping[str, Analysis]:
    """Every analysis in ``xvision/analyses``, by name, in the order of the pillars; the one a pillar is named after comes first."""
    package = importlib.import_module("xvision.analyses")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"xvision.analyses.{module.name}")
    ordered = sorted(
        _ANALYSES.values(),
        key=lambda found: (PILLARS.index(found.pillar), found.name != found.pillar.lower(), found.name),
    )
    return {found.name: found for found in ordered}


def options_of(audit: Audit, name: str) -> Mapping[str, Any]:
    """The options under which an analysis runs in this audit; its defaults where the audit does not say."""
    return audit.options.get(name) or analyses()[name].bind({})


def parse_setting(setting: str) -> tuple[str, str, Any]:
    """``calibration.bins=10`` as (analysis, option, value); the value is written as in TOML."""
    target, equals, text = setting.partition("=")
    name, dot, option = target.strip().partition(".")
    if not (equals and dot and name and option):
        raise ConfigError(f"--set {setting!r}: write it as ANALYSIS.OPTION=VALUE, e.g. calibration.bins=10.")
    try:
        return name, option, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise ConfigError(f"--set {setting!r}: {text!r} is not a TOML value; put text in quotes.") from None


def bind_all(
    only: tuple[str, ...], given: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[Analysis, dict[str, Any]], ...]:
    """The analyses to run with their options; every name and option is checked before any work starts."""
    known = analyses()
    for name in (*only, *given):
        if name not in known:
            raise ConfigError(f"there is no analysis {name!r}. {nearest(name, known)}")
    chosen = [found for name, found in known.items() if not only or name in only]
    bound = {name: found.bind(given.get(name, {})) for name, found in known.items()}
    return tuple((found, bound[found.name]) for found in chosen)


def _options(function: AnalysisFunction) -> tuple[Option, ...]:
    parameters = list(inspect.signature(function).parameters.values())
    hints = get_type_hints(function)
    for parameter in parameters[1:]:
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise TypeError(f"analysis {function.__name__!r}: {parameter.name!r} must be keyword-only with a default")
    return tuple(Option(item.name, hints[item.name], item.default) for item in parameters[1:])
