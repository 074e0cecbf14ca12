"""The rank of the Gram residual as a part of a plan, and of the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from algorithm import build_model, resolve_plan
from algorithm.errors import ConfigError, ModelError, PlanError
from algorithm.experiment import Experiment
from algorithm.models import ModelConfig
from algorithm.models.gram import at_gram_rank
from algorithm.recipes.check import check_experiment
from algorithm.schema import parse
from algorithm.sparse import PlanConfig
from algorithm.sparse.merit import candidate_plans, search
from algorithm.sparse.plan import UpdatePlan


def small(rank: int = 6, **changes: Any) -> torch.nn.Module:
    return build_model(ModelConfig(**{
        "name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 16, "weights": "none", "num_classes": 3,
        "head_init": "timm", "gram": {"enabled": True, "rank": rank},
        "extra": {"embed_dim": 24, "depth": 2, "num_heads": 2}, **changes}))


@pytest.mark.parametrize("form", ["token", "head"])
def test_a_lower_rank_is_the_first_columns_and_rows(form: str) -> None:
    model = small(gram={"enabled": True, "rank": 6, "form": form})
    lower = at_gram_rank(model, 2)
    assert at_gram_rank(model, 6) is model and at_gram_rank(model, None) is model
    for name, value in lower.state_dict().items():
        whole = model.state_dict()[name]
        if name.endswith("gram_a"):
            whole = whole[..., :2]
        elif name.endswith("gram_b"):
            whole = whole[..., :2, :]
        assert torch.equal(value, whole), name
    assert lower.vit_config.gram.rank == 2 and model.vit_config.gram.rank == 6
    with pytest.raises(ModelError, match="have a lower rank"):
        at_gram_rank(model, 7)
    with torch.no_grad():
        model.blocks[0].attn.gram_b[..., 1, 0] = 1.0
        assert at_gram_rank(model, 2) is not model
        model.blocks[0].attn.gram_b[..., 2, 0] = 1.0
    with pytest.raises(ModelError, match="trained at a higher one"):
        at_gram_rank(model, 2)


def test_a_plan_says_its_rank_and_counts_by_it(tmp_path: Path) -> None:
    model = small()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    plan = resolve_plan(PlanConfig(n_bias_update=0, n_gram_update=1, gram_rank=2), model)
    assert plan.gram_rank == 2 and plan.name == "Gram of rank 2 in the last block, head"
    assert plan.trained_count(shapes) == (5 + 24) * 2 + 3 * 24 + 3
    plan.save(tmp_path / "plan.yaml")
    assert UpdatePlan.load(tmp_path / "plan.yaml") == plan
    whole = resolve_plan(PlanConfig(n_bias_update=0, n_gram_update=1, gram_rank=6), model)
    assert whole.gram_rank is None and "gram_rank" not in whole.to_dict()
    with pytest.raises(PlanError, match="gram_rank=7 is more than the model's Gram residuals have, 6"):
        resolve_plan(PlanConfig(n_gram_update=1, gram_rank=7), model)
    with pytest.raises(PlanError, match="must be a whole number above 0"):
        UpdatePlan.from_dict({"version": 1, "parameters": {}, "gram_rank": 0})
    with pytest.raises(ConfigError, match="gram_rank has no effect without n_gram_update"):
        parse(PlanConfig, {"gram_rank": 2})
    with pytest.raises(ConfigError, match=r"set model\.gram\.rank"):
        check_experiment(parse(Experiment, {"plan": {"n_gram_update": 1, "gram_rank": 2}, "recipe": {
            "schedule": {"epochs": 1}}, "model": {"gram": {"enabled": True}}}))


def test_the_search_goes_over_ranks() -> None:
    model = small()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    rules = [{"n_bias_update": 0}, *({"n_bias_update": 0, "n_gram_update": n, "gram_rank": r}
                                     for n, r in ((1, 2), (1, 4), (2, 4), (2, 16)))]
    plans = candidate_plans(model, rules)
    assert [p.gram_rank for p in plans] == [None, 2, 4, 4]      # 16 is more than the model has
    best = search(plans, model, lambda plan: 4 * plan.trained_count(shapes), 4 * 200).best
    assert best is not None and best.plan.gram_rank == 4 and best.trained_parameters == 29 * 4 + 75
    with torch.no_grad():
        model.blocks[1].attn.gram_b[3] = 1.0
    assert [p.gram_rank for p in candidate_plans(model, rules)] == [None, 4, 4]     # rank 2 would lose what is trained
