"""The result of a run: report.html for people, summary.json for machines, a table for the console."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich.table import Table
from rich.text import Text

from compilation.memory.liveness import lifetimes, live_bytes
from compilation.passes.training import trained_names
from compilation.pieces import trained_parts
from compilation.program import ARENA_ROLES, Program, Role
from runtime.codegen.generate import STACK_BYTES
from runtime.errors import ReportError
from runtime.report.figures import Series, bar, line_chart, memory_picture, number, scatter, smooth
from runtime.simulator import Measured
from runtime.verdict import Outcome, TensorCheck, Validation

FIGURES = ("moved", "error", "allowed", "float32", "share")     # of a trained tensor, as `tensor_figures`
TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass
class RunReport:
    """Everything a report shows. Bytes are decimal; accuracies are fractions of 1 (None: not evaluated).

    plan: the update plan as plain data ({"parameters": {name: "all" | {"cols"|"rows": [...]}}}).
    training_losses: of the whole fine-tuning. frontier: [{"ram_bytes", "macs", "trained_parameters", "label",
    "chosen"}], the plans that the chooser compared. facts: further lines for the table (label -> text). gram: readings of
    trained Gram residuals over the fine-tuning [{"step", "block", "T_over_Z_norm", "A_norm", "B_norm", ...}]. stages: name
    of a stage -> wall seconds. slower: estimated time of a step, times that without recomputation.
    """

    name: str
    program: Program
    measured: Measured
    validation: Validation
    arena_lower_bound_bytes: int
    trained_parameters: int
    plan: dict[str, Any]
    budget_bytes: int | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    training_losses: list[float] = field(default_factory=list)
    macs_without_recompute: int | None = None
    schedule: str = ""
    slower: float | None = None
    frontier: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    gram: list[dict[str, float]] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def ram_planned_bytes(self) -> int:
        p = self.program
        return p.arena_bytes + p.role_bytes(Role.TRAINED, Role.STATE, Role.OUTPUT) + STACK_BYTES

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        m, v = self.measured, self.validation
        return {
            "name": self.name, "budget_bytes": self.budget_bytes, "ram_planned_bytes": self.ram_planned_bytes,
            "ram_measured_bytes": m.ram_bytes, "arena_bytes": m.arena_bytes,
            "arena_lower_bound_bytes": self.arena_lower_bound_bytes, "flash_bytes": m.flash_bytes,
            "code_bytes": m.code_bytes, "trained_bytes": m.trained_bytes, "state_bytes": m.state_bytes,
            "output_bytes": m.output_bytes, "stack_reserve_bytes": STACK_BYTES, "stack_measured_bytes": m.stack_bytes,
            "stack_host_bytes": m.host_stack_bytes,
            "macs_per_step": m.macs, "macs_predict": m.predict_macs,
            "macs_without_recompute": self.macs_without_recompute, "slower_estimated": self.slower,
            "trained_parameters": self.trained_parameters, "plan": self.plan,
            "accuracy_before": self.accuracy_before, "accuracy_after": self.accuracy_after,
            "trace_steps": v.steps, "loss_max_rel_error": v.loss_max_rel_error,
            "weight_max_abs_error": v.weight_max_abs_error,
            "loss_max_rel_error_float32": v.loss_max_rel_error_float32,
            "weight_max_abs_error_float32": v.weight_max_abs_error_float32,
            "trained_tensors": len(v.tensors), "tensors_right": sum(t.right for t in v.tensors),
            "tensors_resolved": v.resolved, "verdict": v.outcome.value, "validated": v.passed,
            "within_budget": self.within_budget, "schedule": self.schedule,
            "stages": self.stages, "facts": self.facts, "gram": self.gram,
        }

    @property
    def within_budget(self) -> bool | None:
        return None if self.budget_bytes is None else self.measured.ram_bytes <= self.budget_bytes


def percent(value: float | None) -> str:
    return "not evaluated" if value is None else f"{100 * value:.1f} %"


def memory_parts(report: RunReport) -> list[tuple[str, str, int]]:
    """(label, css class, bytes) of the RAM by kind, measured."""
    m = report.measured
    parts = [("arena (activations, gradients, scratch, image)", "activation", m.arena_bytes),
             ("trained weights", "trained", m.trained_bytes), ("optimiser state", "state", m.state_bytes),
             ("loss and logits", "output", m.output_bytes), ("stack reserve", "stack", STACK_BYTES)]
    return [p for p in parts if p[2]]


def peak_tensors(program: Program) -> tuple[int, list[tuple[str, str, int]]]:
    """The call during which most of the arena is live, and its tensors (name, role, bytes), largest first."""
    life = lifetimes(program)
    live = live_bytes(program, life)
    peak = int(np.argmax(live)) if live else 0
    names = [n for n, (a, b) in life.items() if a <= peak < b and program.tensors[n].role in ARENA_ROLES]
    rows = [(n, program.tensors[n].role.value, program.tensors[n].bytes) for n in names]
    return peak, sorted(rows, key=lambda r: -r[2])


def plan_rows(report: RunReport) -> list[dict[str, str]]:
    """One row a parameter of the plan: what of it is trained, and how far it is from float64."""
    errors = {t.name: t for t in report.validation.tensors}
    parameters = report.plan.get("parameters", report.plan)
    rows = []
    parts = trained_parts(report.program)
    for part in parts:
        chosen = parameters.get(part.parameter, parameters.get(part.name, "all"))
        if isinstance(chosen, dict):
            (axis, index), = chosen.items()
            what = f"{len(index)} of {part.whole[1 if axis == 'cols' else 0]} {'columns' if axis == 'cols' else 'rows'}"
        elif part.axis:
            what = f"{len(part.index)} of {part.whole[part.axis == 'cols']}: the others' gradient is zero: constants"
        else:
            what = str(chosen)
        e = errors.get(part.name)
        rows.append({"name": part.parameter, "what": what, "count": f"{part.bytes // 4:,}",
                     **(tensor_figures(e) if e else dict.fromkeys(FIGURES, ""))})
    stored = {n for part in parts for n in (part.parameter, part.name)}
    rows += [{"name": n, "what": "its gradient is zero, it is a constant", "count": "0", **dict.fromkeys(FIGURES, "")}
             for n in trained_names(parameters) if n not in stored]
    return rows


def tensor_figures(t: TensorCheck) -> dict[str, str]:
    """Largest change, errors and what they may be, of one trained tensor."""
    return {"moved": number(t.moved), "error": number(t.error.largest), "allowed": number(t.allowed.largest),
            "float32": number(t.float32.largest), "share": f"{100 * t.resolution:.2g} %" if t.resolved else "too little"}


def figures(report: RunReport) -> dict[str, str]:
    """The report's pictures by name."""
    v = report.validation
    out = {
        "memory": memory_picture(report.program, report.budget_bytes),
        "bytes": bar(memory_parts(report), max(report.budget_bytes or 0, report.measured.ram_bytes)),
        "losses": line_chart([Series("PyTorch float64", v.losses64.tolist(), "line-reference"),
                              Series("C", v.losses.tolist(), "dot-c", points=True)], "step of the trace", "loss"),
        "errors": line_chart(
            [Series("PyTorch float32", distances(v.losses32, v.losses64), "dot-float32", points=True),
             Series("C", distances(v.losses, v.losses64), "dot-c", points=True),
             Series("allowed", (v.allowed_losses / np.maximum(np.abs(v.losses64), 1e-30)).tolist(), "line-limit")],
            "step of the trace", "distance of the loss from float64, relative", log=True),
    }
    if report.training_losses:
        window = max(1, len(report.training_losses) // 25)
        out["training"] = line_chart(
            [Series("each step", report.training_losses, "line-faint"),
             Series(f"mean of {window}", smooth(report.training_losses, window), "line-c")], "step", "training loss")
    if report.gram:
        out |= gram_charts(report.gram)
    if report.frontier:
        for key, name, label in (("trained_parameters", "frontier", "trained parameters"),
                                 ("macs", "frontier_macs", "multiply-accumulates a step")):
            if len({p[key] for p in report.frontier}) > 1 or name == "frontier":
                out[name] = scatter([(p["ram_bytes"], p[key], point_title(p), bool(p.get("chosen")))
                                     for p in report.frontier], "RAM", label)
    return out


def gram_charts(readings: list[dict[str, float]]) -> dict[str, str]:
    """T/Z, and the norms of A and B, over the fine-tuning: of the last trained block, and T/Z of up to two more."""
    blocks = sorted({int(r["block"]) for r in readings}, reverse=True)
    steps = sorted({int(r["step"]) for r in readings})
    x_label = f"reading, after {steps[0]} to {steps[-1]} steps"

    def values(block: int, key: str) -> list[float]:
        return [r[key] for r in readings if r["block"] == block]
    styles = ("line-c", "line-reference", "line-faint")
    return {
        "gram": line_chart([Series(f"block {b}", values(b, "T_over_Z_norm"), css)
                            for b, css in zip(blocks, styles, strict=False)], x_label, "T / Z"),
        "gram_norms": line_chart([Series("A", values(blocks[0], "A_norm"), "line-reference"),
                                  Series("B", values(blocks[0], "B_norm"), "line-c")], x_label, "norm")}


def point_title(point: dict[str, Any]) -> str:
    return (f"{point.get('label', '')}\n{point['ram_bytes']:,} bytes, {point['macs']:,} multiply-accumulates, "
            f"{point['trained_parameters']:,} trained parameters")


def distances(losses: np.ndarray, reference: np.ndarray) -> list[float]:
    return (np.abs(losses - reference) / np.maximum(np.abs(reference), 1e-30)).tolist()


def rows(report: RunReport) -> list[tuple[str, str]]:
    """The figures as (label, text): the console table and the report's."""
    m, v = report.measured, report.validation
    budget = "none" if report.budget_bytes is None else f"{report.budget_bytes:,} bytes"
    planned = report.ram_planned_bytes
    agree = "= planned" if planned == m.ram_bytes else f"PLANNED {planned:,}"
    gap = m.arena_bytes / report.arena_lower_bound_bytes if report.arena_lower_bound_bytes else float("nan")
    base = report.macs_without_recompute
    time = f", estimated time {report.slower:.2f} x" if report.slower else ""
    again = f" ({m.macs / base:.2f} x without recompute{time})" if base else ""
    return [
        ("accuracy, held out", f"{percent(report.accuracy_before)} before, {percent(report.accuracy_after)} after"),
        ("budget", budget),
        ("RAM measured", f"{m.ram_bytes:,} bytes {agree}"),
        ("arena", f"{m.arena_bytes:,} bytes, {gap:.3f} x the liveness bound"),
        ("trained weights", f"{m.trained_bytes:,} bytes, {report.trained_parameters:,} parameters"),
        ("stack", f"{m.stack_bytes:,} bytes on a Cortex-M7, {m.host_stack_bytes:,} here; {STACK_BYTES:,} reserved"),
        ("flash", f"{m.flash_bytes:,} bytes, {m.code_bytes:,} of them code and tables (Cortex-M7)"),
        ("multiply-accumulates", f"{m.macs:,} a step{again}, {m.predict_macs:,} a prediction"),
        ("loss, C against float64", f"{v.loss_max_rel_error:.1e} relative (float32 PyTorch "
                                    f"{v.loss_max_rel_error_float32:.1e}) over {v.steps} steps"),
        ("weights, C against float64", f"{v.weight_max_abs_error:.1e} absolute (float32 PyTorch "
                                       f"{v.weight_max_abs_error_float32:.1e}); "
                                       f"{sum(t.right for t in v.tensors)} of {len(v.tensors)} tensors within what "
                                       f"float32 allows, {v.resolved} of them moved enough to tell"),
        ("verdict", verdict_text(v)),
        *report.facts.items(),
    ]


def verdict_text(v: Validation) -> str:
    """The verdict in words."""
    if v.passed:
        return f"proven equal to PyTorch: a fault of {100 * v.worst_resolution:.2g} % of an update would have shown"
    return f"{'DIFFERS' if v.outcome is Outcome.DIFFERS else 'not proven'}: " + "; ".join(v.failures()[:3])


def console_table(report: RunReport) -> Table:
    """The same figures for a terminal."""
    table = Table(title=Text(report.name), show_header=False, title_justify="left")     # brackets in a name are no markup
    table.add_column(style="bold")
    table.add_column()
    for label, text in rows(report):
        bad = (label == "verdict" and not report.validation.passed) or "PLANNED" in text
        table.add_row(label, Text(text), style="red" if bad else None)
    return table


def write_report(folder: str | Path, report: RunReport) -> Path:
    """Writes report.html and summary.json into the run folder; returns the report's path.

    Raises ReportError where the folder cannot be written.
    """
    folder = Path(folder)
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
                             autoescape=True, trim_blocks=True, lstrip_blocks=True)
    peak, tensors = peak_tensors(report.program)
    page = env.get_template("report.html.j2").render(
        report=report, m=report.measured, v=report.validation, rows=rows(report), figures=figures(report),
        parts=memory_parts(report), plan=plan_rows(report), peak=peak, peak_call=report.program.calls[peak],
        peak_tensors=tensors, percent=percent, stack=STACK_BYTES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("report.html", page), ("summary.json", json.dumps(report.summary(), indent=1) + "\n")):
            fresh = folder / (name + ".new")
            fresh.write_text(text)
            fresh.replace(folder / name)
    except OSError as error:
        raise ReportError(f"cannot write to {folder}: {error.strerror}; choose another output folder") from None
    return folder / "report.html"
