"""Update plans: rules, serialisation, budgets, search."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from algorithm.errors import BudgetParseError, ConfigError, PlanError
from algorithm.models import GramConfig, LoraConfig
from algorithm.schema import parse
from algorithm.sparse import (
    DEFAULT_MERIT,
    NAMED_BUDGETS,
    PlanChoice,
    PlanConfig,
    Slice,
    UpdatePlan,
    candidate_plans,
    choose_plan,
    parameter_shapes,
    parse_budget,
    resolve_plan,
    search,
    weighted_plans,
)
from algorithm.sparse.order import expand_merit
from tests.algorithm.conftest import small_model


def resolved(model=None, **rule) -> dict:
    return resolve_plan(PlanConfig(**rule), model or small_model()).parameters


def test_bias_and_layer_norm_of_the_last_blocks() -> None:
    plan = resolved(n_bias_update=1)
    assert set(plan) == {"blocks.2.norm1.weight", "blocks.2.norm1.bias", "blocks.2.norm2.weight", "blocks.2.norm2.bias",
                         "blocks.2.attn.qkv.bias", "blocks.2.attn.proj.bias", "blocks.2.mlp.fc1.bias",
                         "blocks.2.mlp.fc2.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert set(plan.values()) == {"all"}
    assert set(resolved(n_bias_update=0)) == {"head.weight", "head.bias"}
    assert set(resolved(n_bias_update=0, vit_layer_types=[])) == set()
    only_bias = resolved(n_bias_update=1, layer_norm=False)
    assert all(n.endswith("bias") or n.startswith("head") for n in only_bias) and "norm.bias" not in only_bias
    assert len(resolved(n_bias_update="all")) == 3 * 8 + 4


def test_full_update_is_every_parameter() -> None:
    model = small_model()
    assert resolved(model, enable_backward_config=False) == dict.fromkeys(dict(model.named_parameters()), "all")


@pytest.mark.parametrize(("criteria", "axis"), [("magnitude+", "cols"), ("magnitude-", "cols"), ("magnitude+", "rows"),
                                               ("random", "cols")])
def test_selection_by_criteria(criteria: str, axis: str) -> None:
    model = small_model()
    rule = {"n_bias_update": 0, "n_weight_update": 1, "vit_layer_types": ["attention"], "weight_update_ratio": 0.25,
            "weight_select_criteria": criteria, "weight_select_axis": axis}
    plan = resolved(model, **rule)
    assert set(plan) == {"blocks.2.attn.qkv.weight", "blocks.2.attn.proj.weight"}
    choice = plan["blocks.2.attn.qkv.weight"]
    weight = model.blocks[2].attn.qkv.weight.detach().double()
    norms = weight.norm(dim=0 if axis == "cols" else 1).numpy()
    assert choice.axis == axis and len(choice.index) == len(norms) // 4 and list(choice.index) == sorted(choice.index)
    if criteria == "magnitude+":
        assert set(choice.index) == set(np.argsort(-norms)[:len(choice.index)])
    if criteria == "magnitude-":
        assert set(choice.index) == set(np.argsort(norms)[:len(choice.index)])
    assert plan == resolved(model, **rule)  # random is seeded


def test_the_ancestors_keys() -> None:
    config = parse(PlanConfig, {"enable_backward_config": 1, "n_bias_update": 2, "manual_weight_idx": "0-2",
                                "weight_update_ratio": "0.25-1.0", "vit_layer_types": ["mlp"]})
    plan = resolve_plan(config, small_model()).parameters
    assert plan["blocks.0.mlp.fc1.weight"].axis == "cols" and len(plan["blocks.0.mlp.fc1.weight"].index) == 4
    assert plan["blocks.2.mlp.fc2.weight"] == "all" and "blocks.1.mlp.fc1.weight" not in plan
    by_type = resolved(n_bias_update=0, n_weight_update={"attention": "all", "mlp": 1},
                       weight_update_ratio={"mlp": 0.5})
    assert by_type["blocks.0.attn.qkv.weight"] == "all" and isinstance(by_type["blocks.2.mlp.fc1.weight"], Slice)
    assert "blocks.1.mlp.fc1.weight" not in by_type


def test_gram_and_lora_targets() -> None:
    model = small_model(gram=GramConfig(enabled=True, rank=2), lora=LoraConfig(enabled=True, rank=2))
    assert set(resolved(model, n_bias_update=0, n_gram_update=1, vit_layer_types=[])) == {
        "blocks.2.attn.gram_a", "blocks.2.attn.gram_b"}
    lora = resolved(model, n_bias_update=0, n_lora_update="all", vit_layer_types=[])
    assert len(lora) == 12 and all(n.endswith(("lora_a", "lora_b")) for n in lora)
    for key in ("n_gram_update", "n_lora_update"):
        with pytest.raises(PlanError, match="the model has none"):
            resolved(**{key: 1})


def test_explicit_parameters_win() -> None:
    plan = resolved(n_bias_update=0, parameters={"head.bias": "none", "blocks.0.attn.qkv.weight": {"rows": [1, 3]}})
    assert plan == {"blocks.0.attn.qkv.weight": Slice("rows", (1, 3)), "head.weight": "all"}


@pytest.mark.parametrize(("rule", "match"), [
    ({"n_bias_updat": 1}, "'plan.n_bias_updat' .nearest known: 'n_bias_update'"),
    ({"weight_update_ratio": 1.5}, "within 0 and 1"),
    ({"vit_layer_types": ["conv"]}, "vit_layer_types"),
    ({"n_weight_update": 2, "weight_update_ratio": [0.5]}, "lists 1 values for 2"),
    ({"n_bias_update": -1}, "0 or more"),
])
def test_bad_rules(rule: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse(PlanConfig, rule, "plan")


def test_rules_that_do_not_fit_the_model() -> None:
    with pytest.raises(PlanError, match="the model has 3 blocks"):
        resolved(n_bias_update=4)
    with pytest.raises(PlanError, match="manual_weight_idx 3"):
        resolved(manual_weight_idx=[3])
    with pytest.raises(PlanError, match=r"outside 0\.\.15"):
        resolved(parameters={"blocks.0.attn.qkv.weight": {"cols": [16]}})
    with pytest.raises(PlanError, match=r"nearest known: 'head\.weight'"):
        resolved(parameters={"head.weigth": "all"})
    with pytest.raises(PlanError, match="ascending"):
        UpdatePlan.from_dict({"version": 1, "parameters": {"w": {"cols": [2, 1]}}})


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_plan_files_round_trip(tmp_path, suffix: str) -> None:
    plan = resolve_plan(PlanConfig(n_weight_update=1, weight_update_ratio=0.25), small_model())
    plan.save(tmp_path / f"p.{suffix}")
    again = UpdatePlan.load(tmp_path / f"p.{suffix}")
    assert again == plan and UpdatePlan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["version"] == 1


def test_plans_are_read_without_torch() -> None:
    code = "import sys; from algorithm.sparse.plan import UpdatePlan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_budgets() -> None:
    assert [parse_budget(n) for n in NAMED_BUDGETS] == [
        100_000, 150_000, 200_000, 256_000, 512_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000]
    assert parse_budget("1.5 MiB") == 1_572_864 and parse_budget("64 KiB") == 65_536
    assert parse_budget("500000 bytes") == parse_budget(500_000) == parse_budget("0.5mb") == 500_000
    for bad in ("", "mb", "2 parsecs", "-1mb", "0", "1.0001kb", "nan", "1e6", True):
        with pytest.raises(BudgetParseError, match="2mb"):
            parse_budget(bad)


def test_search_takes_the_last_that_fits() -> None:
    model = small_model()
    plans, shapes = candidate_plans(model), parameter_shapes(model)
    assert plans[0].parameters.keys() == {"head.weight", "head.bias"} and len(plans[-1].parameters) == len(shapes)
    counts = [p.trained_count(shapes) for p in plans]
    assert counts == sorted(counts)

    def cost(plan: UpdatePlan) -> int:
        return 1000 + 4 * plan.trained_count(shapes)

    for nested in (False, True):
        for i in (0, 5, len(plans) - 1):
            found = search(plans, model, cost, cost(plans[i]), nested=nested)
            assert found.best is not None and found.best.plan is plans[i] and found.best.bytes == cost(plans[i])
        none = search(plans, model, cost, 900, nested=nested)
        assert none.best is None and none.smallest is not None and none.smallest.plan is plans[0]
    middle = search(plans, model, cost, cost(plans[3]) + 1)
    assert middle.next_up is None or middle.next_up.bytes > middle.budget


def test_merit_ranges_and_weights() -> None:
    assert [c.n_bias_update for c in expand_merit([{"n_bias_update": "1..all"}], 3)] == [1, 2, 3]
    with pytest.raises(ConfigError, match="two ranges"):
        expand_merit([{"n_bias_update": "1..2", "n_gram_update": "1..2"}], 3)
    plans = weighted_plans(small_model(), {"head.weight": 5, "norm1.bias": 2, "blocks.0.norm1.bias": 3})
    assert [list(p.parameters)[-1] for p in plans] == ["head.weight", "blocks.0.norm1.bias", "blocks.1.norm1.bias",
                                                       "blocks.2.norm1.bias"]
    with pytest.raises(ConfigError, match="fits no parameter"):
        weighted_plans(small_model(), {"nothing": 1})


def test_weights_given_by_tensor_choose_the_plan() -> None:
    from algorithm.sparse import choose_plan
    from algorithm.sparse.config import PlanChoice

    model = small_model()
    choice = PlanChoice(weights={"head.weight": 5, "norm1.bias": 2, "blocks.0.norm1.bias": 3})
    found = choose_plan(choice, model, lambda plan: 100_000 * len(plan.parameters), 250_000)
    assert found.best is not None
    assert list(found.best.plan.parameters) == ["head.weight", "blocks.0.norm1.bias"]


def test_the_merit_file_is_the_default() -> None:
    from algorithm.config import make_run_config

    assert make_run_config(["recipes/merit_default.yaml"]).plan.merit == DEFAULT_MERIT


def test_norms_do_not_depend_on_threads() -> None:
    model = small_model()
    first = resolved(model, n_weight_update="all", weight_update_ratio=0.5)
    torch.set_num_threads(2)
    assert resolved(model, n_weight_update="all", weight_update_ratio=0.5) == first


def test_choose_plan_by_rule_file_and_merit(tmp_path) -> None:
    model = small_model()
    shapes = parameter_shapes(model)

    def cost(plan: UpdatePlan) -> int:
        return 4 * plan.trained_count(shapes)

    by_rule = PlanChoice(choose="rule", rule=PlanConfig(n_bias_update=2))
    found = choose_plan(by_rule, model, cost, 10**6)
    assert found.best is not None and found.best.plan == resolve_plan(by_rule.rule, model)
    refused = choose_plan(by_rule, model, cost, found.best.bytes - 1)
    assert refused.best is None and refused.nearest is not None
    assert refused.nearest.plan.name.startswith("bias+LN of the last 2 blocks, head, without 1 of its ")
    found.best.plan.save(tmp_path / "plan.json")
    by_file = choose_plan(PlanChoice(choose="file", file=str(tmp_path / "plan.json")), model, cost, 10**6)
    assert by_file.best is not None and by_file.best.plan == found.best.plan
    with pytest.raises(ConfigError, match=r"needs plan\.file"):
        choose_plan(PlanChoice(choose="file"), model, cost, 10**6)
    auto = choose_plan(PlanChoice(always={"layer_norm": False}), model, cost, 10**6)
    assert auto.best is not None and auto.best.plan.name == "full update"


def test_what_fits_at_any_speed_is_not_refused(tmp_path) -> None:
    """The limit of recomputation is for the search: not for a plan that is asked for, nor for the last one left."""
    model = small_model()
    shapes = parameter_shapes(model)

    def least(plan: UpdatePlan) -> int:
        return 1000 + 4 * plan.trained_count(shapes)

    def cost(plan: UpdatePlan) -> int:
        return least(plan) + 500

    given = PlanChoice(choose="rule", rule=PlanConfig(n_bias_update=2))
    plan = resolve_plan(given.rule, model)
    found = choose_plan(given, model, cost, least(plan), least=least)
    assert found.best is not None and found.best.plan == plan and found.best.bytes == least(plan)
    plan.save(tmp_path / "plan.json")
    by_file = choose_plan(PlanChoice(choose="file", file=str(tmp_path / "plan.json")), model, cost, least(plan), least=least)
    assert by_file.best is not None and by_file.best.bytes == least(plan)
    over = choose_plan(given, model, cost, least(plan) - 1, least=least)
    assert over.best is None and over.tried[0].bytes == least(plan)
    smallest = min(candidate_plans(model), key=least)
    for choice in (PlanChoice(), PlanChoice(weights={"head.bias": 1})):
        heads = choose_plan(choice, model, cost, 1100 if choice.weights else least(smallest), least=least)
        assert heads.best is not None and heads.best.bytes == least(heads.best.plan) <= heads.budget
    none = choose_plan(PlanChoice(), model, cost, least(smallest) - 1, least=least)
    assert none.best is None and none.smallest is not None and none.smallest.bytes == least(smallest) > none.budget
