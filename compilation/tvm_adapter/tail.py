"""The long tail: operations without a kernel of ours, legalised by TVM to TIR and written as plain C.

Slow, naive loops; correct and portable under the same laws as the kernels (fixed order of sums, own math).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from compilation.errors import UnsupportedOperationError
from compilation.program import Call, Program
from compilation.tvm_adapter.keep import RELAX_DTYPE, rebuild_call

LOWER = tvm.ir.transform.Sequential([
    relax.transform.LegalizeOps(), s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(), s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.LowerOpaqueBlock(), tirx.transform.FlattenBuffer(),
    tirx.transform.ForceNarrowIndexToInt32(), tirx.transform.StmtSimplify()])

BINARY = {"Add": "+", "Sub": "-", "Mul": "*", "EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">=",
          "And": "&&", "Or": "||", "Mod": "%"}
MATH = {"exp": "vt_expf", "erf": "vt_erff", "tanh": "vt_tanhf", "log": "vt_logf", "sqrt": "vt_sqrtf", "fabs": "vt_fabsf"}
C_TYPES = {"float32": "float", "int32": "int32_t", "int64": "int32_t", "bool": "int32_t", "uint8": "uint8_t"}


def lower_tail(program: Program) -> None:
    """Turn every `relax:` call into a `tir:` call carrying its C source, in place.

    Raises UnsupportedOperationError naming the operation and its module path.
    """
    for at, call in enumerate(program.calls):
        if not call.op.startswith("relax:"):
            continue
        result, = call.outputs.values()
        where = f"{call.op.removeprefix('relax:')} in {call.where or program.tensors[result].source or 'the model'}"
        try:
            symbol, source, work = _to_c(program, call)
        except UnsupportedOperationError:
            raise
        except Exception as error:
            raise UnsupportedOperationError(
                f"operation {where} has no kernel and cannot be legalised ({str(error).strip().splitlines()[-1]}): "
                "replace it by supported operations, or freeze nothing above it") from error
        program.calls[at] = replace(
            call, op=f"tir:{symbol}", inputs={f"in{i}": t for i, t in enumerate(call.inputs.values())},
            outputs={"out0": result}, attrs={"symbol": symbol, "c_source": source, "work_bytes": work, "macs": 0})


def _to_c(program: Program, call: Call) -> tuple[str, str, int]:
    tensors = [program.tensors[t] for t in call.inputs.values()]
    variables = [relax.Var(f"in{i}", relax.TensorType(list(t.shape), RELAX_DTYPE[t.dtype])) for i, t in enumerate(tensors)]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(rebuild_call(call, dict(zip(call.inputs, variables, strict=True)))))
        builder.emit_func_output(out)
    module = LOWER(builder.get())
    functions = {g.name_hint: f for g, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
    bindings = [b for block in module["main"].body.blocks for b in block.bindings]
    return _Writer(variables, functions, bindings).write()


class _Writer:
    """Writes the lowered functions of one operation as one C function."""

    def __init__(self, inputs: list[Any], functions: dict[str, Any], bindings: list[Any]) -> None:
        self.inputs, self.functions, self.bindings = inputs, functions, bindings
        self.names: dict[Any, str] = {}
        self.work: list[tuple[str, int]] = []
        self.lines: list[str] = []

    def write(self) -> tuple[str, str, int]:
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
            args = [values[renames.get(a, a)] for a in self._tensors(source)]
            if source.op.name == "relax.call_tir":
                function = self.functions[source.args[0].name_hint]
            else:
                raise UnsupportedOperationError(f"{source.op.name} cannot be legalised by TVM")
            if not last:
                self._allocate(name, shape)
            for var, arg in zip(function.params, [*args, name], strict=True):
                self.names[var] = arg
            self._statement(function.body, 1)
        body = "\n".join(self.lines)
        offset, head = 0, []
        for name, count in self.work:
            head.append(f"    float *{name} = work + {offset};")
            offset += count
        params = ", ".join([*(f"const {C_TYPES[str(v.ty.dtype)]} *in{i}" for i, v in enumerate(self.inputs)),
                            "float *out0", *(["float *work"] if offset else [])])
        text = "\n".join([*head, body])
        symbol = "vt_tir_" + hashlib.sha256((params + text).encode()).hexdigest()[:10]
        return symbol, f"void {symbol}({params})\n{{\n{text}\n}}\n", 4 * offset

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
        name, n = f"v_{stem}", 1
        while name in taken:
            n += 1
            name = f"v_{stem}_{n}"
        return name

    # -- statements ---------------------------------------------------------------------------------
    def _statement(self, s: Any, depth: int) -> None:
        pad = "    " * depth
        kind = type(s).__name__
        if kind == "SeqStmt":
            for inner in s.seq:
                self._statement(inner, depth)
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
            self._statement(s.body, depth + 1)
            self.lines.append(pad + "}")
        elif kind == "IfThenElse":
            condition = self._expr(s.condition)
            bare = type(s.condition).__name__ in BINARY       # already in parentheses
            self.lines.append(f"{pad}if {condition} {{" if bare else f"{pad}if ({condition}) {{")
            self._statement(s.then_case, depth + 1)
            if s.else_case is not None:
                self.lines.append(pad + "} else {")
                self._statement(s.else_case, depth + 1)
            self.lines.append(pad + "}")
        elif kind == "BufferStore":
            index, = s.indices
            self.lines.append(f"{pad}{self.names[s.buffer]}[{self._expr(index)}] = {self._expr(s.value)};")
        elif kind == "Bind":
            name = self.names[s.var] = self._fresh(s.var.name)
            self.lines.append(f"{pad}const {C_TYPES[str(s.var.ty.dtype)]} {name} = {self._expr(s.value)};")
        elif kind == "AttrStmt":
            self._statement(s.body, depth)
        else:
            raise UnsupportedOperationError(f"TIR statement {kind} has no C form")

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
            return f"({a} {'>' if kind == 'Max' else '<'} {b} ? {a} : {b})"
        if kind == "Not":
            return f"(!{self._expr(e.a)})"
        if kind == "Select":
            return f"({self._expr(e.condition)} ? {self._expr(e.true_value)} : {self._expr(e.false_value)})"
        if kind == "Cast":
            return f"(({C_TYPES[str(e.ty.dtype)]}){self._expr(e.value)})"
        if kind == "Call":
            return self._intrinsic(e)
        raise UnsupportedOperationError(f"TIR expression {kind} has no C form")

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
            return f"(1.0f / vt_sqrtf({args[0]}))"
        if name in ("pow", "power") and type(e.args[1]).__name__ == "FloatImm" and float(e.args[1].value) == 2.0:
            return f"({args[0]} * {args[0]})"
        raise UnsupportedOperationError(f"TIR intrinsic {name} has no portable C form")


def float_literal(value: float) -> str:
    """A C float literal that reads back to the same float32."""
    text = f"{value:.9g}"
    return (text if any(c in text for c in ".en") else text + ".0") + "f"
