"""The options of monitoring: what has no effect is refused, and what the report names is there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from algorithm.analysis.report import MISSING
from algorithm.models.config import GramConfig
from algorithm.monitor import MonitorConfig
from algorithm.recipes.config import RecipeConfig


@pytest.mark.parametrize(("given", "text"), [
    ({"histograms_every": None, "hist_bins": 5}, "hist_bins has no effect without histograms_every"),
    ({"vis_freq": 0, "vis_images": 2}, "vis_images has no effect without vis_freq"),
    ({"spec_topk": 2}, "spec_topk has no effect without spec_monitor"),
    ({"spec_on_cpu": True}, "spec_on_cpu has no effect without spec_monitor"),
    ({"spec_monitor": True, "spec_every": None}, "never measures with spec_every off"),
    ({"samples": 3, "vis_freq": None, "analysis_freq": None, "activations_every": 0, "gram_every": None},
     "samples has no effect"),
    ({"samples": 3, "vis_images": 5}, "vis_images=5 is more than samples=3"),
    ({"jsonl": False, "gram_every": 5}, "gram_every has no effect where nothing is recorded"),
    ({"jsonl": False, "spec_monitor": True}, "spec_monitor has no effect where nothing is recorded"),
    ({"spec_targets": [], "spec_monitor": True}, "at least 1 item"),
    ({"gram_every": -1}, "greater than or equal to 0"),
])
def test_what_has_no_effect_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(text)):
        MonitorConfig(**given)


def test_each_frequency_can_be_off() -> None:
    names = [n for n in MonitorConfig.model_fields if n.endswith(("_every", "_freq"))]
    assert len(names) == 7
    off = MonitorConfig(**dict.fromkeys(set(names) - {"spec_every"}))  # which spec_monitor turns off
    assert not any(getattr(off, n) for n in [*names, "spec_monitor"] if n != "spec_every")


def test_the_report_names_options_that_exist() -> None:
    known = {f"{section}.{n}" for section, config in
             (("monitor", MonitorConfig), ("recipe", RecipeConfig), ("model.gram", GramConfig)) for n in config.model_fields}
    named = [o for _, text in MISSING.values() for o in re.findall(r"\b(?:monitor|recipe|model\.gram)\.\w+", text)]
    assert len(named) >= 10 and set(named) <= known
