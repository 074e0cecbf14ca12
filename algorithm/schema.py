"""The base of every configuration section: strict pydantic models whose errors name the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from algorithm.errors import ConfigError

S = TypeVar("S", bound="Section")
SEED_MAX = 2**63 - 1  # what every generator takes, also a little above


class Section(BaseModel):
    """A strict configuration section: unknown keys are errors, values are validated on assignment.

    Numbers are finite, and true and false are no numbers. Each field's default and description are the only ones there
    are: `configs/default.yaml` lists them (`python -m algorithm.defaults`). `aliases`: other names that a key goes by
    elsewhere -> the key below this section, dotted; they are read and never written.
    """

    aliases: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True,
                              coerce_numbers_to_str=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if _has_truth(value) and not _mentions(cls.model_fields[info.field_name or ""].annotation, (bool, Any)):
            raise ValueError("true and false (yes, no, on, off) do not fit here")
        return value

    @model_validator(mode="before")
    @classmethod
    def _own_names(cls, raw: Any) -> Any:
        return without_aliases(raw, cls) if cls.aliases and isinstance(raw, dict) else raw

    def changed(self, *names: str) -> list[str]:
        """Those of the fields `names` whose value is not the default: what was given, perhaps in vain."""
        default = type(self).model_construct()
        return [n for n in names if getattr(self, n) != getattr(default, n)]


def without_aliases(raw: Mapping[str, Any], section: type[Section], prefix: str = "") -> dict[str, Any]:
    """`raw`, a mapping for the section, with the section's own key in the place of each alias, also in sections inside.

    Raises ValueError where a key and its alias are given and differ.
    """
    out = dict(raw)
    for key, value in raw.items():
        inner = section_of(section.model_fields[key].annotation) if key in section.model_fields else None
        if inner is not None and isinstance(value, dict):
            out[key] = without_aliases(value, inner, f"{prefix}{key}.")
    for alias in [a for a in section.aliases if a in out]:
        value, where, (*parents, last) = out.pop(alias), out, section.aliases[alias].split(".")
        for part in parents:
            known = where.get(part, {})
            known = known.model_dump(exclude_unset=True) if isinstance(known, BaseModel) else known
            if not isinstance(known, dict):
                break               # no section: refused as such
            where[part] = where = dict(known)
        else:
            if where.get(last, value) != value:
                raise ValueError(f"{prefix}{alias}={value} is another name of {prefix}{section.aliases[alias]}, which is "
                                 f"given as {where[last]}: leave one out")
            where[last] = value
    return out


def _has_truth(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, bool) or any(map(_has_truth, inner))


def _mentions(annotation: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a type is or contains one of `kinds`, or a section (which checks itself)."""
    if annotation in kinds or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return True
    return any(_mentions(a, kinds) for a in getattr(annotation, "__args__", ()))


def one_line(error: BaseException, limit: int = 120) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[:limit - 3] + "..."


def nearest(word: str, known: list[str]) -> str:
    """`" (nearest known: 'x')"`, or the list of what is known when nothing is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" (nearest known: {match[0]!r})" if match else f" (known: {', '.join(known)})"


def section_of(annotation: Any) -> type[Section] | None:
    """The section class that a field's type is, if it is one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _section_at(section: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The section class that a validation error's path leads to."""
    current: type[BaseModel] = section
    for key in path:
        info = current.model_fields.get(str(key))
        if info is None:
            return None
        inner = section_of(info.annotation)
        if inner is None:
            return None
        current = inner
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
