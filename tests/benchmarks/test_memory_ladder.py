"""The memory ladder keeps what it reaches: every row planned and placed (no C), against golden figures."""

from __future__ import annotations

from copy import copy
from functools import lru_cache

import pytest
import torch
from torch import nn

from algorithm import build_model, resolve_plan
from algorithm.sparse import PlanConfig, parse_budget
from benchmarks.memory_ladder import ROWS, Row, compiler_of, model_config, selections
from compilation.errors import BudgetError
from compilation.pipeline import Compiler
from tests.figures import Entry, Figures

FILE = "ladder.json"
START, TRAINED = " + Gram", " + Gram, B not zero"    # at its start B is zero, and drop_zeros leaves the residual out
CASES = [(row, gram) for grams in (("",), (START, TRAINED))
         for row in sorted(ROWS, key=lambda r: (r.model, r.size, r.patch, r.lora)) for gram in grams]
NAMES = [row.text + gram for row, gram in CASES]


@lru_cache(maxsize=1)       # the cases are sorted by model: each is captured once, and only one is held
def captured(model: str, size: int, patch: int, lora: int, gram: bool) -> tuple[nn.Module, Compiler]:
    row = Row("", model, size, patch, "", {}, lora)
    module = build_model(model_config(row, gram))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("gram_b"):
                parameter.fill_(0.01)
    return module, compiler_of(row, module)


def reached(row: Row, gram: str) -> Entry:
    model, compiler = captured(row.model, row.size, row.patch, row.lora, bool(gram))
    if gram == START:
        compiler = copy(compiler)
        compiler.zero |= {n for n in compiler.shapes if n.endswith("gram_b")}
    plan = selections(resolve_plan(PlanConfig(**row.plan), model))
    planner, budget = compiler.planner(plan), parse_budget(row.budget)
    smallest = planner.smallest().ram
    out: Entry = {"smallest_ram_bytes": smallest, "macs_without_recompute": planner.unconstrained().macs,
                  "fits": smallest <= budget}
    if gram == START:           # without the residual it is the row without Gram, whose budget is searched already
        return out
    if not out["fits"]:
        with pytest.raises(BudgetError) as refusal:
            compiler.compile(plan, budget)
        assert refusal.value.smallest == smallest
        return out
    compiled = compiler.compile(plan, budget)
    assert compiled.memory.arena == compiled.bound
    assert compiled.memory.total <= budget
    return {**out, "ram_bytes": compiled.memory.total, "arena_bytes": compiled.memory.arena,
            "arena_lower_bound_bytes": compiled.bound, "macs": compiled.macs}


@pytest.mark.parametrize(("row", "gram"), CASES, ids=NAMES)
def test_no_row_needs_more_memory_or_work_than_it_did(row: Row, gram: str, figures: Figures) -> None:
    now = reached(row, gram)

    def law(golden: Entry) -> None:
        assert now["smallest_ram_bytes"] <= golden["smallest_ram_bytes"]
        assert now["macs_without_recompute"] <= golden["macs_without_recompute"]
        assert now["fits"] >= golden["fits"]
        if "macs" in golden:
            assert now["macs"] <= golden["macs"]

    figures.compare(FILE, row.text + gram, now, law)


def test_every_golden_row_is_still_checked(figures: Figures) -> None:
    assert set(figures.read(FILE)) == set(NAMES)
