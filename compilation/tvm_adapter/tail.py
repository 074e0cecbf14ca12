"""The long tail: operations without a kernel of ours, legalised by TVM to TIR and written as plain C.

Slow, naive loops; correct and portable under the same laws as the kernels (fixed order of sums, own math).

Work: a multiply-accumulate is a float product added to the element that it replaces, `x[i] = x[i] + a * b`. It is written
as VT_FMA and counted once for each iteration of the loops around it, whatever a guard between them decides: at compile
time (the call's attribute `macs`), and with VT_COUNT where the C code runs. Products outside of sums are no
multiply-accumulates, as in the kernels.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import replace
from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.ir import GenericConst

from compilation.errors import UnsupportedOperationError
from compilation.program import Call, Program
from compilation.tvm_adapter.door import REMEDY, door
from compilation.tvm_adapter.keep import REAL, dtype_of, rebuild_call, relax_type
from compilation.types import F32, FROM_RELAX, I32

LOWER = tvm.ir.transform.Sequential([
    relax.transform.LegalizeOps(), s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(), s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.LowerOpaqueBlock(), tirx.transform.FlattenBuffer(),
    tirx.transform.ForceNarrowIndexToInt32(), tirx.transform.StmtSimplify()])

BINARY = {"Add": "+", "Sub": "-", "Mul": "*", "EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">=",
          "And": "&&", "Or": "||", "Mod": "%"}
MATH = {"exp": "vt_expf", "erf": "vt_erff", "tanh": "vt_tanhf", "log": "vt_logf", "sqrt": "VT_SQRT", "fabs": "vt_fabsf"}
C_TYPES = {name: e.c for name, e in FROM_RELAX.items()} | {"bool": I32.c}     # a truth value in an expression is an int


def lower_tail(program: Program) -> None:
    """Turn every `relax:` call into a `tir:` call carrying its C source, in place.

    Raises UnsupportedOperationError naming the operation and its module path.
    """
    for at, call in enumerate(program.calls):
        if not call.op.startswith("relax:"):
            continue
        result, = call.outputs.values()
        with door(UnsupportedOperationError, lambda c=call: f"{_spoken(c)} has no kernel and", REMEDY):  # type: ignore[misc]
            symbol, source, work, macs = _to_c(program, call)
        program.calls[at] = replace(
            call, op=f"tir:{symbol}", inputs={f"in{i}": t for i, t in enumerate(call.inputs.values())},
            outputs={"out0": result}, attrs={"symbol": symbol, "c_source": source, "work_bytes": work, "macs": macs})


def _spoken(call: Call) -> str:
    """The operation and its layer, for messages."""
    name = call.op.removeprefix("relax:")
    forward = name.removeprefix("grad.").removesuffix("_backward")
    return f"{'operation' if forward == name else 'the gradient of'} {forward} in {call.where or 'the model'}"


def _to_c(program: Program, call: Call) -> tuple[str, str, int, int]:
    tensors = [program.tensors[t] for t in call.inputs.values()]
    kind = program.tensors[call.outputs["y"]].element.relax[0]
    variables = [relax.Var(f"in{i}", relax_type(t.type)) for i, t in enumerate(tensors)]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            made = builder.emit(rebuild_call(call, dict(zip(call.inputs, variables, strict=True))))
            if dtype_of(made.ty) != kind:
                made = builder.emit(relax.op.astype(made, kind))
            out = builder.emit_output(made)
        builder.emit_func_output(out)
    module = LOWER(builder.get())
    functions = {g.name_hint: f for g, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
    bindings = [b for block in module["main"].body.blocks for b in block.bindings]
    return _Writer(variables, functions, bindings, C_TYPES[kind]).write()


class _Writer:
    """Writes the lowered functions of one operation as one C function."""

    def __init__(self, inputs: list[Any], functions: dict[str, Any], bindings: list[Any], result: str) -> None:
        self.inputs, self.functions, self.bindings, self.result = inputs, functions, bindings, result
        self.names: dict[Any, str] = {}
        self.work: list[tuple[str, int]] = []
        self.loops: list[int] = []      # lengths of the loops around the statement at hand
        self.guarded = False            # whether a condition stands between them
        self.macs = 0
        self.tables: list[str] = []
        self.lines: list[str] = []

    def write(self) -> tuple[str, str, int, int]:
        """(symbol, C source, bytes of work memory, multiply-accumulates)."""
        values: dict[Any, str] = {v: f"in{i}" for i, v in enumerate(self.inputs)}
        sizes = {}
        calls = [b for b in self.bindings if isinstance(b.value, relax.Call)]
        renames = {b.var: b.value for b in self.bindings if isinstance(b.value, relax.Var)}
        for n, b in enumerate(calls):
            last = n == len(calls) - 1
            name = "out0" if last else f"step{n}"
            shape = [int(v) for v in b.var.ty.shape.values]
            sizes[name] = shape
            values[b.var] = name
            source = b.value
            args = [self._table(a) if isinstance(a, GenericConst) else values[renames.get(a, a)]
                    for a in self._tensors(source)]
            if source.op.name == "relax.call_tir":
                function = self.functions[source.args[0].name_hint]
            else:
                raise NotImplementedError(f"{source.op.name} cannot be legalised by TVM")
            if not last:
                self._allocate(name, shape)
            for var, arg in zip(function.params, [*args, name], strict=True):
                self.names[var] = arg
            self._count(self._statement(function.body, 1), 1)
        body = "\n".join(self.lines)
        if not re.search(r"\bout0\b", body):
            raise NotImplementedError("it computes nothing")
        offset, head = 0, [] if self.macs else ["    (void)step;"]
        for name, count in self.work:
            head.append(f"    float *{name} = work + {offset};")
            offset += count
        unused = [n for n in (f"in{i}" for i in range(len(self.inputs))) if not re.search(rf"\b{n}\b", body)]
        head = [*self.tables, *(f"    (void){n};" for n in unused), *head]
        params = ", ".join([*(f"const {C_TYPES[str(v.ty.dtype)]} *in{i}" for i, v in enumerate(self.inputs)),
                            f"{self.result} *out0", *(["float *work"] if offset else []), "const vt_step *step"])
        text = "\n".join([*head, body])
        symbol = "vt_tir_" + hashlib.sha256((params + text).encode()).hexdigest()[:10]
        return symbol, f"void {symbol}({params})\n{{\n{text}\n}}\n", 4 * offset, self.macs

    def _table(self, constant: GenericConst) -> str:
        """A constant argument, as an array of the function."""
        values = constant.value.numpy()
        kind = C_TYPES[str(values.dtype)]
        text = [float_literal(float(v)) if kind == F32.c else str(int(v)) for v in values.reshape(-1)]
        name = f"table{len(self.tables)}"
        self.tables.append(f"    static const {kind} {name}[{values.size}] = {{{', '.join(text)}}};")
        return name

    def _tensors(self, call: Any) -> list[Any]:
        packed = call.args[1]
        return list(packed.fields) if isinstance(packed, relax.Tuple) else [packed]

    def _allocate(self, name: str, shape: Any) -> None:
        count = 1
        for v in shape:
            count *= int(v)
        self.work.append((name, count))

    def _fresh(self, stem: str) -> str:
        taken = set(self.names.values())
        stem = re.sub(r"\W", "_", stem)         # TVM has names with dots
        name, n = f"v_{stem}", 1
        while name in taken:
            n += 1
            name = f"v_{stem}_{n}"
        return name

    # -- statements ---------------------------------------------------------------------------------
    def _count(self, macs: int, depth: int) -> int:
        """Count so many multiply-accumulates here, unless a guard is open; returns what is left to count around it."""
        if macs and not self.guarded:
            self.lines.append(f"{'    ' * depth}VT_COUNT(step, {macs});")
            self.macs += macs * math.prod(self.loops)
            return 0
        return macs

    def _statement(self, s: Any, depth: int) -> int:
        """Writes a statement; returns the multiply-accumulates of one execution that are not counted within it."""
        left = 0
        pad = "    " * depth
        kind = type(s).__name__
        if kind == "SeqStmt":
            left = sum([self._statement(inner, depth) for inner in s.seq])
        elif kind == "DeclBuffer":
            data = s.data.args[0] if hasattr(s.data, "args") else s.data
            self.names[s.buffer] = self.names[data]
        elif kind == "AllocBuffer":
            self.names[s.buffer] = self._fresh(s.buffer.name)
            self._allocate(self.names[s.buffer], s.buffer.shape)
        elif kind == "For":
            var = self.names[s.loop_var] = self._fresh(s.loop_var.name)
            low, extent = self._expr(s.min), self._expr(s.extent)
            self.lines.append(f"{pad}for (int32_t {var} = {low}; {var} < {low} + {extent}; {var}++) {{")
            self.loops.append(int(s.extent))
            left = self._statement(s.body, depth + 1) * self.loops.pop()
            self.lines.append(pad + "}")
            left = self._count(left, depth)
        elif kind == "IfThenElse":
            condition = self._expr(s.condition)
            bare = type(s.condition).__name__ in BINARY       # already in parentheses
            self.lines.append(f"{pad}if {condition} {{" if bare else f"{pad}if ({condition}) {{")
            outside, self.guarded = self.guarded, True
            left = self._statement(s.then_case, depth + 1)
            if s.else_case is not None:
                self.lines.append(pad + "} else {")
                left += self._statement(s.else_case, depth + 1)
            self.lines.append(pad + "}")
            self.guarded = outside
        elif kind == "BufferStore":
            index, = s.indices
            target = f"{self.names[s.buffer]}[{self._expr(index)}]"
            product = self._accumulated(target, s.value)
            left = int(product is not None)
            self.lines.append(f"{pad}{target} = {product or self._expr(s.value)};")
        elif kind == "Bind":
            name = self.names[s.var] = self._fresh(s.var.name)
            self.lines.append(f"{pad}const {C_TYPES[str(s.var.ty.dtype)]} {name} = {self._expr(s.value)};")
        elif kind == "AttrStmt":
            left = self._statement(s.body, depth)
        else:
            raise NotImplementedError(f"TIR statement {kind} has no C form")

        return left

    def _accumulated(self, target: str, e: Any) -> str | None:
        """A product added to the float element `target`, as one fused multiply-add; None if the value is anything else."""
        if type(e).__name__ != "Add" or str(e.ty.dtype) != REAL:
            return None
        for total, product in ((e.a, e.b), (e.b, e.a)):
            if type(product).__name__ == "Mul" and type(total).__name__ == "TensorLoad" and self._expr(total) == target:
                return f"VT_FMA({self._expr(product.a)}, {self._expr(product.b)}, {target})"
        return None

    # -- expressions --------------------------------------------------------------------------------
    def _expr(self, e: Any) -> str:
        kind = type(e).__name__
        if kind == "Var":
            return self.names[e]
        if kind == "IntImm":
            return str(int(e.value))
        if kind == "FloatImm":
            return float_literal(float(e.value))
        if kind == "TensorLoad":
            index, = e.indices
            return f"{self.names[e.source]}[{self._expr(index)}]"
        if kind in BINARY:
            return f"({self._expr(e.a)} {BINARY[kind]} {self._expr(e.b)})"
        if kind == "Div":
            return f"({self._expr(e.a)} / {self._expr(e.b)})"
        if kind in ("FloorDiv", "FloorMod"):      # indices are never negative
            return f"({self._expr(e.a)} {'/' if kind == 'FloorDiv' else '%'} {self._expr(e.b)})"
        if kind in ("Max", "Min"):
            a, b = self._expr(e.a), self._expr(e.b)
            stays_nan = str(e.ty.dtype) == REAL and type(e.a).__name__ != "FloatImm"
            nan = f" || {a} != {a}" if stays_nan else ""
            return f"({a} {'>' if kind == 'Max' else '<'} {b}{nan} ? {a} : {b})"
        if kind == "Not":
            return f"(!{self._expr(e.a)})"
        if kind == "Select":
            return f"({self._expr(e.condition)} ? {self._expr(e.true_value)} : {self._expr(e.false_value)})"
        if kind == "Cast":
            return f"(({C_TYPES[str(e.ty.dtype)]}){self._expr(e.value)})"
        if kind == "Call":
            return self._intrinsic(e)
        raise NotImplementedError(f"TIR expression {kind} has no C form")

    def _intrinsic(self, e: Any) -> str:
        name = str(e.op.name).rsplit(".", 1)[-1]
        args = [self._expr(a) for a in e.args]
        if name == "if_then_else":
            return f"({args[0]} ? {args[1]} : {args[2]})"
        if name in MATH:
            return f"{MATH[name]}({args[0]})"
        if name == "sigmoid":
            return f"(1.0f / (1.0f + vt_expf(-({args[0]}))))"
        if name == "rsqrt":
            return f"(1.0f / VT_SQRT({args[0]}))"
        if name in ("pow", "power") and type(e.args[1]).__name__ == "FloatImm" and float(e.args[1].value) == 2.0:
            return f"({args[0]} * {args[0]})"
        raise NotImplementedError(f"TIR intrinsic {name} has no portable C form")


def float_literal(value: float) -> str:
    """A C float literal that reads back to the same float32."""
    text = f"{value:.9g}"
    return (text if any(c in text for c in ".en") else text + ".0") + "f"
