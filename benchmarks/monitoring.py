"""What monitoring costs, as a share of the training's time: updates with and without each observer, in turn, in one run.

    python -m benchmarks.monitoring --json monitoring.json
    python -m benchmarks.monitoring --device cuda --batch 512 --model vit_small_patch16_224 --img-size 224

Each observer is made due at every update (or evaluation), its median time beyond the bare update of the same round is taken,
and divided by how often it is due at the defaults of `monitor` and of the recipe. The images are noise: no time depends on
what they show. What an evaluation itself takes is no part of it; what a Watch does with it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

from algorithm.errors import AlgorithmError, ConfigError
from algorithm.monitor.config import MonitorConfig
from algorithm.recipes.config import RecipeConfig

NEVER = 10 ** 9
BARE = "no Watch"
OFF: dict[str, Any] = dict.fromkeys(("activations_every", "gram_every", "histograms_every", "classes_freq", "vis_freq",
                                     "analysis_freq"))
SPECTRA = "spectra, where on"
STEPS: dict[str, tuple[str, dict[str, Any]]] = {  # observer -> the option that says how often; what turns it on alone
    "loss and norms": ("recipe.progress_every", {}),
    "activations": ("monitor.activations_every", {"activations_every": 1}),
    "Gram norms": ("monitor.gram_every", {"gram_every": 1}),
    "histograms": ("monitor.histograms_every", {"histograms_every": 1}),
    SPECTRA: ("monitor.spec_every", {"spec_monitor": True, "spec_every": 1}),
}
EVALUATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "accuracies": ("monitor.classes_freq", {"classes_freq": 1}),
    "pictures": ("monitor.vis_freq", {"vis_freq": 1}),
    "high-norm tokens": ("monitor.analysis_freq", {"analysis_freq": 1}),
}


@dataclass
class Row:
    """seconds: beyond a bare update, once; every: updates from one to the next; share: of a bare update, on average."""

    observer: str
    option: str
    every: float
    seconds: float
    share: float


def every(option: str, eval_every: int) -> float:
    """Updates between two measurements, at the defaults."""
    section, name = option.split(".")
    value = getattr(RecipeConfig() if section == "recipe" else MonitorConfig(), name)
    return float(value * (eval_every if name.endswith("_freq") else 1))


def measure(args: argparse.Namespace, folder: Path) -> tuple[float, list[Row]]:
    """Seconds of a bare update, and the rows."""
    import torch

    from algorithm.monitor.monitor import Monitor
    from algorithm.monitor.watch import Watch

    torch.manual_seed(0)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    update, model, samples = training(args)
    classes = [f"class {i}" for i in range(args.classes)]
    evaluation = noise(args.classes)
    with ExitStack() as stack:
        def watch(name: str, config: MonitorConfig, progress_every: int = NEVER) -> Watch:
            monitor = stack.enter_context(Monitor(config, folder / name, warn=refuse))
            labels = torch.arange(len(samples)) % args.classes
            return stack.enter_context(Watch(config, monitor, model, samples=samples, sample_labels=labels, classes=classes,
                                             progress_every=progress_every))

        watches = {name: watch(name, MonitorConfig(**{**OFF, **on}), 1 if not on else NEVER)
                   for name, (_, on) in STEPS.items()}
        watches["not due"] = watch("not due", MonitorConfig())
        times: dict[str, list[float]] = {name: [] for name in watches}
        bare: list[float] = []
        for step in range(1, args.rounds + 3):  # the first two warm up; from 1, where the defaults have nothing due
            order = [*watches, BARE]
            turn = step % len(order)
            measured = {name: update(step, watches.get(name)) for name in order[turn:] + order[:turn]}
            alone = measured.pop(BARE)
            if step > 2:
                bare.append(alone)
                for name, seconds in measured.items():
                    times[name].append(seconds - alone)
        evaluated: dict[str, list[float]] = {}
        for name, (_, on) in EVALUATIONS.items():
            w = watch(name, MonitorConfig(**{**OFF, **on}))
            w.evaluated(0, evaluation)
            evaluated[name] = [seconds_of(lambda w=w, i=i: w.evaluated(i, evaluation), args.device)  # type: ignore[misc]
                               for i in range(1, 4)]
    step_time = statistics.median(bare)
    rows = [Row("nothing due", "", 1.0, statistics.median(times["not due"]), 0.0)]
    rows += [Row(name, option, every(option, args.eval_every), statistics.median(times[name]), 0.0)
             for name, (option, _) in STEPS.items()]
    rows += [Row(name, option, every(option, args.eval_every), statistics.median(evaluated[name]), 0.0)
             for name, (option, _) in EVALUATIONS.items()]
    for row in rows:
        row.share = max(row.seconds, 0.0) / row.every / step_time  # a negative one is noise
    return step_time, rows


def training(args: argparse.Namespace) -> tuple[Callable[[int, Any], float], Any, Any]:
    """(one update, timed, of the model below a Watch or none; the model; the samples that are looked at)."""
    import torch
    from torch.nn import functional as F

    from algorithm.models import GramConfig, ModelConfig, build_model

    model = build_model(ModelConfig(
        name=args.model, img_size=args.img_size, patch_size=args.patch_size, weights="none", head_init="timm",
        num_classes=args.classes, gram=GramConfig(enabled=True))).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(args.batch, 3, args.img_size, args.img_size, device=args.device)
    labels = torch.randint(0, args.classes, (args.batch,), device=args.device)
    samples = torch.randn(MonitorConfig().samples, 3, args.img_size, args.img_size, device=args.device)

    def update(step: int, watch: Any) -> float:
        def run() -> None:
            if watch:
                watch.before_step(step)
            model.train()
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            if watch:
                watch.before_update(step)
            optimizer.step()
            if watch:
                watch.after_step(step, loss=loss.detach(), accuracy=0.5, lr=1e-4)

        return seconds_of(run, args.device)

    return update, model, samples


def noise(classes: int) -> Any:
    """An evaluation of as many classes."""
    import numpy as np
    matrix = np.random.default_rng(0).integers(0, 100, (classes, classes))
    return SimpleNamespace(loss=1.0, top1=0.5, top5=0.9, per_class=np.diag(matrix) / matrix.sum(1), confusion=matrix)


def seconds_of(call: Callable[[], None], device: str) -> float:
    import torch
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def refuse(text: str) -> None:
    raise ConfigError(text)


def table(step: float, rows: list[Row], args: argparse.Namespace) -> Table:
    out = Table(title=f"{args.model} at {args.img_size} px, batch {args.batch}, {args.classes} classes, {args.device}: an "
                      f"update takes {1000 * step:.1f} ms; an evaluation every {args.eval_every} updates")
    for heading in ("observer", "option", "every", "ms, once", "share of an update"):
        out.add_column(heading, justify="left" if heading in ("observer", "option") else "right")
    for row in rows:
        out.add_row(row.observer, row.option, f"{row.every:g}", f"{1000 * row.seconds:.2f}", f"{100 * row.share:.3f} %")
    out.add_row("all at the defaults", "", "", "", f"{100 * total(rows):.2f} %")
    return out


def total(rows: list[Row]) -> float:
    """The share of all that is on by default."""
    return sum(row.share for row in rows if row.observer != SPECTRA)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.monitoring", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="name of timm")
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--patch-size", type=int, default=None, help="the model's own if not given")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--eval-every", type=int, default=100, help="updates")
    parser.add_argument("--rounds", type=int, default=15, help="updates with each observer, and without")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--json", metavar="FILE", help="write the rows for machines")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            step, rows = measure(args, Path(folder))
    except AlgorithmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else 140).print(table(step, rows, args))
    if args.json:
        figures = {**vars(args), "update_seconds": step, "overhead": total(rows), "rows": [asdict(r) for r in rows]}
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
