"""Pictures as inline SVG: line charts, bars, and memory over time. Colours are CSS classes of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from compilation.memory.liveness import lifetimes
from compilation.program import ARENA_ROLES, Program, Role
from runtime.codegen.generate import STACK_BYTES

WIDTH = 960


@dataclass(frozen=True)
class Series:
    """A curve: values against 1, 2, 3, ... `css` names its colour class; points draws dots, else a line."""

    label: str
    values: Sequence[float]
    css: str
    points: bool = False


def number(value: float) -> str:
    """A short readable number."""
    if value == 0:
        return "0"
    if abs(value) >= 1e4 or abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def compact_bytes(value: float) -> str:
    """Decimal units, as budgets are given."""
    for limit, unit in ((1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span [low, high]."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    step = 10.0 ** math.floor(math.log10(rough))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= rough)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def axis_labels(middle: float, height: int, left: float, x_label: str, y_label: str) -> str:
    """The x label below the picture, the y label above its left edge."""
    return (f'<text class="axis" x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
            f'<text class="axis" x="{left}" y="14">{escape(y_label)}</text>')


def limit_line(left: float, right: float, y: float, label: str) -> str:
    """A dashed line that must not be crossed."""
    return (f'<line class="limit" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="limit-label" x="{right}" y="{y - 5:.1f}" text-anchor="end">{escape(label)}</text>')


def line_chart(series: Sequence[Series], x_label: str, y_label: str, log: bool = False, height: int = 300) -> str:
    """An SVG of several curves. Non-finite values are left out, with `log` those up to 0, too."""
    left, right, top, bottom = 72, 16, 34, 44
    inner_w, inner_h = WIDTH - left - right, height - top - bottom
    shown = [v for s in series for v in s.values if math.isfinite(v) and (v > 0 or not log)]
    if not shown:
        return '<p class="note">Nothing to draw.</p>'
    low, high = min(shown), max(shown)
    steps = max(len(s.values) for s in series)
    if log:
        low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
        high = max(high, low + 1)
        marks = [float(e) for e in range(int(low), int(high) + 1)]
    else:
        low = min(low, 0.0)
        high = high if high > low else low + 1
        marks = ticks(low, high)
        high = max(high, marks[-1] if marks else high)

    def x_at(i: int) -> float:
        return left + inner_w * (i / max(1, steps - 1))

    def y_at(v: float) -> float:
        return top + inner_h * (1 - ((math.log10(v) if log else v) - low) / (high - low))

    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(y_label)}">']
    for m in marks:
        y = top + inner_h * (1 - (m - low) / (high - low))
        text = f"1e{int(m)}" if log else number(m)
        out.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                   f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for t in ticks(1, steps, 8) if steps > 1 else [1]:
        if t == int(t):
            out.append(f'<text class="tick" x="{x_at(int(t) - 1):.1f}" y="{height - bottom + 18}" '
                       f'text-anchor="middle">{int(t)}</text>')
    out.append(axis_labels(left + inner_w / 2, height, left, x_label, y_label))
    for s in series:
        at = [(x_at(i), y_at(v)) for i, v in enumerate(s.values) if math.isfinite(v) and (v > 0 or not log)]
        if s.points:
            out += [f'<circle class="{s.css}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in at]
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            out.append(f'<polyline class="{s.css}" points="{path}"/>')
    x = float(WIDTH - right)
    for s in reversed(series):
        x -= 8 * len(s.label) + 26
        mark = (f'<circle class="{s.css}" cx="{x + 6:.0f}" cy="10" r="4"/>' if s.points else
                f'<polyline class="{s.css}" points="{x:.0f},10 {x + 14:.0f},10"/>')
        out.append(f'{mark}<text class="tick" x="{x + 20:.0f}" y="14">{escape(s.label)}</text>')
    return "".join(out) + "</svg>"


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Trailing mean over `window` values."""
    total = np.cumsum(np.insert(np.asarray(values, np.float64), 0, 0.0))
    return [float((total[i + 1] - total[max(0, i + 1 - window)]) / (i + 1 - max(0, i + 1 - window)))
            for i in range(len(values))]


def block_of(where: str) -> str:
    """The top of a module path: "blocks.3.attn.qkv" -> "blocks.3"."""
    parts = where.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]


def memory_picture(program: Program, budget: int | None, height: int = 520) -> str:
    """Every buffer of the step: across = the calls in order, up = bytes of RAM, with the budget as a line.

    From below: stack reserve, trained weights, optimiser state, outputs (all step long), then the arena.
    """
    left, right, top, bottom = 72, 16, 26, 58
    inner_w, inner_h = WIDTH - left - right, height - top - bottom
    calls = max(1, len(program.calls))
    life = lifetimes(program)
    fixed = [("stack reserve", "stack", STACK_BYTES)] + [
        (label, role.value, program.role_bytes(role)) for label, role in
        (("trained weights", Role.TRAINED), ("optimiser state", Role.STATE), ("loss and logits", Role.OUTPUT))]
    base = sum(size for _, _, size in fixed)
    total = base + program.arena_bytes
    ceiling = max(total, budget or 0) * 1.04

    def x_at(call: float) -> float:
        return left + inner_w * call / calls

    def y_at(size: float) -> float:
        return top + inner_h * (1 - size / ceiling)

    def box(css: str, begin: float, end: float, low: float, size: float, title: str, label: str) -> str:
        x, y, w, h = x_at(begin), y_at(low + size), x_at(end) - x_at(begin), y_at(low) - y_at(low + size)
        text = ""
        if h > 13 and w > 7 * len(label) + 8:
            text = (f'<text class="buffer" x="{x + w / 2:.1f}" y="{y + h / 2 + 4:.1f}" text-anchor="middle">'
                    f"{escape(label)}</text>")
        return (f'<g><rect class="buf {css}" x="{x:.2f}" y="{y:.2f}" width="{max(w, 0.5):.2f}" '
                f'height="{max(h, 0.4):.2f}"/>{text}<title>{escape(title)}</title></g>')

    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="memory over time">']
    for m in ticks(0, ceiling):
        out.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y_at(m):.1f}" y2="{y_at(m):.1f}"/>'
                   f'<text class="tick" x="{left - 8}" y="{y_at(m) + 4:.1f}" text-anchor="end">'
                   f"{compact_bytes(m)}</text>")
    low = 0.0
    for label, css, size in fixed:
        if size:
            out.append(box(css, 0, calls, low, size, f"{label}: {size:,} bytes, all step long", label))
        low += size
    for t in program.tensors.values():
        if t.role in ARENA_ROLES and t.alias is None and t.offset is not None and t.name in life:
            begin, end = life[t.name]
            first, last = program.calls[begin], program.calls[end - 1]
            title = (f"{t.name} ({t.role.value})\n{t.type}, {t.bytes:,} bytes at {t.offset:,}\n"
                     f"from call {begin} {first.op} {first.where}\nto call {end - 1} {last.op} {last.where}")
            out.append(box(t.role.value, begin, end, base + t.offset, t.bytes, title, t.name))
    out.append(stage_marks(program, x_at, top, top + inner_h))
    if budget:
        out.append(limit_line(left, WIDTH - right, y_at(budget), f"budget {budget:,} bytes"))
    out.append(axis_labels(left + inner_w / 2, height, left, "calls of one training step, in order", ""))
    return "".join(out) + "</svg>"


def stage_marks(program: Program, x_at: object, top: float, bottom: float) -> str:
    """Names of the model's blocks under the picture, and a line where the backward pass begins."""
    assert callable(x_at)
    out, start, last_x = [], 0, -1e9
    blocks = [block_of(c.where) for c in program.calls]
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] != blocks[start]:
            middle, label = (x_at(start) + x_at(i)) / 2, blocks[start].replace("blocks.", "")
            if label and middle - last_x > 7 * len(label) + 4:
                out.append(f'<text class="tick" x="{middle:.1f}" y="{bottom + 16}" text-anchor="middle">'
                           f"{escape(label)}</text>")
                last_x = middle + 3.5 * len(label)
            start = i
    if 0 < program.predict_calls < len(program.calls):
        x = x_at(program.predict_calls)
        out.append(f'<line class="turn" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
                   f'<text class="tick" x="{x - 6:.1f}" y="{bottom + 32}" text-anchor="end">forward</text>'
                   f'<text class="tick" x="{x + 6:.1f}" y="{bottom + 32}">backward and update</text>')
    return "".join(out)


def bar(parts: Sequence[tuple[str, str, int]], total: int) -> str:
    """One horizontal bar of (label, css class, size) against a total."""
    out, x = [f'<svg viewBox="0 0 {WIDTH} 26" role="img" aria-label="where the bytes go">'
              f'<rect class="room" x="0" y="0" width="{WIDTH}" height="26" rx="4"/>'], 0.0
    for label, css, size in parts:
        w = WIDTH * size / max(1, total)
        out.append(f'<g><rect class="buf {css}" x="{x:.2f}" y="0" width="{w:.2f}" height="26"/>'
                   f"<title>{escape(label)}: {size:,} bytes</title></g>")
        x += w
    return "".join(out) + "</svg>"


def scatter(points: Sequence[tuple[float, float, str, bool]], x_label: str, y_label: str, height: int = 300) -> str:
    """Points (x, y, title, chosen)."""
    left, right, top, bottom = 72, 24, 30, 44
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x_high, y_high = max(xs) * 1.05 or 1.0, max(ys) * 1.05 or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return (left + (WIDTH - left - right) * x / x_high, top + (height - top - bottom) * (1 - y / y_high))

    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(y_label)}">']
    for m in ticks(0, y_high):
        y = at(0, m)[1]
        out.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                   f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number(m)}</text>')
    for m in ticks(0, x_high, 8):
        out.append(f'<text class="tick" x="{at(m, 0)[0]:.1f}" y="{height - bottom + 18}" text-anchor="middle">'
                   f"{compact_bytes(m)}</text>")
    for x, y, title, chosen in points:
        px, py = at(x, y)
        out.append(f'<g><circle class="{"chosen" if chosen else "other"}" cx="{px:.1f}" cy="{py:.1f}" '
                   f'r="{7 if chosen else 5}"/><title>{escape(title)}</title></g>')
    out.append(axis_labels(WIDTH / 2, height, left, x_label, y_label))
    return "".join(out) + "</svg>"
