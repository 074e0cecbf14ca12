"""The judge of Programs, run between passes: what every well-formed Program satisfies, at whatever stage it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

from compilation.errors import VerificationError
from compilation.ops import REGISTRY
from compilation.ops.base import Op, Site, Slot
from compilation.passes.rewrite import site
from compilation.pieces import apart
from compilation.program import STOP, VIEW, Call, Program, Role, Tensor
from compilation.types import F32, INDICES, Type

RELAX, TIR = "relax:", "tir:"       # the long tail, before and after it is lowered
TAIL_ATTRS: dict[str, dict[str, type]] = {
    RELAX: {"relax": str}, TIR: {"symbol": str, "c_source": str, "work_bytes": int, "macs": int}}
OWNED_ELSEWHERE = {Role.CONSTANT, Role.TRAINED, Role.STATE, Role.INPUT}
MADE = {Role.ACTIVATION, Role.GRADIENT, Role.OUTPUT}
MOVABLE = {Role.ACTIVATION, Role.GRADIENT}
GRADIENTS = {op.gradient: op.name for op in REGISTRY.values() if op.gradient}   # gradient operation -> its forward one


def verify(program: Program, after: str = "") -> None:
    """Check names, slots, attributes, shapes and types, the order of definition and use, in-place results, and that
    every trained tensor is updated once, by its own gradient, after its last reader; and the definitions of its regions.

    Raises VerificationError naming the pass (`after`), the call and the tensor.
    """
    prefix = f"after {after}: " if after else ""
    for name, region in program.regions.items():
        if name not in _SOUND:
            _Verifier(region.definition, f"{prefix}region {name}, ", part=True).definition(region.results)
            _SOUND.add(name)
    _Verifier(program, prefix).run()


_SOUND: set[str] = set()        # the regions whose definitions were found right: the name stands for the content


class _Verifier:
    """One walk over the calls. `at` says which one is judged. part: of a step, whose other calls are elsewhere."""

    def __init__(self, program: Program, prefix: str, part: bool = False) -> None:
        self.program, self.prefix, self.at, self.part = program, prefix, "", part
        self.roots: dict[str, str] = {}
        self.defined: set[str] = set()
        self.alive: dict[str, set[str]] = {}       # storage -> the tensors whose values it holds now
        self.updated: dict[str, int] = {}          # trained tensor -> call

    def fail(self, text: str) -> NoReturn:
        raise VerificationError(f"{self.prefix}{self.at}{text}")

    def run(self) -> None:
        self._tensors()
        self._weights()
        for i, call in enumerate(self.program.calls):
            self.at = f"call {i} {call.op} ({call.where or 'top level'}): "
            self._call(i, call)
        self.at = ""
        for t in self.program.tensors.values():
            if t.role is Role.TRAINED and t.name not in self.updated:
                self.fail(f"{t.name} is trained, but no call updates it")

    def definition(self, results: Sequence[str]) -> None:
        """Of a region: calls of leaves alone, which make its results."""
        self.run()
        for i, call in enumerate(self.program.calls):
            if call.op not in REGISTRY or not REGISTRY[call.op].leaf or call.scratch:
                self.fail(f"call {i} {call.op} is no call of a leaf on whole tensors")
        made = {t for c in self.program.calls for t in c.outputs.values()}
        if not results or not made.issuperset(results) or len(set(results)) < len(results):
            self.fail(f"its calls do not make the results {', '.join(results) or '(none)'}")

    # -- data ---------------------------------------------------------------------------------------
    def _tensors(self) -> None:
        for name, t in self.program.tensors.items():
            if t.name != name:
                self.fail(f"the tensor under {name} calls itself {t.name}")
            if any(n < 1 for n in t.shape):
                self.fail(f"{name} is {t.type}: the shape has no elements")
            self.roots[name] = self._root(t)
            if t.alias and t.role not in MOVABLE:
                self.fail(f"{name} ({t.role.value}) shares storage with {t.alias}: only results in the arena may")
            if t.role in OWNED_ELSEWHERE:
                self.defined.add(name)
                self.alive[name] = {name}
            if t.role is Role.STATE:
                trained = self.program.tensors.get(name.removesuffix(".velocity"))
                if trained is None or trained.role is not Role.TRAINED or trained.shape != t.shape:
                    self.fail(f"{name} is no velocity of a trained tensor of shape {list(t.shape)}")
            if t.role is Role.TRAINED and bool(self.program.momentum) != (f"{name}.velocity" in self.program.tensors):
                self.fail(f"{name} is trained with momentum {self.program.momentum:g}, "
                          f"{'but has no' if self.program.momentum else 'yet has a'} velocity")

        if wrong := apart(self.program):
            self.fail(wrong)
        for name, values in self.program.constants.items():
            constant = self.program.tensors.get(name)
            if constant is None or constant.role is not Role.CONSTANT or math.prod(constant.shape) != len(values):
                self.fail(f"there are {len(values)} values for {name}, which is no constant of that size")

    def _root(self, tensor: Tensor) -> str:
        seen = [tensor.name]
        while (alias := self.program.tensors[seen[-1]].alias) is not None:
            if alias not in self.program.tensors:
                self.fail(f"{seen[-1]} shares storage with the unknown tensor {alias}")
            if alias in seen:
                self.fail(f"{tensor.name} shares storage in a circle: {' -> '.join([*seen, alias])}")
            seen.append(alias)
        return seen[-1]

    def _weights(self) -> None:
        for name, w in self.program.weights.items():
            self.at = f"weight {name}: "
            rows, cols = w.shape
            size = cols if w.axis == "cols" else rows
            if w.axis is None:
                if w.index or (w.frozen is None) == (w.trained is None):
                    self.fail("an undivided weight has one part and no index list")
                wanted: dict[str, tuple[int, ...]] = dict.fromkeys(("frozen", "trained"), w.shape)
            else:
                if not _ascending(w.index, size) or size > INDICES:
                    self.fail(f"the trained {w.axis} must be ascending, without repeats and within 0..{size - 1}")
                k = len(w.index)
                wanted = {"frozen": (rows, cols - k), "trained": (rows, k)} if w.axis == "cols" else {
                    "frozen": (rows - k, cols), "trained": (k, cols)}
            for part, role in (("frozen", Role.CONSTANT), ("trained", Role.TRAINED)):
                tensor = getattr(w, part)
                if tensor is None and w.axis is None:
                    continue
                t = self.program.tensors.get(tensor or "")
                if t is None:
                    self.fail(f"its {part} part is the unknown tensor {tensor}")
                if t.role is not role or t.element != F32 or t.type.count != math.prod(wanted[part]):
                    self.fail(f"its {part} part {t.name} is {t.role.value} {t.type}, not {role.value} "
                              f"{Type(wanted[part])}")
        self.at = ""

    # -- calls --------------------------------------------------------------------------------------
    def _call(self, number: int, call: Call) -> None:
        op = self.program.op(call) if self.program.has_op(call) else None
        tail = next((k for k in TAIL_ATTRS if call.op.startswith(k)), None)
        if op is None and tail is None and call.op != VIEW:
            self.fail("there is no such operation")
        for slot, name in call.inputs.items():
            declared = op.slots.get(slot) if op is not None else Slot(slot)
            if declared is None:
                self.fail(f"it has no slot {slot}")
            self._read(slot, name, in_parts=declared.kind == "matrix" or (op is not None and slot == op.own_update))
        where: Site | None = None
        if op is not None:
            self._slots(op, call)
            self._attributes(call, {n: kind for n, (kind, _) in op.attrs.items()})
            where = site(self.program, call)
            self._kernel(op, call, where)
        elif tail is None:
            self._exactly(call, ["x"], ["y"], {k: int for k in call.attrs if k == STOP})
        elif tail == RELAX:
            self._exactly(call, list(call.inputs), ["y"], TAIL_ATTRS[RELAX])
        else:
            self._exactly(call, [f"in{i}" for i in range(len(call.inputs))], ["out0"], TAIL_ATTRS[TIR])
            self._lowered(call)
        self._make(op, call, where)
        for slot, name in call.updates.items():
            self._update(op, call, slot, name, where)
            self.updated[self._trained(name)] = number

    def _exactly(self, call: Call, inputs: list[str], outputs: list[str], attrs: dict[str, type]) -> None:
        """The slots, in order, and the attributes of a call that is no operation of the registry."""
        for kind, found, known in (("input", call.inputs, inputs), ("output", call.outputs, outputs),
                                   ("update", call.updates, [])):
            if list(found) != known:
                self.fail(f"{kind} slots are {', '.join(found) or 'none'}, not {', '.join(known) or 'none'}")
        self._attributes(call, attrs)

    def _lowered(self, call: Call) -> None:
        symbol, source = call.attrs["symbol"], call.attrs["c_source"]
        if call.op != TIR + symbol or not symbol.isidentifier() or f"void {symbol}(" not in source:
            self.fail(f"its C source does not define {call.op.removeprefix(TIR)}")
        if call.attrs["work_bytes"] < 0 or call.attrs["macs"] < 0:
            self.fail("work_bytes and macs are counts: not below 0")

    def _attributes(self, call: Call, types: dict[str, type]) -> None:
        for name in (*types, *call.attrs):
            if name not in types:
                self.fail(f"it has no attribute {name}")
            if name not in call.attrs:
                self.fail(f"attribute {name} is absent")
            value = call.attrs[name]
            right = isinstance(value, int | float) if types[name] is float else isinstance(value, types[name])
            if not right or isinstance(value, bool) or (types[name] is float and not math.isfinite(value)):
                self.fail(f"attribute {name} is {value!r}, not of type {types[name].__name__}")

    def _slots(self, op: Op, call: Call) -> None:
        """Declared slots only, and all that are required."""
        wants = set(call.outputs) | {f"d_{u}" for u in call.updates}
        for s in op.inputs:
            needed = not s.optional and (s.name not in op.needed_for or set(op.needed_for[s.name]) & wants)
            if needed and s.name not in call.inputs:
                self.fail(f"required slot {s.name} is absent")
        made = {s.name for s in op.outputs}
        for name in (*call.inputs, *call.outputs):
            if (name in made) != (name in call.outputs) or name not in op.slots:
                self.fail(f"it has no slot {name} there")
        for name in call.updates:
            if name not in op.updatable() or f"d_{name}" in call.outputs:
                self.fail(f"it cannot update slot {name}")
        gradients = any(s.name.startswith("d_") for s in op.outputs)
        absent = [s.name for s in op.outputs if s.name not in call.outputs and not s.optional]
        if (not wants) if gradients else absent:
            self.fail(f"it makes no {absent[0] if absent else 'result'}")
        if op.own_update and op.own_update not in call.updates:
            self.fail(f"it updates no {op.own_update}")

    def _kernel(self, op: Op, call: Call, where: Site) -> None:
        """Attributes in their legal ranges, and shapes and types that fit the operation and each other."""
        for name, legal in op.legal.items():
            if name in call.attrs and call.attrs[name] not in legal:
                self.fail(f"attribute {name} is {call.attrs[name]}, which the kernel is not written for")
        for slot, name in call.inputs.items():
            declared = op.slots[slot]
            t = self.program.tensors.get(name)
            if t is None:
                continue                        # a weight in two parts, judged with the weights
            if t.element != declared.element:
                self.fail(f"slot {slot} takes {declared.element}, but {name} is {t.element}")
            if declared.parameter and t.role not in (Role.CONSTANT, Role.TRAINED):
                self.fail(f"slot {slot} takes a parameter, but {name} is {t.role.value}")
            if declared.kind == "index":
                self._index(name, where.shapes[declared.of][-1])
            if declared.kind == "tile" and declared.of:
                self._cut(name, call.inputs.get(declared.of, ""))
        self._guard(op.bind, where)
        self._guard(op.check, where)
        if not self.part and not self._has_forward(op, call):
            self.fail(f"no {GRADIENTS.get(op.name, 'other call')} has the parameters that it makes gradients for")

    def _guard(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
            self.fail(f"shapes or attributes do not fit: {error}")

    def _index(self, name: str, size: int) -> None:
        listed = self.program.constants.get(name, ())
        if self.program.tensors[name].role is not Role.CONSTANT or (len(listed),) != self.program.tensors[name].shape:
            self.fail(f"the index list {name} has {len(listed)} values for {self.program.tensors[name].shape}")
        if not _ascending(listed, size):
            self.fail(f"the index list {name} must be ascending, without repeats and within 0..{size - 1}")

    def _cut(self, name: str, weight: str) -> None:
        """The tensor has only the columns in which the weight is trained: it was cut by the same list."""
        made = next((c for c in self.program.calls if name in c.outputs.values()), None)
        listed = self.program.constants.get(made.inputs.get("index", ""), ()) if made else ()
        if weight not in self.program.weights or tuple(listed) != self.program.weights[weight].index:
            self.fail(f"{name} does not hold the trained columns of {weight}")

    def _has_forward(self, op: Op, call: Call) -> bool:
        """Whether a call has the parameters in the slots of which this one, if it is a gradient, makes gradients for. Of a
        region's gradient any: slots are named alike in both, and where a region of one call was made of either, as well."""
        forward = GRADIENTS.get(op.name)
        if forward is None and not (call.op in self.program.regions and self._differentiates(call)):
            return True
        fed = {s.name: call.inputs[s.name] for s in op.inputs if s.kind not in ("tile", "tensor") and s.name in call.inputs}
        fed |= call.updates
        return any((name == forward if forward else not differentiates)
                   and all(inputs.get(s) == t for s, t in fed.items())
                   for name, inputs, differentiates in self._readers.get(next(iter(fed.values()), ""), ()))

    @staticmethod
    def _differentiates(call: Call) -> bool:
        return bool(call.updates) or any(s.startswith("d_") for s in call.outputs)

    @cached_property
    def _readers(self) -> dict[str, list[tuple[str, Mapping[str, str], bool]]]:
        """Tensor ("": any or none) -> the calls that read it, those of regions as their definitions say, too: operation,
        inputs, whether it differentiates."""
        found: dict[str, list[tuple[str, Mapping[str, str], bool]]] = {}
        for call in self.program.calls:
            inner = self.program.regions[call.op].definition.calls if call.op in self.program.regions else ()
            for c in (call, *inner):
                inputs = {s: call.inputs.get(t, t) for s, t in c.inputs.items()} if c is not call else c.inputs
                for t in {"", *inputs.values()}:
                    found.setdefault(t, []).append((c.op, inputs, self._differentiates(c)))
        return found

    # -- reading, making, updating ----------------------------------------------------------------------
    def _read(self, slot: str, name: str, in_parts: bool) -> None:
        weight = self.program.weights.get(name)
        if weight is not None and (in_parts or name not in self.program.tensors):
            if not in_parts:
                self.fail(f"slot {slot} reads {name}, which is trained in part and has no tensor of its own")
            names = [p for p in (weight.frozen, weight.trained) if p]
        else:
            names = [name]
        for part in names:
            t = self.program.tensors.get(part)
            if t is None:
                self.fail(f"slot {slot} names the unknown tensor {part}")
            if part not in self.defined:
                self.fail(f"slot {slot} reads {part} before any call makes it")
            root = self.roots[part]
            if part not in self.alive[root]:
                self.fail(f"slot {slot} reads {part}, whose storage {', '.join(sorted(self.alive[root]))} took over")
            if root in self.updated:
                self.fail(f"slot {slot} reads {name} after call {self.updated[root]} updated it")
            if t.role in (Role.STATE, Role.SCRATCH):
                self.fail(f"slot {slot} reads {part}, which is {t.role.value}")

    def _make(self, op: Op | None, call: Call, where: Site | None) -> None:
        inferred = self._guard(op.infer, where) if op is not None else {}
        derived = any(t.role is Role.GRADIENT for n in call.inputs.values() if (t := self.program.tensors.get(n)))
        for slot, name in call.outputs.items():
            t = self.program.tensors.get(name)
            if t is None:
                self.fail(f"output {slot} names the unknown tensor {name}")
            if t.role not in MADE and name not in self.defined:
                self.fail(f"output {slot} makes {name}, which is {t.role.value}")
            if name in self.defined:
                self.fail(f"output {slot} makes {name} a second time")
            if (derived or slot.startswith("d_")) and t.role is not Role.GRADIENT:
                self.fail(f"output {slot} makes {name}, a gradient, which calls itself {t.role.value}")
            if op is not None:
                made = self._guard(inferred.__getitem__, slot)
                if made != t.type:
                    self.fail(f"{slot} is {made} by the operation's rule, but {name} is {t.type}")
            self.defined.add(name)
            if call.op == VIEW:
                self._view(call, t)
            elif t.alias is not None:
                self._in_place(op, call, slot, t, where)
            else:
                self.alive[name] = {name}

    def _view(self, call: Call, result: Tensor) -> None:
        source = self.program.tensors[call.inputs["x"]]
        if result.alias not in (None, source.name):
            self.fail(f"{result.name} is a view of {source.name}, but shares storage with {result.alias}")
        if source.type.count != result.type.count or source.element != result.element:
            self.fail(f"{result.name} {result.type} has other elements than {source.name} {source.type}")
        self.alive.setdefault(self.roots[result.name], set()).add(result.name)

    def _in_place(self, op: Op | None, call: Call, slot: str, result: Tensor, where: Site | None) -> None:
        source = self.program.tensors[result.alias or ""]
        root = self.program.tensors[self.roots[source.name]]
        into = self._guard(op.may_alias, where).get(slot) if op is not None else None
        if call.inputs.get(into or "") != source.name:
            self.fail(f"{result.name} may not take over the storage of {source.name} here")
        if sum(self.roots.get(n) == root.name for n in call.inputs.values()) > 1:
            self.fail(f"{result.name} takes over the storage of {source.name}, which another slot reads, too")
        if root.role not in MOVABLE or result.bytes != root.bytes:
            self.fail(f"{result.name} does not fit the storage of {root.name} ({root.role.value}, {root.bytes} bytes)")
        self.alive[root.name] = {result.name}

    def _trained(self, name: str) -> str:
        weight = self.program.weights.get(name)
        return (weight.trained or "") if weight else name

    def _update(self, op: Op | None, call: Call, slot: str, name: str, where: Site | None) -> None:
        t = self.program.tensors.get(self._trained(name))
        if t is None or t.role is not Role.TRAINED:
            self.fail(f"it updates {name}, which is {'not trained' if t or name in self.program.weights else 'unknown'}")
        if call.inputs.get(slot, name) != name:
            self.fail(f"it reads {call.inputs[slot]} in slot {slot}, but updates {name}")
        if t.name in self.updated:
            self.fail(f"it updates {name}, which call {self.updated[t.name]} has updated")
        assert op is not None and where is not None
        if slot == op.own_update:
            shape = next(where.shapes[s.name] for s in op.inputs if s.name != slot)
        else:
            shape = self._guard(self._guard(op.infer, where).__getitem__, f"d_{slot}").shape
        if math.prod(shape) != math.prod(t.shape):
            self.fail(f"it updates {name} of shape {list(t.shape)} by a gradient of shape {list(shape)}")


def _ascending(index: Sequence[float], size: int) -> bool:
    return bool(index) and list(index) == sorted(set(index)) and 0 <= index[0] <= index[-1] < min(size, INDICES)
