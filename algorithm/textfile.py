"""YAML and JSON that people write, read strictly: no key twice, no key that is not text, one line when it is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from algorithm.schema import one_line


class _Strict(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, with 1e-3 as a number (YAML 1.2); a key that is given twice or is no text is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ValueError(f"line {key_node.start_mark.line + 1}: the key {key!r} is not text")
            if key in seen:
                raise ValueError(f"line {key_node.start_mark.line + 1}: the key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Strict.yaml_implicit_resolvers = {first: [r for r in known if r[0] != "tag:yaml.org,2002:float"]
                                   for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Strict.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), list("-+0123456789."))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {key!r} is given twice")
        out[key] = value
    return out


def _check_plain(value: Any) -> None:
    """Raise ValueError for what JSON could not hold (dates, bytes, sets); RecursionError for what holds itself."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_plain(item)
    elif value is not None and not isinstance(value, (str, bool, int, float)):
        raise ValueError(f"a {type(value).__name__} is neither text, number, list nor mapping: put it in quotes")


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError with one line."""
    try:
        value = yaml.load(text, _Strict)
        _check_plain(value)
        return value
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{where}{error.problem or 'not YAML'}") from None
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(one_line(error)) from None


def read_text(path: Path, what: str, error: type[Exception]) -> str:
    """A UTF-8 file. Raises `error`, one line; what: for the message, "class list" or "update plan"."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{what} {path} is not a text file (UTF-8)") from None
    except (OSError, ValueError) as reason:
        raise error(f"cannot read {what} {path}: {getattr(reason, 'strerror', None) or one_line(reason)}") from None


def read_mapping(path: Path, what: str, error: type[Exception], may_be_empty: bool = False) -> dict[str, Any]:
    """A YAML or (by its ending) JSON file that must hold a mapping. Raises `error`, one line.

    what: for the message, "config file" or "update plan". may_be_empty: an empty file is an empty mapping, no error.
    """
    text = read_text(path, what, error)
    kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
    try:
        raw = json.loads(text, object_pairs_hook=_unique) if kind == "JSON" else parse_yaml(text)
    except (ValueError, RecursionError) as reason:
        raise error(f"{what} {path} is not valid {kind}: {one_line(reason, 160)}") from None
    if raw is None and may_be_empty:
        return {}
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else type(raw).__name__
        raise error(f"{what} {path} must be a mapping, found {found}")
    return raw
