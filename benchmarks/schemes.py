"""The ancestor's schemes (configs/vit_small*.yaml): memory of each as named and as it fits, and what it costs in accuracy.

    python -m benchmarks.schemes --json schemes.json
    python -m benchmarks.schemes --json schemes.json --seeds 0 --only 2mb train.epochs=1

Memory is of the shipped file itself: the least that the scheme needs, and RAM and flash of the plan that is taken
(--nearest), measured in the simulator. Accuracy is of the same layers in the packaged ViT-S/14 at a reduced size, where a
training takes seconds: of the scheme as named, of what is taken, and of the full update (all but the patch matrix, as in
benchmarks.results) on the same images in the same order. Rows that stand in the JSON are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from algorithm.config import RunConfig, make_run_config
from algorithm.errors import AlgorithmError
from algorithm.models import GramConfig
from algorithm.sparse import PlanConfig, UpdatePlan

if TYPE_CHECKING:
    from torch import nn

    from compilation.pipeline import Compiler

FILES = ("vit_small_100kb", "vit_small_150kb", "vit_small_200kb", "vit_small_2mb", "vit_small_5mb", "vit_small",
         "vit_small_10mb")
SIZES = {48: 42, 64: 56, 224: 98}   # pixels of the file at patch 16 -> of the packaged model at patch 14; the first two have
                                    # the same tokens, the last 50 instead of 197
FULL = PlanConfig(enable_backward_config=False, parameters={"patch_embed.proj.weight": "none"})
MANY = 1_000_000                    # trained parameters from which the rate is that of the full update
LR, LR_MANY = 0.001, 0.0003         # coarse readings with seed 0
QUICK = {"data.images_per_class": 10, "train.epochs": 2, "data.test_images": 200, "train.schedule": "constant",
         "train.augment": "off"}


def memory(name: str) -> dict[str, Any]:
    """What the shipped file's scheme needs, and what its taken plan measures. Bytes."""
    import numpy as np
    import torch

    from algorithm import build_model
    from algorithm.sparse.merit import choose_plan
    from runtime.codegen.generate import generate
    from runtime.simulator import Simulator
    torch.set_num_threads(1)
    config = make_run_config([f"{name}.yaml"])
    model = build_model(config.model)
    compiler = compiler_of(model, config)

    def bytes_of(plan: UpdatePlan, max_recompute: float | None = None) -> int:
        return compiler.smallest_ram(dict(plan.to_dict()["parameters"]), config.train.momentum, max_recompute)
    found = choose_plan(config.plan, model, lambda plan: bytes_of(plan, config.compile.max_recompute), config.budget.bytes,
                        least=bytes_of)
    taken = found.best or found.nearest
    if taken is None:
        raise AlgorithmError(f"{name}: nothing near the scheme fits {config.budget.memory}")
    compiled = compiler.compile(dict(taken.plan.to_dict()["parameters"]), config.budget.bytes)
    with tempfile.TemporaryDirectory() as folder:
        generate(compiled.program, compiled.values, Path(folder) / "c")
        with Simulator(Path(folder) / "c", compiled.program) as simulator:
            image = np.random.default_rng(0).integers(0, 256, (config.model.img_size, config.model.img_size, 3), np.uint8)
            measured = simulator.measure(image, 0, config.train.lr)
    return {"budget": config.budget.memory, "budget_bytes": config.budget.bytes, "img_size": config.model.img_size,
            "needs_bytes": found.tried[0].bytes, "taken": taken.plan.name, "kept": list(taken.plan.parameters),
            "ram_bytes": measured.ram_bytes, "flash_bytes": measured.flash_bytes}


def compiler_of(model: nn.Module, config: RunConfig) -> Compiler:
    from algorithm.models import input_scale_shift
    from compilation.capture import InputSpec
    from compilation.pipeline import Compiler
    size = config.model.img_size
    return Compiler(model, InputSpec((3, size, size), *input_scale_shift(model)), config.model.name)


def accuracy(rule: PlanConfig, kept: list[str] | None, size: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train the packaged model by a rule, or by those of its parameters that are kept; held-out accuracy."""
    from algorithm import build_model, evaluate, finetune, load_data, resolve_plan
    from algorithm.sparse import parameter_shapes
    config = make_run_config([], overrides, QUICK)
    config.model.img_size, config.model.gram, config.model.head_init = size, GramConfig(enabled=False), "timm"
    config.data.seed = config.train.seed = config.model.seed = seed
    model = build_model(config.model)
    plan = resolve_plan(rule, model)
    if kept is not None:
        plan = UpdatePlan({n: c for n, c in plan.parameters.items() if n in kept}, plan.name)
    trained = plan.trained_count(parameter_shapes(model))
    config.train.lr = LR_MANY if trained >= MANY else LR
    train, test = load_data(config.data, size, config.model.num_classes)
    before = evaluate(model, test, config.train.eval_batch).accuracy
    steps = len(finetune(model, plan, train, copy.deepcopy(config.train)).losses)
    return {"trained": trained, "lr": config.train.lr, "steps": steps, "before": before,
            "after": evaluate(model, test, config.train.eval_batch).accuracy}


class Rows:
    """Results by name, kept in a file as they come."""

    def __init__(self, path: Path | None, settings: list[str]) -> None:
        self.path, self.done, self.settings = path, {}, settings
        if path and path.is_file():
            raw = json.loads(path.read_text())
            if raw.get("settings") != settings:
                raise AlgorithmError(f"{path} holds rows of other settings ({' '.join(raw.get('settings', []))}): name "
                                     "another file, or delete it")
            self.done = raw["rows"]

    def get(self, key: str, make: Any) -> dict[str, Any]:
        """The row of this name, made where it is not there."""
        if key not in self.done:
            print(f"{key} ...", file=sys.stderr, flush=True)
            self.done[key] = make()
            if self.path:
                fresh = self.path.with_suffix(".new")
                fresh.write_text(json.dumps({"settings": self.settings, "rows": self.done}, indent=1) + "\n")
                fresh.replace(self.path)
        row: dict[str, Any] = self.done[key]
        return row


def run(rows: Rows, files: list[str], seeds: list[int], overrides: list[str]) -> Table:
    """All rows, a seed at a time, and the table of them."""
    rules = {f: make_run_config([f"{f}.yaml"]).plan.rule for f in files}
    costs = {f: rows.get(f"memory {f}", lambda f=f: memory(f)) for f in files}
    after: dict[tuple[str, str], list[float]] = {}
    for seed in seeds:
        for f in files:
            size = SIZES[costs[f]["img_size"]]
            for what, rule, kept in (("full", FULL, None), ("named", rules[f], None), ("taken", rules[f], costs[f]["kept"])):
                same = what == "taken" and costs[f]["needs_bytes"] <= costs[f]["budget_bytes"]
                label = f"{'full' if what == 'full' else f} {'named' if same else what} {size} px seed {seed}"
                got = rows.get(label, lambda r=rule, k=kept, s=size, n=seed: accuracy(r, k, s, n, overrides))
                after.setdefault((f, what), []).append(got["after"])
    return table(costs, rules, after, seeds)


def table(costs: dict[str, dict[str, Any]], rules: dict[str, PlanConfig], after: dict[tuple[str, str], list[float]],
          seeds: list[int]) -> Table:
    """A line a shipped file; accuracies are means over seeds, each in brackets."""
    out = Table(title=f"Schemes of configs/vit_small*.yaml, seeds {', '.join(map(str, seeds))}")
    for heading in ("file", "layers", "sparsity", "px", "needs", "kept matrices", "RAM", "flash", "full", "named: drop",
                    "taken: drop"):
        out.add_column(heading, justify="left" if heading == "file" else "right")
    for f, c in costs.items():
        rule = rules[f]
        matrices = sum(n.endswith(".weight") for n in c["kept"])
        full = statistics.mean(after[f, "full"])
        drops = (f"{100 * (full - statistics.mean(after[f, w])):.1f} ({', '.join(f'{100 * a:.1f}' for a in after[f, w])})"
                 for w in ("named", "taken"))
        out.add_row(f, f"{rule.n_weight_update} {'+'.join(rule.vit_layer_types)}",
                    f"{100 * float(rule.weight_update_ratio):g} %",  # type: ignore[arg-type]
                    f"{c['img_size']}, {SIZES[c['img_size']]}", f"{c['needs_bytes']:,}",
                    f"{matrices} of {rule.n_weight_update}", f"{c['ram_bytes']:,}", f"{c['flash_bytes']:,}",
                    f"{100 * full:.1f} ({', '.join(f'{100 * a:.1f}' for a in after[f, 'full'])})", *drops)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.schemes", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma separated")
    parser.add_argument("--only", default="", help="only files whose name contains this text")
    parser.add_argument("--json", metavar="FILE", type=Path, help="keep the rows here, and go on from what stands there")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the accuracies' runs")
    args = parser.parse_args(argv)
    try:
        make_run_config([], args.overrides, QUICK)
        files = [f for f in FILES if args.only in f]
        if not files:
            raise AlgorithmError(f"no scheme is called {args.only!r}: {', '.join(FILES)}")
        shown = run(Rows(args.json, args.overrides), files, [int(s) for s in args.seeds.split(",")], args.overrides)
    except AlgorithmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
