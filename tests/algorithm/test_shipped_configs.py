"""Every shipped configuration is accepted: it loads, its plan exists in its model, and fits the budget it names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml
from torch import nn

from algorithm.config import CONFIGS, RunConfig, make_run_config
from algorithm.defaults import PATH, defaults_yaml
from algorithm.models import ModelConfig, build_model, input_scale_shift
from algorithm.preflight import preflight
from algorithm.schema import Section, section_of
from algorithm.sparse import candidate_plans, resolve_plan

SHIPPED = sorted(p.relative_to(CONFIGS) for d in ("models", "budgets", "recipes") for p in (CONFIGS / d).glob("*.yaml"))
TINY = [p for p in SHIPPED if p.parts[0] == "budgets" and p.stem in ("100kb", "150kb", "200kb", "256kb")]


@cache
def built(config: str) -> nn.Module:
    return build_model(ModelConfig.model_validate_json(config))


def model_of(run: RunConfig) -> nn.Module:
    return built(run.model.model_copy(update={"weights": "none"}).model_dump_json())


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_every_shipped_config_is_accepted(path: Path) -> None:
    run = make_run_config([path])
    preflight(run.model_copy(update={"model": run.model.model_copy(update={"weights": "none"})}))
    if path.parts[0] == "budgets":
        assert run.budget.memory == path.stem and run.plan.choose == "rule"
    model = model_of(run)
    plans = candidate_plans(model, run.plan.merit) if run.plan.choose == "auto" else [resolve_plan(run.plan.rule, model)]
    assert all(p.parameters for p in plans)


@pytest.mark.parametrize("path", TINY, ids=str)
def test_the_plan_of_a_budget_fits_it(path: Path) -> None:
    from compilation.capture import InputSpec
    from compilation.pipeline import Compiler

    run = make_run_config([path])
    model = model_of(run)
    scale, shift = input_scale_shift(model)
    compiler = Compiler(model, InputSpec((3, run.model.img_size, run.model.img_size), scale, shift), run.model.name)

    plan = resolve_plan(run.plan.rule, model).to_dict()["parameters"]
    assert compiler.smallest_ram(plan, run.train.momentum) <= run.budget.bytes


def test_the_listing_of_defaults_is_up_to_date_and_says_what_the_sections_say() -> None:
    assert PATH.read_text() == defaults_yaml(), "run python -m algorithm.defaults"
    assert yaml.safe_load(PATH.read_text()) == RunConfig().model_dump(mode="json")
    assert make_run_config([PATH]) == RunConfig() == make_run_config()


def test_every_option_says_what_it_means() -> None:
    def silent(section: type[Section]) -> list[str]:
        return [f"{section.__name__}.{name}" for name, field in section.model_fields.items()
                if not field.description and section_of(field.annotation) is None] + [
                    s for field in section.model_fields.values() if (inner := section_of(field.annotation))
                    for s in silent(inner)]

    assert silent(RunConfig) == []
