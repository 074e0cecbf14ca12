"""The update plan: which parameters are trained, and of a matrix which columns or rows. Plain data, torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from algorithm.errors import PlanError
from algorithm.schema import nearest

Axis = Literal["cols", "rows"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """The trained columns (input features) or rows (output features) of a matrix: indices, ascending."""

    axis: Axis
    index: tuple[int, ...]


Choice = Literal["all"] | Slice


@dataclass
class UpdatePlan:
    """Parameter name -> "all" or a Slice; a parameter that is absent is frozen. `name` is for people."""

    parameters: dict[str, Choice] = field(default_factory=dict)
    name: str = ""

    # -- data ---------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """{"version": 1, "name": ..., "parameters": {name: "all" | {"cols": [...]} | {"rows": [...]}}}."""
        chosen = {n: c if c == "all" else {c.axis: list(c.index)} for n, c in self.parameters.items()}
        return {"version": 1, "name": self.name, "parameters": chosen}

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> UpdatePlan:
        """Inverse of `to_dict`. Raises PlanError."""
        if raw.get("version") != 1 or not isinstance(raw.get("parameters"), Mapping):
            raise PlanError("an update plan needs 'version: 1' and a mapping 'parameters'")
        parameters: dict[str, Choice] = {}
        for name, choice in raw["parameters"].items():
            if choice == "all":
                parameters[name] = "all"
            elif isinstance(choice, Mapping) and len(choice) == 1 and next(iter(choice)) in ("cols", "rows"):
                axis, index = next(iter(choice.items()))
                if not isinstance(index, list) or not all(type(i) is int for i in index):
                    raise PlanError(f"plan of {name!r}: {axis} must be a list of whole numbers")
                if sorted(set(index)) != index:
                    raise PlanError(f"plan of {name!r}: {axis} must be ascending, each index once")
                parameters[name] = Slice(axis, tuple(index))
            elif choice not in (None, "none"):
                raise PlanError(f"plan of {name!r}: expected all, none, cols or rows, found {str(choice)[:40]!r}")
        return UpdatePlan(parameters, str(raw.get("name", "")))

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @staticmethod
    def from_json(text: str) -> UpdatePlan:
        return UpdatePlan.from_dict(json.loads(text))

    def save(self, path: str | Path) -> None:
        """Write JSON, or YAML where the name ends in .yaml or .yml."""
        path = Path(path)
        if path.suffix in (".yaml", ".yml"):
            import yaml

            path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120))
        else:
            path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> UpdatePlan:
        """Read what `save` wrote. Raises PlanError."""
        path = Path(path)
        try:
            text = path.read_text()
            if path.suffix in (".yaml", ".yml"):
                import yaml

                raw = yaml.safe_load(text)
            else:
                raw = json.loads(text)
        except (OSError, ValueError) as error:
            raise PlanError(f"cannot read the plan {path}: {error}") from None
        if not isinstance(raw, Mapping):
            raise PlanError(f"the plan {path} is not a mapping")
        return UpdatePlan.from_dict(raw)

    # -- checks and figures -------------------------------------------------------------------------
    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raise PlanError unless every name is a parameter and every index is inside its matrix."""
        for name, choice in self.parameters.items():
            if name not in shapes:
                raise PlanError(f"the plan trains {name!r}, which the model does not have{nearest(name, list(shapes))}")
            if isinstance(choice, Slice):
                shape = shapes[name]
                if len(shape) != 2:
                    raise PlanError(f"the plan slices {name!r} of shape {shape}; only matrices have columns and rows")
                limit = shape[1] if choice.axis == "cols" else shape[0]
                bad = [i for i in choice.index if not 0 <= i < limit]
                if bad:
                    raise PlanError(f"plan of {name!r}: {choice.axis} index {bad[0]} is outside 0..{limit - 1}")

    def trained_shape(self, name: str, shape: Shape) -> Shape:
        """The shape of the trained part of a parameter (zeros elements where it is frozen)."""
        choice = self.parameters.get(name)
        if choice is None:
            return (0,)
        if isinstance(choice, Slice):
            k = len(choice.index)
            return (shape[0], k) if choice.axis == "cols" else (k, shape[1])
        return shape

    def trained_count(self, shapes: Mapping[str, Shape]) -> int:
        """How many numbers the plan trains."""
        return sum(math.prod(self.trained_shape(n, shapes[n])) for n in self.parameters)

    def describe(self) -> str:
        """One short line: the name, or counts of whole and sliced tensors."""
        sliced = sum(isinstance(c, Slice) for c in self.parameters.values())
        counts = f"{len(self.parameters) - sliced} tensors whole, {sliced} sliced"
        return f"{self.name} ({counts})" if self.name else counts
