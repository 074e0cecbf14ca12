"""A nest as stable text, for reading, golden files and errors: loops indented, one line a call.

``K[m:+16, h*64:+64]`` is a window of 16 rows from m and 64 columns from 64 h; ``hidden[:16@n, :48@h]`` all of a tensor that
holds the present tiles of n and h; ``n2-n:+8`` a part of such a tile. ``d_b+(n)`` adds unless n is at its first tile,
``d_b+()`` always. ``in y[h*64+64:+64]``: it stands in the 64 columns of y from 64 h + 64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from compilation.regions.loops import Axis, Loop, Nest, Stored, TileCall, Window


def text(nest: Nest) -> str:
    """The nest's own tensors, then its body."""
    lines = [f"nest, {nest.scratch:,} bytes of scratch"]
    lines += [f"  {s.name}: {s.type} {s.layout} " + _where(s)
              for s in nest.stored.values()]
    return "\n".join([*lines, *_body(nest.body, "  ")]) + "\n"


def _where(s: Stored) -> str:
    strip = f"[{s.strip.start}*{s.strip.factor}+{s.strip.ahead * s.strip.factor}:+{s.strip.size}]" if s.strip else ""
    return f"in {s.stands}{strip}" if s.stands else f"@{s.offset}"


def call_text(call: TileCall) -> str:
    """One line."""
    made = [f"{slot}{_adds(call, slot)}={window_text(w)}" for slot, w in call.outputs.items()]
    parts = [f"{call.op}({_slots(call.inputs)}) -> ({', '.join(made)})"]
    parts += [f"updates[{_slots(call.updates)}]"] * bool(call.updates)
    parts += [f"carries {index} over {variable}" for index, variable in call.carried.items()]
    parts += [f"scratch {call.scratch}"] * bool(call.scratch)
    parts += ["{" + ", ".join(f"{k}={v}" for k, v in sorted(call.attrs.items())) + "}"] * bool(call.attrs)
    return " ".join(parts + [f"# {call.where}"] * bool(call.where))


def window_text(window: Window) -> str:
    return f"{window.tensor}[{', '.join(map(_axis, window.axes))}]"


def _slots(found: Mapping[str, Window]) -> str:
    return ", ".join(f"{slot}={window_text(w)}" for slot, w in found.items())


def _adds(call: TileCall, slot: str) -> str:
    return f"+({', '.join(call.adds[slot])})" if slot in call.adds else ""


def _axis(axis: Axis) -> str:
    if axis.start == axis.origin or not axis.start:
        return f":{axis.size}" + (f"@{axis.origin}" if axis.origin else "")
    scale = f"*{axis.factor}" if axis.factor > 1 else ""
    begin = f"({axis.start}-{axis.origin})" if axis.origin and scale else f"{axis.start}-{axis.origin}" if axis.origin \
        else axis.start
    return f"{begin}{scale}:+{axis.size}"


def _body(items: Iterable[Loop | TileCall], indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, Loop):
            over = f"the tile of {item.parent}" if item.parent else f"{item.extent}" if item.part is None else \
                f"{item.part[0]} to {item.part[1]} of {item.extent}"
            yield f"{indent}for {item.variable} in {over} by {item.step}:"
            yield from _body(item.body, indent + "  ")
        else:
            yield indent + call_text(item)
