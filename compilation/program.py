"""The Program: the compiler's memory-planned IR. An ordered list of kernel calls over typed tensors.

Everything here is plain data. Tensors, weights and calls cannot be changed: a pass puts others in their place
(`Program.put`, `Program.replace_call`), so that Programs may share them and `Program.copy` is cheap. Calls name their
operations, which are looked up in the Program's own regions and in the registry (`Program.op`); else a Program knows only
names, shapes, roles and offsets. It prints as stable text and is written as JSON (`to_json`), which
`compilation.program_file` reads back and judges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, ClassVar, NoReturn

from compilation.ops import REGISTRY, Op
from compilation.types import INDEX, Element, Shape, Type

VIEW = "reshape"    # the operation that only gives a tensor another shape: the same bytes, no code
TEXT_LIMIT = 40     # characters of an attribute that `Program.text` shows; of longer ones it says how long they are


STOP = "stop_gradient"      # the attribute of a reshape that no gradient passes, as PyTorch's detach


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


class Frozen(dict[str, Any]):
    """A mapping that cannot be changed; what it holds is frozen, too. `mapping | {...}` gives a new, plain dict."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__({k: frozen(v) for k, v in dict(items).items()})

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("parts of a Program cannot be changed: make another with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type[Frozen], tuple[dict[str, Any]]]:
        return Frozen, (dict(self),)


def frozen(value: Any) -> Any:
    """The value with its lists as tuples and its dicts as `Frozen`, all the way down."""
    if isinstance(value, Frozen):
        return value
    if isinstance(value, dict):
        return Frozen(value)
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


class Plain:
    """Freezes the lists and mappings that a dataclass is given."""

    holds: ClassVar[tuple[str, ...]]    # the fields that may be such

    def __post_init__(self) -> None:
        for name in self.holds:
            value = getattr(self, name)
            if not isinstance(value, Frozen):
                object.__setattr__(self, name, frozen(value))


@dataclass(frozen=True)
class Tensor(Plain):
    """A typed value. `alias` names the tensor whose storage it takes over (in-place result)."""

    holds = ()
    name: str
    type: Type
    role: Role
    source: str = ""            # parameter name or module path in the PyTorch model
    alias: str | None = None
    offset: int | None = None   # bytes into the arena, for arena roles
    first: int = 0              # of a piece of a parameter: its first row (element of a vector) there (see `pieces`)

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def element(self) -> Element:
        return self.type.element

    @property
    def bytes(self) -> int:
        return self.type.bytes


@dataclass(frozen=True)
class Weight(Plain):
    """A weight matrix (rows = output features, columns = input features) in at most two parts.

    axis is None when one part holds the whole matrix; "cols" (or "rows") when `trained` holds the columns
    (rows) listed in `index`, ascending, and `frozen` holds all others in ascending order.
    """

    holds = ("shape", "index")
    name: str
    shape: tuple[int, int]
    frozen: str | None          # tensor of role CONSTANT
    trained: str | None         # tensor of role TRAINED
    axis: str | None = None     # None | "cols" | "rows"
    index: tuple[int, ...] = ()

    @property
    def rest(self) -> tuple[int, ...]:
        """The frozen columns (or rows), ascending."""
        chosen = set(self.index)
        n = self.shape[1] if self.axis == "cols" else self.shape[0]
        return tuple(i for i in range(n) if i not in chosen)


@dataclass(frozen=True)
class Call(Plain):
    """One kernel call. Slots are the operation's; an absent optional slot is simply not in the mapping.

    inputs:  slot -> tensor name (or Weight name for a matrix slot)
    outputs: slot -> tensor name; for a gradient operation only the wanted ones
    updates: parameter slot -> tensor (or Weight) whose gradient is applied in place (fused SGD) instead of written out
    """

    holds = ("inputs", "outputs", "attrs", "updates")
    op: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    attrs: Mapping[str, Any] = field(default_factory=Frozen)
    updates: Mapping[str, str] = field(default_factory=Frozen)
    scratch: str | None = None  # tensor of role SCRATCH
    where: str = ""             # module path in the PyTorch model

    def renamed(self, names: Mapping[str, str]) -> Call:
        """The same call on other tensors: old name -> new name; without scratch, which belongs to one call."""
        return replace(self, inputs={s: names.get(t, t) for s, t in self.inputs.items()},
                       outputs={s: names.get(t, t) for s, t in self.outputs.items()}, scratch=None)


@dataclass
class Program:
    """A whole training step (or prediction): tensors, weights, calls in execution order, and what they mean.

    image, label, logits, loss: the tensors that a caller of the step meets; "" where there is none (yet).
    constants: the values, in order, of CONSTANT tensors that are no parameters of the model.
    regions: the operations that were made for this Program, by name (`compilation.regions`).
    """

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    predict_calls: int = 0      # the first so many calls compute the logits
    image: str = ""
    label: str = ""
    logits: str = ""
    loss: str = ""
    momentum: float = 0.0       # of the SGD on the device
    constants: dict[str, tuple[float, ...]] = field(default_factory=dict)
    regions: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> Program:
        """A Program that can be changed without changing this one; the immutable parts are shared."""
        return replace(self, tensors=dict(self.tensors), weights=dict(self.weights), calls=list(self.calls),
                       constants=dict(self.constants), regions=dict(self.regions))

    # -- changing it ----------------------------------------------------------------------------------
    def add(self, tensor: Tensor) -> Tensor:
        if tensor.name in self.tensors:
            raise KeyError(f"tensor {tensor.name!r} exists already")
        self.tensors[tensor.name] = tensor
        return tensor

    def put(self, name: str, **changes: Any) -> Tensor:
        """Replace a tensor by one with other fields (type, role, alias, offset ...)."""
        self.tensors[name] = replace(self.tensors[name], **changes)
        return self.tensors[name]

    def put_shape(self, name: str, shape: Iterable[int]) -> Tensor:
        """Replace a tensor by one of another shape, the element as before."""
        return self.put(name, type=self.tensors[name].type.shaped(shape))

    def position(self, call: Call) -> int:
        """Where this very call stands."""
        return next(i for i, c in enumerate(self.calls) if c is call)

    def replace_call(self, old: Call, *new: Call) -> None:
        """Put other calls (or none) in the place of one."""
        at = self.position(old)
        self.calls[at:at + 1] = new

    # -- asking it ------------------------------------------------------------------------------------
    def has_op(self, call: Call) -> bool:
        """Whether the call's operation has a definition: not so of views and of the long tail."""
        return call.op in REGISTRY or call.op in self.regions

    def op(self, call: Call) -> Op:
        """The call's operation: one of the registry, or a region of this Program."""
        return REGISTRY[call.op] if call.op in REGISTRY else self.regions[call.op]

    def chain(self, call: Call) -> str:
        """The operations that a region is made of, in order; of any other call its own."""
        return " ".join(c.op for c in self.regions[call.op].definition.calls) if call.op in self.regions else call.op

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
        """Stable, readable text: one line a tensor, one line a call; then what each region is made of."""
        lines = [f"program {self.name}"]
        for t in self.tensors.values():
            if t.role is Role.CONSTANT and t.element == INDEX:
                continue
            place = f" @{t.offset}" if t.offset is not None else (f" = {t.alias}" if t.alias else "")
            lines.append(f"  {t.role.value:<10} {t.name}: {t.type}{place}")
        for w in self.weights.values():
            if w.axis:
                lines.append(f"  weight     {w.name}: {len(w.index)} of {w.axis} trained")
        lines += _calls(self.calls)
        for name, region in self.regions.items():
            lines += [f"  {name} -> ({', '.join(region.results)})", *(f"  {c}" for c in _calls(region.definition.calls))]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Every field by its name, tensors and weights by theirs, and a digest of it all (`program_file` reads it)."""
        return json.dumps({**self._members(), "digest": self.digest()}, indent=1)

    def digest(self) -> str:
        """Names the content, order included, however it is laid out in a file."""
        return hashlib.sha256(json.dumps(self._members()).encode()).hexdigest()

    def _members(self) -> dict[str, Any]:
        regions = {name: region.to_json() for name, region in self.regions.items()}
        return {**{f.name: _jsonable(getattr(self, f.name)) for f in fields(self)}, "regions": regions}


def _calls(calls: Iterable[Call]) -> Iterable[str]:
    for i, c in enumerate(calls):
        attrs = ", ".join(f"{k}={_short(v)}" for k, v in sorted(c.attrs.items()))
        updates = f" updates[{_pairs(c.updates)}]" if c.updates else ""
        yield f"  {i:3d} {c.op}({_pairs(c.inputs)}) -> ({_pairs(c.outputs)}){updates} {{{attrs}}}"


def _pairs(slots: Mapping[str, str]) -> str:
    return ", ".join(f"{k}={v}" for k, v in slots.items())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= TEXT_LIMIT else f"<{len(text)} characters>"


def _jsonable(value: Any) -> Any:
    if isinstance(value, Element):
        return value.name
    if isinstance(value, Plain | Type):
        return {f.name: _jsonable(getattr(value, f.name)) for f in fields(value)}  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_jsonable(v) for v in value]
    return value
