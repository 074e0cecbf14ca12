"""Accuracy before and after fine-tuning on held-out images: sparse plan, head only, full fine-tuning side by side.

    python -m benchmarks.accuracy --json accuracy.json
    python -m benchmarks.accuracy --seeds 0 --schemes sparse,head model.img_size=98 data.images_per_class=10

Every scheme gets the same images in the same order (they depend on the seed alone), the same batch-1 SGD in float32,
and the learning rate given with --lr or, without it, its own (LR below).
The held-out images are the same for every seed. Any configuration key can be set as section.key=value.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from algorithm.config import RunConfig, make_run_config
from algorithm.errors import AlgorithmError
from algorithm.models import GramConfig
from algorithm.sparse import PlanConfig

SCHEMES: dict[str, PlanConfig] = {
    "sparse": PlanConfig(n_bias_update="all"),
    "head": PlanConfig(n_bias_update=0),
    "full": PlanConfig(enable_backward_config=False, parameters={"patch_embed.proj.weight": "none"},
                       name="every parameter but the patch matrix"),
    "everything": PlanConfig(enable_backward_config=False),
    "last4": PlanConfig(n_bias_update=4),
    "attention": PlanConfig(n_bias_update="all", n_weight_update={"attention": 4}, weight_update_ratio=0.25),
    "gram": PlanConfig(n_bias_update="all", n_gram_update=4),
}
# Coarse readings at 98 px, 20 images a class, seed 0. The patch matrix has by far the largest gradient of these weights
# (10x the next); trained at one rate with the rest it lets the loss stay near where it began, so `full` leaves it out.
LR = {"sparse": 0.001, "head": 0.001, "full": 0.0003, "everything": 0.0001, "last4": 0.001, "attention": 0.001,
      "gram": 0.001}


@dataclass
class Row:
    """One training run."""

    scheme: str
    plan: str
    seed: int
    lr: float
    steps: int
    trained_parameters: int
    accuracy_before: float
    accuracy_after: float
    loss_after: float
    train_seconds: float


def run_one(config: RunConfig, scheme: str, seed: int, lr: float) -> Row:
    """Train one scheme with one seed and evaluate it before and after."""
    from algorithm import build_model, evaluate, finetune, load_data, resolve_plan
    from algorithm.sparse import parameter_shapes
    config = config.model_copy(deep=True)
    config.data.seed = config.train.seed = config.model.seed = seed
    config.train.lr = lr
    if scheme != "gram":
        config.model.gram = GramConfig(enabled=False)
    model = build_model(config.model)
    plan = resolve_plan(SCHEMES[scheme], model)
    train, test = load_data(config.data, config.model.img_size, config.model.num_classes)
    before = evaluate(model, test, config.train.eval_batch)
    result = finetune(model, plan, train, config.train)
    after = evaluate(model, test, config.train.eval_batch)
    return Row(scheme, plan.describe(), seed, lr, len(result.losses), plan.trained_count(parameter_shapes(model)),
               before.accuracy, after.accuracy, after.loss, result.seconds)


def table(rows: list[Row], config: RunConfig) -> Table:
    """Mean and spread over seeds, a line a scheme."""
    d, seeds = config.data, sorted({r.seed for r in rows})
    title = (f"{config.model.name} at {config.model.img_size} px, {d.name}, {d.images_per_class} images a class, "
             f"{rows[0].steps} steps, {d.test_images} held-out images, seeds {', '.join(map(str, seeds))}")
    out = Table(title=title)
    for heading in ("scheme", "trained", "lr", "before", "after: mean", "by seed", "of full", "s/run"):
        out.add_column(heading, justify="left" if heading == "scheme" else "right")
    full = [r.accuracy_after for r in rows if r.scheme == "full"]
    for scheme in dict.fromkeys(r.scheme for r in rows):
        mine = [r for r in rows if r.scheme == scheme]
        after = [r.accuracy_after for r in mine]
        mean = statistics.mean(after)
        out.add_row(f"{scheme}: {mine[0].plan.split(' (')[0]}", f"{mine[0].trained_parameters:,}", f"{mine[0].lr:g}",
                    f"{100 * statistics.mean(r.accuracy_before for r in mine):.1f} %", f"{100 * mean:.1f} %",
                    " ".join(f"{100 * a:.1f}" for a in after),
                    f"{mean / statistics.mean(full):.2f}x" if full else "-",
                    f"{statistics.mean(r.train_seconds for r in mine):.0f}")
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.accuracy", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma separated")
    parser.add_argument("--schemes", default="sparse,head,full", help=f"of {', '.join(SCHEMES)}")
    parser.add_argument("--lr", type=float, help="one learning rate for every scheme")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--json", metavar="FILE", help="write the rows for machines")
    parser.add_argument("--config", action="append", default=[], metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args(argv)
    if args.threads:
        import torch
        torch.set_num_threads(args.threads)
    try:
        unknown = [s for s in args.schemes.split(",") if s not in SCHEMES]
        if unknown:
            raise AlgorithmError(f"unknown scheme {unknown[0]!r}: choose of {', '.join(SCHEMES)}")
        config = make_run_config(args.config, args.overrides)
        rows: list[Row] = []
        for seed in map(int, args.seeds.split(",")):
            for scheme in args.schemes.split(","):
                start = time.perf_counter()
                rows.append(run_one(copy.deepcopy(config), scheme, seed, args.lr or LR[scheme]))
                print(f"seed {seed} {scheme}: {100 * rows[-1].accuracy_before:.1f} -> "
                      f"{100 * rows[-1].accuracy_after:.1f} % in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    except AlgorithmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows, config))
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
