"""python -m benchmarks.memory_ladder: what fits which budget, from real compilations run in the simulator.

Each row is compiled for its budget, executed for a few steps against float64 PyTorch, and measured. Rows that do not
fit show the bound that stops them and the most blocks that fit instead. --json FILE writes the rows for machines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from algorithm.models import ModelConfig
from algorithm.sparse import PlanConfig, UpdatePlan, parse_budget

if TYPE_CHECKING:
    import torch

    from compilation.pipeline import Compiled, Compiler

LR = 0.01


@dataclass(frozen=True)
class Row:
    """One promise: a model, a plan, a budget."""

    budget: str
    model: str
    size: int
    patch: int
    scheme: str
    plan: dict[str, Any]
    lora: int = 0

    @property
    def short(self) -> str:
        return f"{'S' if 'small' in self.model else 'T'}/{self.patch}@{self.size}"

    @property
    def text(self) -> str:
        return f"{self.budget} {self.short} {self.scheme}"


TINY, SMALL = "vit_tiny_patch16_224", "vit_small_patch16_224"
QUARTER = {"vit_layer_types": ["attention", "head"], "weight_update_ratio": 0.25, "n_bias_update": 0}
ROWS = [
    Row("100kb", TINY, 96, 16, "head + last block bias+LN", {"n_bias_update": 1}),
    Row("150kb", TINY, 96, 16, "bias+LN of the last 3 blocks", {"n_bias_update": 3}),
    Row("200kb", TINY, 96, 16, "bias+LN of the last 8 blocks", {"n_bias_update": 8}),
    Row("256kb", TINY, 96, 16, "bias+LN of all 12", {"n_bias_update": 12}),
    Row("256kb", SMALL, 32, 4, "last block bias+LN", {"n_bias_update": 1}),
    Row("512kb", TINY, 224, 16, "bias+LN of the last 2 blocks", {"n_bias_update": 2}),
    Row("1mb", SMALL, 224, 16, "bias+LN of the last 2 blocks", {"n_bias_update": 2}),
    Row("2mb", SMALL, 224, 16, "bias+LN of all 12 blocks", {"n_bias_update": 12}),
    Row("2mb", SMALL, 224, 16, "LoRA rank 4 on the attention of all 12",
        {"n_bias_update": 0, "bias": False, "layer_norm": False, "n_lora_update": 12}, lora=4),
    Row("5mb", SMALL, 224, 16, "attention, 25 % of columns, 6 blocks", {**QUARTER, "n_weight_update": 6}),
    Row("10mb", SMALL, 224, 16, "attention, 25 % of columns, 12 blocks", {**QUARTER, "n_weight_update": 12}),
]


def model_config(row: Row, gram: bool) -> ModelConfig:
    return ModelConfig(name=row.model, img_size=row.size, patch_size=row.patch, weights="none", head_init="timm",
                       gram={"enabled": gram, "rank": 64},  # type: ignore[arg-type]
                       lora={"enabled": bool(row.lora), "rank": row.lora or 4})  # type: ignore[arg-type]


def selections(plan: UpdatePlan) -> dict[str, Any]:
    return dict(plan.to_dict()["parameters"])


def compiler_of(row: Row, model: torch.nn.Module) -> Compiler:
    from algorithm.models import input_scale_shift
    from compilation.capture import InputSpec
    from compilation.pipeline import Compiler
    scale, shift = input_scale_shift(model)
    return Compiler(model, InputSpec((3, row.size, row.size), scale, shift), row.model)


def run_row(row: Row, gram: bool, steps: int) -> dict[str, Any]:
    """Compile, execute, measure; a row that does not fit says why and what would."""
    from algorithm import build_model, resolve_plan
    from compilation.errors import BudgetError
    model = build_model(model_config(row, gram))
    plan = resolve_plan(PlanConfig(**row.plan), model)
    compiler = compiler_of(row, model)
    budget = parse_budget(row.budget)
    out: dict[str, Any] = {"budget": row.budget, "budget_bytes": budget, "model": row.short, "scheme": row.scheme,
                           "gram": gram, "trained_parameters": plan.trained_count(compiler.shapes)}
    start = time.perf_counter()
    try:
        compiled = compiler.compile(selections(plan), budget)
    except BudgetError as error:
        return {**out, "fits": False, "smallest_ram_bytes": error.smallest, "binding": error.binding,
                "nearest": nearest(row, model, compiler, budget), "compile_seconds": time.perf_counter() - start}
    out["compile_seconds"] = time.perf_counter() - start
    out["smallest_ram_bytes"] = compiler.smallest_ram(selections(plan))
    return {**out, **execute(compiled, model, plan, row, steps)}


def nearest(row: Row, model: torch.nn.Module, compiler: Compiler, budget: int) -> str:
    """The deepest plan of the same kind that fits."""
    from algorithm import resolve_plan
    for key in ("n_bias_update", "n_weight_update", "n_lora_update"):
        for count in range(int(row.plan.get(key, 0)) - 1, 0, -1):
            plan = resolve_plan(PlanConfig(**{**row.plan, key: count}), model)
            ram = compiler.smallest_ram(selections(plan))
            if ram <= budget:
                return f"{count} blocks ({ram:,} bytes)"
    return "none of the kind"


def execute(compiled: Compiled, model: torch.nn.Module, plan: UpdatePlan, row: Row, steps: int) -> dict[str, Any]:
    import numpy as np

    from algorithm import record_trace
    from benchmarks.peak_memory import torch_peak
    from runtime.codegen.generate import generate
    from runtime.simulator import Simulator
    from runtime.validate import replay
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps, row.size, row.size, 3), dtype=np.uint8)
    trace = record_trace(model, plan, images, rng.integers(0, 10, steps), LR)
    with tempfile.TemporaryDirectory() as folder:
        generate(compiled.program, compiled.values, Path(folder) / "c")
        with Simulator(Path(folder) / "c", compiled.program) as simulator:
            measured = simulator.measure(images[0], 1, LR)
            check = replay(simulator, trace)
    return {
        "fits": True, "ram_planned_bytes": compiled.memory.total, "ram_measured_bytes": measured.ram_bytes,
        "arena_bytes": measured.arena_bytes, "arena_lower_bound_bytes": compiled.bound, "macs": measured.macs,
        "macs_planned": compiled.macs, "macs_without_recompute": compiled.macs_without_recompute,
        "slower_estimated": compiled.slower,
        "schedule": compiled.schedule, "loss_max_rel_error": check.loss_max_rel_error,
        "weight_max_abs_error": check.weight_max_abs_error,
        "loss_max_rel_error_float32": check.loss_max_rel_error_float32,
        "weight_max_abs_error_float32": check.weight_max_abs_error_float32, "proven": check.passed,
        "flash_bytes": measured.flash_bytes, "torch_peak_bytes": torch_peak(model, plan, images[0]),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    out = Table(title="What fits: exact float32, batch 1, SGD, 10 classes, decimal bytes")
    for name in ("budget", "model", "scheme", "gram", "RAM planned", "= measured", "arena/bound", "MACs/no recompute",
                 "estimated time", "loss error", "weight error", "PyTorch's peak"):
        out.add_column(name)
    for r in rows:
        head = (r["budget"], r["model"], r["scheme"], "yes" if r["gram"] else "no")
        if not r["fits"]:
            out.add_row(*head, f"[red]needs {r['smallest_ram_bytes']:,}[/]", "", f"fits: {r['nearest']}", r["binding"])
            continue
        same = r["ram_planned_bytes"] == r["ram_measured_bytes"]
        out.add_row(*head, f"{r['ram_planned_bytes']:,}", "yes" if same else f"[red]{r['ram_measured_bytes']:,}[/]",
                    f"{r['arena_bytes'] / r['arena_lower_bound_bytes']:.4f}",
                    f"{r['macs'] / 1e6:,.0f} M / {r['macs'] / r['macs_without_recompute']:.2f}",
                    f"{r['slower_estimated']:.2f} x",
                    f"{r['loss_max_rel_error']:.1e} ({r['loss_max_rel_error_float32']:.1e})",
                    f"{r['weight_max_abs_error']:.1e} ({r['weight_max_abs_error_float32']:.1e})",
                    f"{r['torch_peak_bytes']:,}")
    return out


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser("python -m benchmarks.memory_ladder", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, help="also write the rows here")
    p.add_argument("--steps", type=int, default=5, help="steps executed against float64 (default 5)")
    p.add_argument("--only", help="only rows whose budget, model or scheme contains this text")
    p.add_argument("--gram", choices=["both", "off", "on"], default="both", help="with the Gram residual (rank 64)")
    args = p.parse_args(argv)
    import torch
    torch.set_num_threads(1)
    console = Console(width=max(200, Console().width))
    rows = []
    for gram in {"both": (False, True), "off": (False,), "on": (True,)}[args.gram]:
        for row in ROWS:
            if args.only and args.only not in row.text:
                continue
            print(f"{row.text}{' + Gram' if gram else ''} ...", file=sys.stderr, flush=True)
            rows.append(run_row(row, gram, args.steps))
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
    console.print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
