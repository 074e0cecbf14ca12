"""What each update plan reaches with the device's own recipe: accuracy, RAM and work side by side, several tasks and seeds.

    python -m benchmarks.results --json results.jsonl                        the embedded Fashion-MNIST
    python -m benchmarks.results --json results.jsonl --folder signs=DIR --folder cifar=DIR        and image folders
    python -m benchmarks.results --json results.jsonl --write docs           results.svg and the table in results.md there,
                                                                             of what is in the file; nothing is trained

Every cell (task, scheme, seed) is a line of the JSON-lines file; what is there is not trained again, so that a stopped
run goes on and several may share the work (--only). The images depend on the seed alone, the held-out ones on nothing.
RAM is the smallest in which the step is at most 3 times the work of no recomputation, as the main job's search asks.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from algorithm.config import RunConfig, make_run_config
from algorithm.errors import AlgorithmError
from algorithm.sparse import PlanConfig

HEAD = {"n_bias_update": 0}
ALL = {"n_bias_update": "all"}
GRAM, NONE = {"enabled": True, "rank": 64}, {"enabled": False}


@dataclass(frozen=True)
class Scheme:
    """What is trained, at its own learning rate (coarse readings with seed 0; see docs/results.md)."""

    plan: dict[str, Any]
    lr: float
    model: dict[str, Any] = field(default_factory=lambda: {"gram": NONE})


def lora(rank: int) -> dict[str, Any]:
    return {"gram": NONE, "lora": {"enabled": True, "rank": rank}}


SCHEMES: dict[str, Scheme] = {
    "head": Scheme(HEAD, 0.003),
    "bias+LN, all blocks": Scheme(ALL, 0.004),
    "bias+LN, last 6 blocks": Scheme({"n_bias_update": 6}, 0.006),
    "Gram rank 64, last 2 blocks": Scheme({**HEAD, "n_gram_update": 2}, 0.006, {"gram": GRAM}),
    "LoRA rank 12, last 2 blocks": Scheme({**HEAD, "n_lora_update": 2}, 0.006, lora(12)),
    "attention 10 %, last block": Scheme({**HEAD, "n_weight_update": 1, "vit_layer_types": ["attention", "head"],
                                          "weight_update_ratio": 0.1}, 0.003),
    "bias+LN, all blocks; Gram rank 64, last block": Scheme({**ALL, "n_gram_update": 1}, 0.004, {"gram": GRAM}),
    "bias+LN, all blocks; Gram rank 16, last block": Scheme({**ALL, "n_gram_update": 1}, 0.004,
                                                            {"gram": {"enabled": True, "rank": 16}}),
    "attention 25 %, last 4 blocks": Scheme({**HEAD, "n_weight_update": 4, "vit_layer_types": ["attention", "head"],
                                             "weight_update_ratio": 0.25}, 0.003),
    "full but the patch matrix": Scheme({"enable_backward_config": False,
                                         "parameters": {"patch_embed.proj.weight": "none"}}, 0.0005),
}
RECIPE = {"train.epochs": 6, "train.schedule": "cosine", "train.augment": "off"}     # of every cell, whatever the defaults
BEGIN, END = "<!-- table: python -m benchmarks.results --write -->\n", "<!-- end of table -->\n"
TASKS = {"fashion-mnist": {"data.name": "fashion-mnist"}}


def config_of(task: dict[str, Any], scheme: Scheme, seed: int, overrides: list[str]) -> RunConfig:
    """The main job's configuration of one cell."""
    values = {"model.img_size": 98, "data.images_per_class": 15, "data.test_images": 200, **RECIPE, **task}
    values |= {f"model.{k}": v for k, v in scheme.model.items()}
    values |= {"train.lr": scheme.lr, "train.seed": seed, "data.seed": seed, "model.seed": seed}
    return make_run_config([], overrides, values)


def run_cell(config: RunConfig, scheme: Scheme) -> dict[str, Any]:
    """Train and evaluate once."""
    from algorithm import build_model, evaluate, finetune, load_data, resolve_plan
    from algorithm.sparse import parameter_shapes
    model = build_model(config.model)
    plan = resolve_plan(PlanConfig(**scheme.plan), model)
    train, test = load_data(config.data, config.model.img_size, config.model.num_classes)
    result = finetune(model, plan, train, config.train)
    after = evaluate(model, test, config.train.eval_batch, threads=1)
    return {"accuracy": after.accuracy, "loss": after.loss, "steps": len(result.losses), "seconds": result.seconds,
            "trained": plan.trained_count(parameter_shapes(model)), "held_out": len(test)}


def device_cost(config: RunConfig, scheme: Scheme) -> dict[str, Any]:
    """Bytes of RAM and multiply-accumulates a step of a scheme on the device."""
    from algorithm import build_model, resolve_plan
    from algorithm.models import input_scale_shift
    from compilation.capture import InputSpec
    from compilation.pipeline import Compiler
    model = build_model(config.model)
    selections: dict[str, Any] = resolve_plan(PlanConfig(**scheme.plan), model).to_dict()["parameters"]
    size = config.model.img_size
    compiler = Compiler(model, InputSpec((3, size, size), *input_scale_shift(model)), config.model.name)
    ram = compiler.smallest_ram(selections, 0.0, config.compile.max_recompute)
    compiled = compiler.compile(selections, ram)
    return {"ram": compiled.memory.total, "macs": compiled.macs, "macs_without_recompute": compiled.macs_without_recompute}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(rows: list[dict[str, Any]], costs: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line a scheme; of each task the mean and each seed."""
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    out = [f"| what is trained | parameters | RAM, bytes | work, M MACs a step | {' | '.join(tasks)} | mean |",
           "|---|---|---|---|" + "---|" * (len(tasks) + 1)]
    for scheme in [s for s in SCHEMES if any(r["scheme"] == s for r in rows)]:
        mine = [r for r in rows if r["scheme"] == scheme]
        cells, means = [], []
        for task in tasks:
            found = [r["accuracy"] for r in sorted(mine, key=lambda r: r["seed"]) if r["task"] == task]
            means += [mean(found)] if found else []
            cells.append(f"{100 * mean(found):.1f} ({', '.join(f'{100 * a:.1f}' for a in found)})" if found else "")
        cost = costs.get(scheme, {})
        all_tasks = f"{100 * mean(means):.1f}" if len(means) == len(tasks) else ""
        out.append(f"| {scheme} | {mine[0]['trained']:,} | {cost.get('ram', 0):,} | {cost.get('macs', 0) / 1e6:,.0f} | "
                   f"{' | '.join(cells)} | {all_tasks} |")
    return "\n".join(out) + "\n"


def plot(rows: list[dict[str, Any]], costs: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy against RAM, a panel a task, a dot a seed."""
    from algorithm.analysis.comparisons import Result, results_plot
    results_plot(path, [Result(r["task"], r["scheme"], r["seed"], r["accuracy"], costs[r["scheme"]]["ram"])
                        for r in rows if r["scheme"] in costs])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.results", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the cells, a JSON line each")
    parser.add_argument("--seeds", default="0,1,2", help="comma separated")
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=DIR", help="image folders as a further task")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cells whose 'task, scheme' has this")
    parser.add_argument("--write", type=Path, metavar="DIR", help="renew results.svg and the table of results.md there, "
                        "train nothing")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args(argv)
    try:
        tasks = dict(TASKS)
        for item in args.folder:
            name, equals, folder = item.partition("=")
            if not equals:
                raise AlgorithmError(f"{item!r} is not NAME=DIR")
            tasks[name] = {"data.name": "imagefolder", "data.data_root": folder}
        if args.write is None:
            train_all(tasks, [int(s) for s in args.seeds.split(",")], args.json, args.only, args.overrides)
    except AlgorithmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = read(args.json)
    rows, costs = [r for r in found if "task" in r], {r["scheme"]: r for r in found if "ram" in r}
    print(table(rows, costs))
    if args.write is not None:
        plot(rows, costs, args.write / "results.svg")
        renew(args.write / "results.md", table(rows, costs))
    return 0


def renew(page: Path, text: str) -> None:
    """Put the table between its marks in a page. Raises ValueError where it has none."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for the table, between {BEGIN.strip()} and {END.strip()}")
    page.write_text(before + BEGIN + text + END + after)


def train_all(tasks: dict[str, dict[str, Any]], seeds: list[int], path: Path, only: str, overrides: list[str]) -> None:
    """Every cell that the file does not have yet, the costs first."""
    import torch
    torch.set_num_threads(1)
    for name, scheme in SCHEMES.items():
        if not any(r["scheme"] == name and "ram" in r for r in read(path)) and only in name:
            write(path, {"scheme": name, **device_cost(config_of(TASKS["fashion-mnist"], scheme, 0, overrides), scheme)})
    for seed in seeds:
        for task, data in tasks.items():
            for name, scheme in SCHEMES.items():
                cell = {"task": task, "scheme": name, "seed": seed}
                if only not in f"{task}, {name}" or any(cell.items() <= r.items() for r in read(path)):
                    continue
                start = time.perf_counter()
                row = {**cell, "lr": scheme.lr, **run_cell(config_of(copy.deepcopy(data), scheme, seed, overrides), scheme)}
                write(path, row)
                print(f"{task}, {name}, seed {seed}: {row['accuracy']:.1%} in {time.perf_counter() - start:.0f} s",
                      file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
