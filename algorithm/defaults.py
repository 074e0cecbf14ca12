"""`configs/default.yaml` from the sections: every option with its default and what it means. Nothing reads that file.

    python -m algorithm.defaults       rewrites it
"""

from __future__ import annotations

import json
import textwrap
from typing import Any, Literal, get_args, get_origin

from algorithm.config import CONFIGS, RunConfig
from algorithm.schema import Section, section_of

PATH = CONFIGS / "default.yaml"
WIDTH, COLUMN = 122, 42  # of a line; where the meaning begins

_HEAD = """\
# Every option, its default, what it means: a listing for reading and copying from. The defaults themselves stand in the
# sections (algorithm/*/config.py, algorithm/config.py); `python -m algorithm.defaults` writes this file from them.
# `--config FILE`, flags and section.key=value win over the defaults, in that order. 1 kb = 1,000 bytes.
"""


def defaults_yaml() -> str:
    """The text of `configs/default.yaml`."""
    return _HEAD + "\n".join(_lines(RunConfig, RunConfig(), 0)) + "\n"


def _lines(section: type[Section], values: Any, depth: int) -> list[str]:
    lines: list[str] = []
    for name, field in section.model_fields.items():
        value, inner = getattr(values, name), section_of(field.annotation)
        if inner is not None:
            head = f"{'  ' * depth}{name}:"
            about = (inner.__doc__ or "").strip().splitlines()[0]
            lines += ([""] if depth == 0 else []) + _commented(head, about) + _lines(inner, value, depth + 1)
        else:
            choices = "" if field.description and "|" in field.description else " | ".join(_choices(field.annotation))
            about = "; ".join(t for t in (choices, field.description or "") if t)
            lines += _commented(f"{'  ' * depth}{name}: {_scalar(value)}", about)
    return lines


def _scalar(value: Any) -> str:
    """YAML on one line; text is quoted where YAML would read it as something else."""
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, str):
        plain = value and value not in ("off", "on", "yes", "no", "null", "true", "false") and value[0].isalnum()
        return value if plain else json.dumps(value)
    return json.dumps(value)


def _choices(annotation: Any) -> list[str]:
    options = [o for o in (annotation, *get_args(annotation)) if get_origin(o) is Literal]
    return [str(a) for a in get_args(options[0])] if options and "all" not in get_args(options[0]) else []


def _commented(head: str, about: str) -> list[str]:
    first, *rest = textwrap.wrap(about, WIDTH - COLUMN - 2, break_long_words=False) or [""]
    head = f"{head:<{COLUMN}}" if len(head) < COLUMN else head + "  "
    return [f"{head}# {first}".rstrip(), *(f"{'':<{COLUMN}}# {r}" for r in rest)]


if __name__ == "__main__":
    PATH.write_text(defaults_yaml())
