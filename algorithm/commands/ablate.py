"""python -m algorithm ablate: ranks of the Gram residual x update plans x seeds, against the same without it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from algorithm.commands.arguments import Parser, add_recipe_flags
from algorithm.commands.flags import ALL
from algorithm.commands.output import emit_json, show
from algorithm.commands.resolving import complete, experiment_of, translate, tree_of
from algorithm.commands.train import already_done, check, train_here
from algorithm.commands.work import finished, work_path
from algorithm.config import CONFIGS
from algorithm.errors import ConfigError
from algorithm.experiment import Experiment
from algorithm.journal import Journal
from algorithm.layers import Tree, over, read_config_file
from algorithm.naming import wrong_name
from algorithm.recipes.check import check_experiment

RANKS = (8, 16, 32, 64, 128)
FULL = "full"           # the plan that trains everything
EPILOG = """\
each cell is a training in a work folder of its own, <output>/<experiment>/<plan>-<rank or off>-seed<n>; a cell that is
finished is not trained again, one that was stopped goes on, so the same command completes the table
  python -m algorithm ablate --config training/dry_run.yaml --ranks 2 4 --seeds 0 1 --experiment ranks
  python -m algorithm ablate --config training/strong_cifar100.yaml --data-dir data --plans full training/with_plan.yaml

comes out in <output>/<experiment>: ablation.json, ablation.md (the table), ablation.png
"""
OWN_WAY = ("seed", "use_gram_lowrank_mhsa", "gram_lowrank_rank", "resume")      # what the cells are made of


@dataclass(frozen=True)
class Cell:
    """One training. rank None: without the residual."""

    plan: str
    rank: int | None
    seed: int
    experiment: Experiment

    @property
    def name(self) -> str:
        return f"{self.plan}-{'off' if self.rank is None else f'rank{self.rank}'}-seed{self.seed}"


def parser() -> Parser:
    p = Parser("ablate", "Compare ranks of the Gram residual, update plans and seeds; the baseline is the same training "
               "(plan, seed, order, augmentation) without the residual.", EPILOG)
    grid = p.add_argument_group("the grid")
    grid.add_argument("--ranks", type=int, nargs="+", default=list(RANKS), metavar="R", help="8 16 32 64 128")
    grid.add_argument("--plans", nargs="+", default=[FULL], metavar="PLAN", help=f"{FULL}, or YAML files with a section "
                      "plan; where the residual is on they train its matrices, too")
    grid.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="0 1 2")
    grid.add_argument("--json", metavar="FILE", help="the cells' results; - for the standard output")
    add_recipe_flags(p, only=[f.dest for f in ALL if f.dest not in OWN_WAY])
    return p


def run(options: argparse.Namespace) -> int:
    """Train what is missing, one cell after the other, then compare all."""
    for what, values in (("ranks", options.ranks), ("plans", options.plans), ("seeds", options.seeds)):
        double = next((v for i, v in enumerate(values) if v in values[:i]), None)
        if double is not None:
            raise ConfigError(f"--{what} names {double} twice: leave one out")
    if min(options.ranks) < 1 or min(options.seeds) < 0:
        raise ConfigError("--ranks are 1 or more, --seeds 0 or more")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("ablate works in one process, one cell after the other: start it without torchrun")
    tree = tree_of(options.config, vars(options), options.overrides)
    if "plan" in tree:
        raise ConfigError("the plans of an ablation are named by --plans: put the section plan into a file of its own")
    folder = folder_of(tree)
    cells = list(grid(tree, folder, options))
    check(cells[0].experiment)
    for cell in cells[1:]:
        check_experiment(cell.experiment)
    journal = Journal()
    results = []
    for k, cell in enumerate(cells, 1):
        done = bool(already_done(cell.experiment))
        journal.say(f"cell {k} of {len(cells)}: {cell.name}{' is finished' if done else ''}")
        summary = finished(work_path(cell.experiment)) if done else train_here(cell.experiment, journal)
        results.append({"plan": cell.plan, "rank": cell.rank, "seed": cell.seed, "folder": cell.name, **(summary or {})})
    compare(results, folder, options, journal)
    return 0


def folder_of(tree: Tree) -> Path:
    """`output.dir`/`output.name`: the folder of the cells. Raises ConfigError."""
    output = tree.get("output", {})
    name = str(output.get("name") or "ablation")
    if wrong := wrong_name(name):
        raise ConfigError(f"{wrong}: give the ablation a plain name with --experiment")
    return Path(str(output.get("dir") or "work")) / name


def grid(tree: Tree, folder: Path, options: argparse.Namespace) -> Iterator[Cell]:
    """The cells, the baseline of each plan and seed before its ranks. Raises ConfigError."""
    plans = {plan_name(given): plan_of(given) for given in options.plans}
    if len(plans) < len(options.plans):
        raise ConfigError("--plans has two files of one name: rename one")
    resolved = complete(tree).model
    tree = over(tree, {"model": {"num_classes": resolved.num_classes, "img_size": resolved.img_size}})
    for plan, section in plans.items():
        for seed in options.seeds:
            for rank in (None, *options.ranks):
                cell = Cell(plan, rank, seed, experiment_of(over(tree, layer_of(section, rank, seed))))
                output = cell.experiment.output.model_copy(update={"dir": str(folder), "name": cell.name})
                yield replace(cell, experiment=cell.experiment.model_copy(update={"output": output}))


def plan_name(given: str) -> str:
    return given if given == FULL else Path(given).stem


def plan_of(given: str) -> Tree | None:
    """The plan section of a file; None: everything is trained. Raises ConfigError."""
    if given == FULL:
        return None
    tree = read_config_file(given, CONFIGS, Experiment, translate=translate)
    if set(tree) != {"plan"}:
        raise ConfigError(f"--plans {given} must hold a section plan and nothing else, found {', '.join(tree) or 'nothing'}"
                          f"; or name {FULL}")
    section: Tree = tree["plan"]
    return section


def layer_of(plan: Tree | None, rank: int | None, seed: int) -> Tree:
    """What makes a cell out of the recipe."""
    gram: Tree = {"enabled": False} if rank is None else {"enabled": True, "rank": rank}
    layer: Tree = {"model": {"gram": gram, "seed": seed}, "recipe": {"seed": seed}, "data": {"seed": seed}}
    if plan is not None:
        without = {k: v for k, v in plan.items() if k != "n_gram_update"}
        layer["plan"] = without if rank is None else {"n_gram_update": "all", **plan}
    return layer


def compare(results: list[dict[str, Any]], folder: Path, options: argparse.Namespace, journal: Journal) -> None:
    """The table on the standard output; table, figures and plot in the folder."""
    from algorithm.analysis.comparisons import ablation_plot, ablation_table, trials_from
    from algorithm.commands.work import write_text
    trials = trials_from(results)
    table = ablation_table(trials)
    emit_json(results, str(folder / "ablation.json"))
    write_text(folder / "ablation.md", table.markdown())
    ablation_plot(folder / "ablation.png", trials)
    if options.json == "-":
        emit_json(results, "-")
    else:
        show(table)
        emit_json(results, options.json)
    journal.say(f"table and plot: {folder / 'ablation.md'}, {folder / 'ablation.png'}")
