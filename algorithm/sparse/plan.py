"""The update plan: which parameters are trained, and of a matrix which columns or rows. Plain data, torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from algorithm.errors import CheckpointError, PlanError
from algorithm.schema import nearest
from algorithm.textfile import read_mapping

VERSION = 1
_KEYS = ["version", "name", "gram_rank", "parameters"]

GRAM_A, GRAM_B = "gram_a", "gram_b"     # A (..., N, r) and B (..., r, D) of a Gram residual

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
    """Parameter name -> "all" or a Slice; a parameter that is absent is frozen. `name` is for people.

    gram_rank: the rank at which the Gram residuals are trained, at most the model's; None = the model's. Of a residual that
    is still a no-op, the first columns of A and rows of B are a residual of a lower rank.
    """

    parameters: dict[str, Choice] = field(default_factory=dict)
    name: str = ""
    gram_rank: int | None = None

    # -- data ---------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """{"version": 1, "name": ..., "parameters": {name: "all" | {"cols": [...]} | {"rows": [...]}}}; and, where it
        has one, "gram_rank"."""
        chosen = {n: c if c == "all" else {c.axis: list(c.index)} for n, c in self.parameters.items()}
        rank = {} if self.gram_rank is None else {"gram_rank": self.gram_rank}
        return {"version": VERSION, "name": self.name, **rank, "parameters": chosen}

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> UpdatePlan:
        """Inverse of `to_dict`. Raises PlanError."""
        unknown = [k for k in raw if k not in _KEYS]
        if unknown:
            raise PlanError(f"unknown key {unknown[0]!r} in the update plan{nearest(str(unknown[0]), _KEYS)}")
        if type(raw.get("version")) is not int or raw["version"] != VERSION:
            raise PlanError(f"an update plan needs 'version: {VERSION}', found {str(raw.get('version', 'none'))[:40]!r}")
        if not isinstance(raw.get("parameters"), Mapping):
            raise PlanError("an update plan needs a mapping 'parameters': name -> all, none, {cols: [...]} or {rows: [...]}")
        if not isinstance(raw.get("name", ""), str):
            raise PlanError("the 'name' of an update plan must be text")
        rank = raw.get("gram_rank")
        if rank is not None and (type(rank) is not int or rank < 1):
            raise PlanError(f"gram_rank of an update plan must be a whole number above 0, found {str(rank)[:40]!r}")
        parameters: dict[str, Choice] = {}
        for name, choice in raw["parameters"].items():
            if not isinstance(name, str):
                raise PlanError(f"plan of {name!r}: a parameter's name must be text")
            if choice == "all":
                parameters[name] = "all"
            elif isinstance(choice, Mapping) and len(choice) == 1 and next(iter(choice)) in ("cols", "rows"):
                axis, index = next(iter(choice.items()))
                if not isinstance(index, list) or not all(type(i) is int for i in index):
                    raise PlanError(f"plan of {name!r}: {axis} must be a list of whole numbers")
                if not index:
                    raise PlanError(f"plan of {name!r}: {axis} is empty; write none, or leave the name out")
                if sorted(set(index)) != index or index[0] < 0:
                    raise PlanError(f"plan of {name!r}: {axis} must be ascending, from 0 on, each index once")
                parameters[name] = Slice(axis, tuple(index))
            elif choice not in (None, "none"):
                raise PlanError(f"plan of {name!r}: expected all, none, cols or rows, found {str(choice)[:40]!r}")
        return UpdatePlan(parameters, raw.get("name", ""), rank)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @staticmethod
    def from_json(text: str) -> UpdatePlan:
        """Inverse of `to_json`."""
        return UpdatePlan.from_dict(json.loads(text))

    def save(self, path: str | Path) -> None:
        """Write JSON, or YAML where the name ends in .yaml or .yml. Raises CheckpointError where it cannot be written."""
        path = Path(path)
        if path.suffix.lower() in (".yaml", ".yml"):
            import yaml

            text = yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120)
        else:
            text = json.dumps(self.to_dict(), indent=1) + "\n"
        try:
            path.write_text(text)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None

    @staticmethod
    def load(path: str | Path) -> UpdatePlan:
        """Read what `save` wrote; by a name that ends in .json as JSON, else as YAML. Raises PlanError naming the file."""
        raw = read_mapping(Path(path), "update plan", PlanError)
        try:
            return UpdatePlan.from_dict(raw)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

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
        if self.gram_rank is not None and name.endswith((GRAM_A, GRAM_B)):
            return (*shape[:-1], self.gram_rank) if name.endswith(GRAM_A) else (*shape[:-2], self.gram_rank, shape[-1])
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
