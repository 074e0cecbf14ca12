"""The Program: the compiler's memory-planned IR. An ordered list of kernel calls over typed tensors.

Everything here is plain data. Operations are looked up in the registry (`compilation.ops`); the Program
itself knows only names, shapes, roles and offsets. It prints as stable text and serialises as JSON.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

DTYPE_BYTES = {"f32": 4, "i32": 4, "u16": 2, "u8": 1}


class Role(str, Enum):
    """What a tensor is for; decides which memory it lives in."""

    CONSTANT = "constant"      # flash: frozen weights, index lists
    TRAINED = "trained"        # RAM outside the arena: (the trained part of) a weight
    STATE = "state"            # RAM outside the arena: optimiser state
    INPUT = "input"            # arena, live from the start of the step: the image, the label
    OUTPUT = "output"          # RAM outside the arena: loss, logits; readable after the step
    ACTIVATION = "activation"  # arena
    GRADIENT = "gradient"      # arena
    SCRATCH = "scratch"        # arena, live during one call


ARENA_ROLES = {Role.INPUT, Role.ACTIVATION, Role.GRADIENT, Role.SCRATCH}
RAM_ROLES = {Role.TRAINED, Role.STATE, Role.OUTPUT}


@dataclass
class Tensor:
    """A typed value. `alias` names the tensor whose storage it takes over (in-place result)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    source: str = ""            # parameter name or module path in the PyTorch model
    alias: str | None = None
    offset: int | None = None   # bytes into the arena, for arena roles

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass
class Weight:
    """A weight matrix (rows = output features, columns = input features) in at most two parts.

    axis is None when one part holds the whole matrix; "cols" (or "rows") when `trained` holds the columns
    (rows) listed in `index`, ascending, and `frozen` holds all others in ascending order.
    """

    name: str
    shape: tuple[int, int]
    frozen: str | None          # tensor of role CONSTANT
    trained: str | None         # tensor of role TRAINED
    axis: str | None = None     # None | "cols" | "rows"
    index: list[int] = field(default_factory=list)

    @property
    def rest(self) -> list[int]:
        """The frozen columns (or rows), ascending."""
        chosen = set(self.index)
        n = self.shape[1] if self.axis == "cols" else self.shape[0]
        return [i for i in range(n) if i not in chosen]


@dataclass
class Call:
    """One kernel call. Slots are the operation's; an absent optional slot is simply not in the dict.

    inputs:  slot -> tensor name (or Weight name for a matrix slot)
    outputs: slot -> tensor name; for a gradient operation only the wanted ones
    updates: parameter slots whose gradient is applied in place (fused SGD) instead of being written out
    """

    op: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    attrs: dict[str, Any] = field(default_factory=dict)
    updates: list[str] = field(default_factory=list)
    scratch: str | None = None  # tensor of role SCRATCH
    where: str = ""             # module path in the PyTorch model


@dataclass
class Program:
    """A whole training step (or prediction): tensors, weights, calls in execution order."""

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    predict_calls: int = 0      # the first so many calls compute the logits
    meta: dict[str, Any] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> Tensor:
        if tensor.name in self.tensors:
            raise KeyError(f"tensor {tensor.name!r} exists already")
        self.tensors[tensor.name] = tensor
        return tensor

    def storage(self, name: str) -> str:
        """The root of the alias chain: the tensor that owns the bytes."""
        while (alias := self.tensors[name].alias) is not None:
            name = alias
        return name

    @property
    def arena_bytes(self) -> int:
        return max((t.offset + t.bytes for t in self.tensors.values()
                    if t.role in ARENA_ROLES and t.alias is None and t.offset is not None), default=0)

    def role_bytes(self, *roles: Role) -> int:
        return sum(t.bytes for t in self.tensors.values() if t.role in roles and t.alias is None)

    # -- text and JSON ------------------------------------------------------------------------------
    def text(self) -> str:
        """Stable, readable text: one line a tensor, one line a call."""
        lines = [f"program {self.name}"]
        for t in self.tensors.values():
            if t.role is Role.CONSTANT and t.dtype == "u16":
                continue
            place = f" @{t.offset}" if t.offset is not None else (f" = {t.alias}" if t.alias else "")
            lines.append(f"  {t.role.value:<10} {t.name}: {t.dtype}[{', '.join(map(str, t.shape))}]{place}")
        for w in self.weights.values():
            if w.axis:
                lines.append(f"  weight     {w.name}: {len(w.index)} of {w.axis} trained")
        for i, c in enumerate(self.calls):
            ins = ", ".join(f"{k}={v}" for k, v in c.inputs.items())
            outs = ", ".join(f"{k}={v}" for k, v in c.outputs.items())
            attrs = ", ".join(f"{k}={v}" for k, v in sorted(c.attrs.items()))
            upd = f" updates[{', '.join(c.updates)}]" if c.updates else ""
            lines.append(f"  {i:3d} {c.op}({ins}) -> ({outs}){upd} {{{attrs}}}")
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Program:
        raw = json.loads(text)
        program = Program(raw["name"], predict_calls=raw["predict_calls"], meta=raw["meta"])
        for t in raw["tensors"].values():
            program.add(Tensor(**{**t, "shape": tuple(t["shape"]), "role": Role(t["role"])}))
        program.weights = {k: Weight(**{**w, "shape": tuple(w["shape"])}) for k, w in raw["weights"].items()}
        program.calls = [Call(**c) for c in raw["calls"]]
        return program
