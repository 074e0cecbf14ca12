"""The base of every configuration section: strict pydantic models whose errors name the nearest known key."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from algorithm.errors import ConfigError

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A strict configuration section: unknown keys are errors, values are validated on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True,
                              coerce_numbers_to_str=True)


def one_line(error: BaseException, limit: int = 120) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[:limit - 3] + "..."


def nearest(word: str, known: list[str]) -> str:
    """`" (nearest known: 'x')"`, or the list of what is known when nothing is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" (nearest known: {match[0]!r})" if match else f" (known: {', '.join(known)})"


def _section_at(section: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The section class that a validation error's path leads to."""
    current: type[BaseModel] = section
    for key in path:
        info = current.model_fields.get(str(key))
        if info is None:
            return None
        options = [info.annotation, *getattr(info.annotation, "__args__", ())]
        inner = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not inner:
            return None
        current = inner[0]
    return current


def explain(section: type[BaseModel], error: ValidationError, where: str = "") -> str:
    """One line for the first error of a validation: where, what was found, what to do."""
    first = error.errors(include_url=False)[0]
    path = tuple(first["loc"])
    dotted = ".".join([where, *map(str, path)] if where else map(str, path))
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        home = _section_at(section, path[:-1])
        hint = nearest(str(path[-1]), list(home.model_fields)) if home else ""
        return f"unknown configuration key {dotted!r}{hint}{more}"
    found = str(first["input"])
    found = found if len(found) <= 60 else found[:57] + "..."
    return f"configuration key {dotted!r}: {first['msg']} (found {found!r}){more}"


def parse(section: type[S], raw: Any, where: str = "") -> S:
    """Validate `raw` (a mapping) as `section`; raises ConfigError with a one-line message."""
    if not isinstance(raw, dict):
        raise ConfigError(f"configuration {where or section.__name__!r} must be a mapping, found {type(raw).__name__}")
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(section, error, where)) from None
