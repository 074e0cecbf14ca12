"""C expressions for the tensors, weights, sinks and calls of a placed Program, by walking the operation registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compilation.ops.base import Op, Site
from compilation.program import VIEW, Call, Program, Weight
from runtime.codegen.layout import Layout
from runtime.errors import CodegenError

TIR_PREFIX = "tir:"


@dataclass(frozen=True)
class CallCode:
    """One call in C. `fields`: designated initialisers (name, expression) of the argument struct; `text`: the call."""

    index: int
    op: str
    where: str
    fields: tuple[tuple[str, str], ...]
    text: str
    struct: str = ""            # argument struct type, empty for a TIR call


@dataclass(frozen=True)
class TirFunction:
    """A long-tail operation lowered from TIR: emitted once."""

    symbol: str
    prototype: str
    source: str


def c_float(value: float) -> str:
    """A float literal that reads back to the same float32."""
    text = f"{value:.9g}"
    return text + ("f" if any(c in text for c in ".en") else ".0f")


def c_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def site_of(program: Program, call: Call, op: Op) -> Site:
    """What the operation may know of this call (see `Site`)."""
    shapes, parts = {}, {}
    known = {s.name for s in op.inputs}
    for slot, name in call.inputs.items():
        if slot not in known:
            continue
        if name in program.weights:
            weight = program.weights[name]
            shapes[slot] = tuple(weight.shape)
            if weight.trained:
                parts[slot] = (weight.axis or "rows", len(weight.index) if weight.axis else weight.shape[0])
        elif name in program.tensors:
            shapes[slot] = tuple(program.tensors[name].shape)
        elif (table := table_values(program, name)) is not None:
            shapes[slot] = (len(table),)
    wants = frozenset(call.outputs) | {gradient_slot(slot) for slot in call.updates}
    return Site(shapes, call.attrs, wants, parts)


def gradient_slot(slot: str) -> str:
    return slot if slot.startswith("d_") else f"d_{slot}"


def table_values(program: Program, name: str) -> list[int] | None:
    """The index list named `<weight>.index` or `<weight>.rest`."""
    base, _, kind = name.rpartition(".")
    if kind in ("index", "rest") and base in program.weights:
        return list(getattr(program.weights[base], kind))
    return None


class Emitter:
    """Writes calls as C. Raises CodegenError naming the call that cannot be written."""

    def __init__(self, program: Program, layout: Layout, registry: Mapping[str, Op],
                 tables: Mapping[str, list[int]] | None = None) -> None:
        self.program, self.layout, self.registry = program, layout, registry
        self.extra_tables = tables or {}
        self.tir: dict[str, TirFunction] = {}

    # -- places ------------------------------------------------------------------------------------
    def pointer(self, name: str) -> str:
        """Address of a tensor (or of an index table) as a C address constant."""
        if name in self.extra_tables:
            return self.layout.table(list(self.extra_tables[name]), name)
        if (table := table_values(self.program, name)) is not None:
            return self.layout.table(table, name)
        if name not in self.program.tensors:
            raise CodegenError(f"no tensor {name}")
        root = self.program.storage(name)
        if root not in self.layout.places:
            tensor = self.program.tensors[root]
            raise CodegenError(f"tensor {name} ({tensor.role.value}, {tensor.element}) has no storage")
        block, offset = self.layout.places[root]
        if block == "weights":
            return f"WEIGHTS({offset})"
        return f"{block.upper()}({offset})"

    def part(self, weight: Weight, part: str) -> str | None:
        name = getattr(weight, part)
        if name is None:
            return None
        rows, cols = weight.shape
        chosen = weight.index if part == "trained" else weight.rest
        index = ""
        if weight.axis is not None:
            if not chosen:
                return None
            index = f", .{weight.axis} = {self.layout.table(chosen, weight.name)}"
            rows, cols = (rows, len(chosen)) if weight.axis == "cols" else (len(chosen), cols)
        return f"{{.w = {self.pointer(name)}{index}, .n_rows = {rows}, .n_cols = {cols}}}"

    def matrix(self, name: str) -> str:
        """vt_matrix initialiser of a weight (a plain tensor counts as one frozen part)."""
        weight = self.program.weights.get(name)
        if weight is None:
            shape = self.program.tensors[name].shape
            weight = Weight(name, (shape[0], shape[1]), frozen=name, trained=None)
        parts = [f".{p} = {text}" for p in ("frozen", "trained") if (text := self.part(weight, p))]
        return "{" + ", ".join([*parts, f".rows = {weight.shape[0]}", f".cols = {weight.shape[1]}"]) + "}"

    def sink(self, call: Call, slot: str) -> str:
        """vt_sink initialiser of the gradient of parameter `slot`: written out, or fused into the update."""
        d_slot = gradient_slot(slot)
        if d_slot in call.outputs:
            return f"{{.grad = {self.pointer(call.outputs[d_slot])}}}"
        trained = self.trained_of(call, slot)
        velocity = f"{trained}.velocity"
        state = f", .velocity = {self.pointer(velocity)}" if velocity in self.program.tensors else ""
        return f"{{.param = {self.pointer(trained)}{state}}}"

    def trained_of(self, call: Call, slot: str) -> str:
        """The TRAINED tensor behind a parameter slot that the call updates."""
        name = call.updates[slot]
        if name in self.program.weights:
            trained = self.program.weights[name].trained
            if trained is None:
                raise CodegenError(f"updates {slot}, but weight {name} has no trained part")
            return trained
        return self.program.storage(name)

    # -- calls -------------------------------------------------------------------------------------
    def call(self, index: int, call: Call) -> CallCode:
        try:
            if call.op == VIEW:
                return self.renaming(index, call)
            return self.tir_call(index, call) if call.op.startswith(TIR_PREFIX) else self.kernel_call(index, call)
        except CodegenError as error:
            raise CodegenError(f"call {index}, {call.op} ({call.where or 'no module path'}): {error}") from None

    def renaming(self, index: int, call: Call) -> CallCode:
        (source,), (result,) = call.inputs.values(), call.outputs.values()
        if self.pointer(source) != self.pointer(result):
            raise CodegenError(f"{result} is not stored where {source} is")
        return CallCode(index, call.op, call.where, (), "")

    def kernel_call(self, index: int, call: Call) -> CallCode:
        op = self.registry.get(call.op)
        if op is None:
            raise CodegenError(f"operation {call.op} is not in the registry: add a definition to compilation/ops")
        fields: dict[str, str] = {}
        kinds = {s.name: s.kind for s in (*op.inputs, *op.outputs)}
        own = {s for s in call.updates if gradient_slot(s) not in kinds}     # written as sinks below
        for slot in (s.name for s in op.inputs if s.name in call.inputs and s.name not in own):
            name = call.inputs[slot]
            fields[slot] = self.matrix(name) if kinds[slot] == "matrix" else self.pointer(name)
        updates = {gradient_slot(slot): slot for slot in call.updates}
        for output in op.outputs:
            is_sink = output.name.startswith("d_") and output.kind in ("vector", "matrix")
            if is_sink and (output.name in call.outputs or output.name in updates):
                fields[output.name] = self.sink(call, output.name.removeprefix("d_"))
                updates.pop(output.name, None)
            elif output.name in call.outputs:
                fields[output.name] = self.pointer(call.outputs[output.name])
        for slot in updates.values():       # the update itself as an operation: sgd(p, g -> updates p)
            fields[slot] = self.sink(call, slot)
        if call.scratch:
            fields["scratch"] = self.pointer(call.scratch)
        for attr, (kind, default) in op.attrs.items():
            fields[attr] = self.attribute(attr, kind, call.attrs.get(attr, default))
        for dim, value in op.dims(site_of(self.program, call, op)).items():
            fields[dim] = str(int(value))
        name = f"call_{index}"
        return CallCode(index, call.op, call.where, tuple(fields.items()), f"{op.symbol}(&{name}, step);",
                        struct=f"{op.symbol}_args")

    @staticmethod
    def attribute(name: str, kind: type, value: Any) -> str:
        if value is None:
            raise CodegenError(f"attribute {name} is not set and has no default")
        return c_float(float(value)) if kind is float else str(int(value))

    def tir_call(self, index: int, call: Call) -> CallCode:
        symbol, source = str(call.attrs["symbol"]), str(call.attrs["c_source"])
        arguments, types = [], []
        for const, slots in (("const ", call.inputs), ("", call.outputs)):
            for name in slots.values():
                weight = self.program.weights.get(name)
                tensor = name if weight is None else (weight.frozen if weight.trained is None else weight.trained)
                if tensor is None or (weight is not None and weight.axis is not None):
                    raise CodegenError(f"weight {name} is trained in part: plan all or none of it")
                types.append(f"{const}{self.program.tensors[tensor].element.c} *")
                arguments.append(f"{self.pointer(tensor)}")
        if call.attrs.get("work_bytes") and not call.scratch:
            raise CodegenError(f"{call.op} needs {call.attrs['work_bytes']} bytes of scratch and has none")
        if call.scratch:
            types.append("float *")
            arguments.append(f"(float *){self.pointer(call.scratch)}")
        types.append("const vt_step *")
        arguments.append("step")
        known = self.tir.get(symbol)
        if known is not None and known.source != source:
            raise CodegenError(f"two different functions are called {symbol}")
        self.tir[symbol] = TirFunction(symbol, f"void {symbol}({', '.join(types)});", source)
        return CallCode(index, call.op, call.where, (), f"{symbol}({', '.join(arguments)});")
