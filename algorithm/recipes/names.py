"""Names of timm's optimisers, schedules and models without importing it, so that a typo is refused at once.

They are read from the text of timm's own files (importing timm takes PyTorch along, seconds); a test holds the lists
against what timm itself says.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from algorithm.errors import ConfigError
from algorithm.schema import nearest

LOOKAHEAD = "lookahead_"
_OPTIMISER = re.compile(r"OptimInfo\(\s*(?:name=)?'(\w+)'|register_alias\('(\w+)'")
_SCHEDULE = re.compile(r"sched == '(\w+)'|sched in \(([^)]*)\)|sched != '(\w+)'")
_MODEL = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@cache
def _timm() -> Path:
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("timm is not installed: pip install timm")
    return Path(spec.submodule_search_locations[0])


@cache
def optimisers() -> list[str]:
    """timm's optimisers; each also with `lookahead_` before it."""
    return sorted({a or b for a, b in _OPTIMISER.findall((_timm() / "optim" / "_optim_factory.py").read_text("utf-8"))})


@cache
def schedules() -> list[str]:
    """timm's learning rate schedules, "none" among them."""
    found: set[str] = set()
    for one, several, none in _SCHEDULE.findall((_timm() / "scheduler" / "scheduler_factory.py").read_text("utf-8")):
        found |= {one or none} if one or none else set(re.findall(r"'(\w+)'", several))
    return sorted(found)


@cache
def models() -> list[str]:
    """timm's models, without pretrained tags."""
    return sorted({n for file in (_timm() / "models").glob("*.py") for n in _MODEL.findall(file.read_text("utf-8"))})


def check_optimiser(name: str) -> None:
    """Raise ConfigError unless timm has the optimiser."""
    if name.lower().removeprefix(LOOKAHEAD) not in optimisers():
        raise ConfigError(f"recipe.optim.opt={name!r} is no optimiser of timm{nearest(name.lower(), optimisers())}")


def check_schedule(name: str) -> None:
    """Raise ConfigError unless timm has the schedule."""
    if name not in schedules():
        raise ConfigError(f"recipe.schedule.sched={name!r} is no schedule of timm{nearest(name, schedules())}")


def check_teacher(name: str) -> None:
    """Raise ConfigError unless timm has the model. A tag of its weights is not looked at: only the hub knows those."""
    base = name.removeprefix("timm/").partition(".")[0]
    if base not in models():
        raise ConfigError(f"recipe.distill.teacher={name!r} is no model of timm{nearest(base, models())}")
