"""C expressions for the tensors, weights, sinks and calls of a placed Program, by walking the operation registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compilation.ops.base import Op, Site
from compilation.passes.rewrite import shape_of, site
from compilation.program import VIEW, Call, Program, Weight
from runtime.codegen.layout import Layout
from runtime.codegen.literals import attribute, gradient_slot
from runtime.codegen.regions import RegionCode, RegionSlots, region_code
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
        self.regions: dict[object, RegionCode] = {}     # what a function says -> it

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

    def window(self, name: str) -> str:
        """vt_in or vt_out initialiser of a whole tensor: rows of its last axis, one after another."""
        return f"{{.at = {self.pointer(name)}, .row = {self.program.tensors[name].shape[-1]}, .col = 1}}"

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
            if call.op in self.program.regions:
                return self.region_call(index, call)
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
        self.require_fit(op, call)
        fields: dict[str, str] = {}
        write = {"matrix": self.matrix, "tile": self.window}
        own = {s for s in call.updates if gradient_slot(s) not in op.slots}     # written as sinks below
        for slot in (s for s in op.inputs if s.name in call.inputs and s.name not in own):
            fields[slot.name] = write.get(slot.kind, self.pointer)(call.inputs[slot.name])
        updates = {gradient_slot(slot): slot for slot in call.updates}
        for output in op.outputs:
            if output.sink and (output.name in call.outputs or output.name in updates):
                fields[output.name] = self.sink(call, output.name.removeprefix("d_"))
                updates.pop(output.name, None)
            elif output.name in call.outputs:
                fields[output.name] = write.get(output.kind, self.pointer)(call.outputs[output.name])
        for parameter in updates.values():  # the update itself as an operation: sgd(p, g -> updates p)
            fields[parameter] = self.sink(call, parameter)
        if call.scratch:
            fields["scratch"] = self.pointer(call.scratch)
        for attr, (kind, default) in op.fields.items():
            fields[attr] = attribute(attr, kind, call.attrs.get(attr, default))
        for dim, value in op.dims(site_of(self.program, call, op)).items():
            fields[dim] = str(int(value))
        name = f"call_{index}"
        return CallCode(index, call.op, call.where, tuple(fields.items()), f"{op.symbol}(&{name}, step);",
                        struct=f"{op.symbol}_args")

    def region_call(self, index: int, call: Call) -> CallCode:
        """A call of the function that the region has under this schedule; equal ones are one function."""
        op, where = self.program.op(call), site(self.program, call)
        shapes = {s: shape_of(self.program, t) for s, t in {**call.inputs, **call.outputs, **call.updates}.items()}
        present, momentum = {*call.inputs, *call.outputs}, bool(self.program.momentum)
        slots = RegionSlots.of(op.inputs, op.outputs, present, call.updates, shapes, where.parts, momentum)
        code = region_code(f"region_{len(self.regions)}", self.program.regions[call.op].nest(where), slots,
                           f"{call.where} {call.attrs.get('schedule', '')}".strip())
        code = self.regions.setdefault((code.fields, code.body), code)
        fields = {}
        for slot in slots.fields:
            if slot in call.inputs:
                kind = op.slots[slot].kind
                fields[slot] = self.matrix(call.inputs[slot]) if kind == "matrix" else self.pointer(call.inputs[slot])
            elif op.slots[slot].sink:
                fields[slot] = self.sink(call, slot.removeprefix("d_"))
            else:
                fields[slot] = self.pointer(call.outputs[slot])
        if call.scratch:
            fields["scratch"] = self.pointer(call.scratch)
        return CallCode(index, call.op, call.where, tuple(fields.items()), f"{code.name}(&call_{index}, step);",
                        struct=f"{code.name}_args")

    def require_fit(self, op: Op, call: Call) -> None:
        """Whole tensors are rows of any number: a kernel that takes panels, or a few of an index, is for regions to call."""
        for slot, layout in op.layout.items():
            name = call.inputs.get(slot) or call.outputs.get(slot)
            if name and layout == "panel" and self.program.tensors[name].shape[0] > 1:
                raise CodegenError(f"its kernel takes {slot} as a panel, and {name} is whole: a region has to call it")
        sizes = op.bind(site_of(self.program, call, op)) if op.limit else {}
        for index, most in op.limit.items():
            if sizes[index] > most:
                raise CodegenError(f"its kernel takes {most} of {index}, not {sizes[index]}: a region has to call it")


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
