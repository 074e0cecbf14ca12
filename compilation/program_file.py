"""Programs read back from JSON: what stands in a file is believed no more than what a pass has made.

First every field must be present, known and of its type; then the Program is verified and its memory plan judged as
that of one just compiled; at last the content must be the one that the file's digest names, so that no change by hand
goes unnoticed, sensible or not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compilation.errors import PlacementError, ProgramFileError, VerificationError
from compilation.judge import judge
from compilation.program import Call, Program, Role, Tensor, Weight
from compilation.types import ELEMENTS, Type
from compilation.verify import verify

LARGEST = 2**31 - 1     # sizes, offsets and integer attributes are int32_t on the device
Check = Callable[[Any], Any]


class _Wrong(ValueError):
    """What is expected, and where below the value at hand."""


def read_program(path: Path) -> Program:
    """The finished Program in a file (`program.json`), verified and its memory plan judged.

    Raises ProgramFileError naming the file, the call or tensor, and what is wrong with it.
    """
    try:
        return from_json(path.read_text(), judge)
    except OSError as error:
        raise ProgramFileError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ProgramFileError(f"{path}: not a text file") from None
    except ProgramFileError as error:       # the file may hold any characters
        line = " ".join(str(error).encode("utf-8", "backslashreplace").decode().split())
        raise ProgramFileError(f"{path}: {line}") from None


def from_json(text: str, check: Callable[[Program], None] = verify) -> Program:
    """The Program that `Program.to_json` wrote, at any stage. check: its judge.

    Raises ProgramFileError saying which field or call is wrong, and what is expected there.
    """
    program, digest = _parse(text)
    try:
        check(program)
    except (VerificationError, PlacementError) as error:
        raise ProgramFileError(str(error)) from None
    if digest != program.digest():
        raise ProgramFileError("the content is not what its digest names: it was changed by hand; compile again")
    return program


def _parse(text: str) -> tuple[Program, str]:
    try:
        members = _record({**PROGRAM, "digest": TEXT})(json.loads(text, object_pairs_hook=_once))
        digest = members.pop("digest")
        program = Program(**members)
        for kind, items in (("tensor", program.tensors), ("weight", program.weights)):
            for key, item in items.items():
                if key != item.name:
                    raise _Wrong(f"the {kind} under {key!r} calls itself {item.name!r}")
    except _Wrong as error:
        raise ProgramFileError(str(error)) from None
    except (ValueError, RecursionError) as error:       # JSONDecodeError, a number of too many digits
        raise ProgramFileError(f"not JSON, or cut short: {error}") from None
    return program, digest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members; one that stands there twice would be lost in silence."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [k for k, _ in pairs]
        raise _Wrong(f"{next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return made


def _is(kind: str, right: Callable[[Any], bool], make: Callable[[Any], Any] = lambda v: v) -> Check:
    def check(value: Any) -> Any:
        if not right(value):
            shown = json.dumps(value)
            raise _Wrong(f"expected {kind}, found {shown if len(shown) <= 60 else shown[:57] + '...'}")
        return make(value)
    return check


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _scalar(value: Any) -> bool:
    return isinstance(value, str) or _number(value)


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _record(checks: Mapping[str, Check], kind: Callable[..., Any] = dict) -> Check:
    """An object with exactly these members."""
    def check(value: Any) -> Any:
        members = _is("an object", lambda v: isinstance(v, dict))(value)
        for name in (*checks, *members):
            if name not in members:
                raise _Wrong(f"{name} is missing")
            if name not in checks:
                raise _Wrong(f"{name} is no field of a {kind.__name__ if kind is not dict else 'Program'}")
        return kind(**{n: _inside(n, c, members[n]) for n, c in checks.items()})
    return check


def _inside(name: str, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except _Wrong as error:
        raise _Wrong(f"{name}: {error}") from None


def _by_name(check: Check) -> Check:
    return lambda value: {n: _inside(n, check, v) for n, v in
                          _is("an object", lambda v: isinstance(v, dict))(value).items()}


def _list(check: Check, noun: str) -> Check:
    return lambda value: [_inside(f"{noun} {i}", check, v) for i, v in
                          enumerate(_is("a list", lambda v: isinstance(v, list))(value))]


TEXT = _is("a text", lambda v: isinstance(v, str))
WHOLE = _is("a whole number", _whole)
SHAPE = _is("a list of positive whole numbers",
            lambda v: isinstance(v, list) and all(_whole(n) and n > 0 for n in v) and math.prod(v) <= LARGEST, tuple)
INDEX = _is("a list of whole numbers", lambda v: isinstance(v, list) and all(map(_whole, v)), tuple)
NUMBERS = _is("a list of numbers", lambda v: isinstance(v, list) and all(map(_number, v)), tuple)
NAMES = _by_name(TEXT)
ATTRS = _by_name(_is("a number or a text", _scalar))
ROLE = _is("a role (" + ", ".join(r.value for r in Role) + ")", lambda v: v in [r.value for r in Role], Role)
ELEMENT = _is("an element type (" + ", ".join(ELEMENTS) + ")", lambda v: isinstance(v, str) and v in ELEMENTS,
              ELEMENTS.get)
TYPE = _record({"shape": SHAPE, "element": ELEMENT}, Type)
AXIS = _is('"cols", "rows" or null', lambda v: v in ("cols", "rows", None))
MATRIX = _is("[rows, columns]", lambda v: isinstance(v, list) and len(v) == 2 and all(_whole(n) and n > 0 for n in v), tuple)

PROGRAM: dict[str, Check] = {
    "name": TEXT,
    "tensors": _by_name(_record({"name": TEXT, "type": TYPE, "role": ROLE, "source": TEXT, "alias": _optional(TEXT),
                                 "offset": _optional(WHOLE)}, Tensor)),
    "weights": _by_name(_record({"name": TEXT, "shape": MATRIX, "frozen": _optional(TEXT), "trained": _optional(TEXT),
                                 "axis": AXIS, "index": INDEX}, Weight)),
    "calls": _list(_record({"op": TEXT, "inputs": NAMES, "outputs": NAMES, "attrs": ATTRS, "updates": NAMES,
                            "scratch": _optional(TEXT), "where": TEXT}, Call), "call"),
    "predict_calls": WHOLE, "image": TEXT, "label": TEXT, "logits": TEXT, "loss": TEXT,
    "momentum": _is("a number from 0 to below 1", lambda v: _number(v) and 0 <= v < 1),
    "constants": _by_name(NUMBERS),
}
