"""torch.export -> Relax -> the forward Program, in the registry's operations.

Relax spells one idea in many ways (a linear is permute + matmul + add, attention is fifteen rearrangements
around `nn.attention`). The importer walks the Relax bindings once, keeps every rearrangement symbolic
(`values.View`), and emits a registry operation as soon as it is complete. What the registry has no operation
for is kept as a Relax call (`relax:<name>`) and goes through legalised TIR later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
from torch import fx
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from compilation.capture import Exported
from compilation.capture.regions import STOP_GRADIENT, operation, path_of
from compilation.errors import CaptureError, UnsupportedOperationError
from compilation.ops import REGISTRY
from compilation.passes.windows import split_windows
from compilation.program import STOP, Program, Role, Tensor
from compilation.tvm_adapter.builder import ImageTensors, op_name
from compilation.tvm_adapter.door import REMEDY, door
from compilation.tvm_adapter.keep import dtype_of
from compilation.tvm_adapter.proof import prove_imports
from compilation.tvm_adapter.rearrange import shape_of
from compilation.tvm_adapter.recognise import Recogniser
from compilation.tvm_adapter.relax_ops import STOP_GRADIENT as STOP_CALL
from compilation.tvm_adapter.relax_ops import stop_gradient
from compilation.tvm_adapter.values import Constant, Many, Value, View, view_of
from compilation.types import U8, Type


@cache
def importable() -> frozenset[str]:
    """PyTorch operations that Relax imports, with their overloads: "add.Tensor"."""
    return frozenset(k for k in ExportedProgramImporter().convert_map if isinstance(k, str)) - {"batch_norm.default"}


def import_model(exported: Exported, name: str) -> Program:
    """The forward pass as a Program: INPUT tensors, one tensor a parameter, calls; `logits` is the result.

    Raises UnsupportedOperationError, naming the operation and its module path.
    """
    for node in exported.program.graph.nodes:
        if node.op == "call_function" and node.target is not STOP_GRADIENT and node.target.__name__ not in importable():
            raise UnsupportedOperationError(f"operation {operation(node)} in {path_of(node)} has no importer: {REMEDY}")
    prove_imports(exported)
    translator = ExportedProgramImporter()

    def unfinished() -> str:
        left = [n for n in exported.program.graph.nodes if n.op == "call_function" and n not in translator.env]
        return f"operation {operation(left[0])} in {path_of(left[0])}" if left else "the model"

    with door(UnsupportedOperationError, unfinished, REMEDY):
        module = translator.from_exported_program(
            exported.program, keep_params_as_input=True, unwrap_unit_return_tuple=True, no_bind_return_tuple=False,
            custom_convert_map={STOP_GRADIENT.__name__: lambda node,
                                by: by.block_builder.emit(stop_gradient(by.env[node.args[0]]))})
        module, _ = relax.frontend.detach_params(module)
    nodes = {v: n for n, v in translator.env.items() if isinstance(v, relax.Var)}
    importer = Importer(exported, module["main"], name, nodes)
    with door(UnsupportedOperationError, lambda: f"an operation in {importer.place}", REMEDY):
        return importer.run()


class Importer(Recogniser):
    """One walk over the bindings of a Relax function. nodes: Relax variable -> the PyTorch node whose value it is."""

    def __init__(self, exported: Exported, function: relax.Function, name: str, nodes: Mapping[Any, fx.Node]) -> None:
        super().__init__(name, exported.argument_names.values())
        self.exported, self.function, self.nodes = exported, function, nodes
        self.handlers: dict[str, Callable[[relax.Call, list[Any]], Value | None]] = {
            "matmul": self.matmul, "add": self.add, "multiply": self.multiply, "divide": self.divide,
            "nn.layer_norm": self.layer_norm, "nn.gelu": self.gelu, "nn.gelu_tanh": self.gelu_tanh,
            "nn.attention": self.attention, "nn.conv2d": self.conv2d,
            "concat": self.concat, "mean": self.mean, "full": self.full, "full_like": self.full, "arange": self.arange,
            STOP_CALL: self.stop,
            **{op.relax: partial(self.elementwise, op.name) for op in REGISTRY.values() if op.relax},
        }

    # -- the walk -----------------------------------------------------------------------------------
    def run(self) -> Program:
        first, *params = self.function.params
        self.values[first] = self._input()
        for var in params:
            if str(var.name) not in self.exported.argument_names:
                raise CaptureError(f"the imported model's argument {var.name} is no parameter: one input is expected")
            parameter, shape = self.exported.argument_names[str(var.name)], shape_of(var)
            if parameter not in self.program.tensors:       # tied weights come as two arguments
                self.program.add(Tensor(parameter, Type(shape), Role.CONSTANT, source=parameter))
            self.values[var] = view_of(parameter, shape, parameter=True)
        result = self.walk(self.function)
        if isinstance(result, Constant) or (isinstance(result, View)
                                            and (result.parameter or result.base == self.program.image)):
            raise CaptureError("the model returns its input, a parameter or a constant: there is nothing to compute")
        shape = shape_of(self.function.body.body)
        if len(shape) != 2 or shape[0] != 1:
            raise CaptureError(f"the model's result has shape {shape}, not (1, classes): a classifier is expected")
        self.program.logits = self._materialise(result)
        self._keep_needed()
        split_windows(self.program)
        return self.program

    def _input(self) -> View:
        spec = self.exported.spec
        if not spec.is_image:
            self.program.image = self._tensor("input", Type((1, *spec.shape)), Role.INPUT)
            return view_of(self.program.image, (1, *spec.shape))
        c, h, w = spec.shape
        self.program.image = self._tensor("image", Type((h, w, c), U8), Role.INPUT)
        self.image = ImageTensors(self.program.image, self._tensor("image.scale", Type((c,)), Role.CONSTANT),
                                  self._tensor("image.shift", Type((c,)), Role.CONSTANT))
        self.program.constants = {self.image.scale: tuple(np.asarray(spec.scale).tolist()),
                                  self.image.shift: tuple(np.asarray(spec.shift).tolist())}
        return view_of(self.image.pixels, (1, *spec.shape))

    def walk(self, function: relax.Function) -> Value:
        bindings = [b for block in function.body.blocks for b in block.bindings]
        for b in bindings:
            self.bound[b.var] = b.value
            relax.analysis.post_order_visit(b.value, self._count_use)
        self._count_use(function.body.body)
        owners: list[Any] = []
        for b in reversed(bindings):        # a variable in between belongs to the operation that is being made
            owners.append(self.nodes.get(b.var) or (owners[-1] if owners else None))
        for b, node in zip(bindings, reversed(owners), strict=True):
            if node is not None:
                self.layer = path_of(node)
            self.values[b.var] = self._bind(b.value)
        return self.values[function.body.body]

    def _count_use(self, expr: Any) -> None:
        if isinstance(expr, relax.Var):
            self.uses[expr] = self.uses.get(expr, 0) + 1

    def _bind(self, expr: Any) -> Value:
        if not isinstance(expr, relax.Call):
            return self._arg(expr)
        args = [self._arg(a) for a in expr.args]
        self._locate(args)
        name = op_name(expr)
        value = self._fold(name, expr, args)
        if value is None and name in self.handlers:
            value = self.handlers[name](expr, args)
        if value is None:
            value = self._rearrange(name, expr, args)
        return value if value is not None else self._tail(name, expr, args)

    def _arg(self, expr: Any) -> Any:
        if isinstance(expr, relax.Var):
            return self.values[expr]
        if isinstance(expr, GenericConst):
            return Constant(np.asarray(expr.value.numpy()))
        if isinstance(expr, relax.Tuple):
            return Many([self._arg(f) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            many = self._arg(expr.tuple_value)
            return many.items[expr.index]
        return expr                              # ShapeExpr, PrimValue ...

    def _locate(self, args: list[Any]) -> None:
        for a in args:
            if isinstance(a, View) and a.parameter and "." in a.base:
                self.where = a.base.rsplit(".", 1)[0]

    # -- constants, and where gradients stop -----------------------------------------------------------
    def _fold(self, name: str, call: relax.Call, args: list[Any]) -> Value | None:
        """What depends on constants alone (a buffer's square root, a causal mask) is computed now, in float32."""
        if name not in FOLDED or not all(isinstance(a, Constant) for a in args[:FOLDED[name][0]]):
            return None
        count, function = FOLDED[name]
        result = function(*(a.value for a in args[:count]), *(int(getattr(a, "value", a)) for a in args[count:]))
        return Constant(np.asarray(result).astype(args[0].value.dtype))

    def full(self, call: relax.Call, args: list[Any]) -> Value | None:
        """A tensor of one number is a constant."""
        value = args[1] if len(args) > 1 else None
        return Constant(np.broadcast_to(value.value, shape_of(call))) if isinstance(value, Constant) else None

    def arange(self, call: relax.Call, args: list[Any]) -> Value | None:
        """Numbers in a row are a constant."""
        start, end, step = (int(a) if (a := getattr(v, "value", v)) == int(a) else float(a) for v in args)
        return Constant(np.arange(start, end, step).astype(dtype_of(call.ty)))

    def stop(self, call: relax.Call, args: list[Any]) -> Value | None:
        """A renaming that differentiation does not pass. A parameter that no gradient reaches at all needs none."""
        x = self._settle(args[0])
        if isinstance(x, Constant) or not isinstance(x, View) or x.base == self.image.pixels:
            return x
        if x.parameter:
            if x.base in self.exported.stopped:
                return x
            # its value as it is
            x = self._as(self._emit("mul_const", {"x": self._materialise(x)}, {"value": 1.0}), x.shape)
        base = self.program.tensors[x.base]
        return self._on(self._reshape(x.base, base.shape, {STOP: 1}), x)

    def _keep_needed(self) -> None:
        """Drop calls whose results nothing reads, then parameters and constants that no call reads."""
        needed, kept = {self.program.logits}, []
        for c in reversed(self.program.calls):
            if needed & set(c.outputs.values()):
                needed |= set(c.inputs.values())
                kept.append(c)
            else:
                for t in c.outputs.values():
                    del self.program.tensors[t]
        self.program.calls = kept[::-1]
        if self.program.image not in needed:
            raise CaptureError("the model's result does not depend on its input: there is nothing to train on")
        for name in [n for n, t in self.program.tensors.items() if t.role is Role.CONSTANT and n not in needed]:
            del self.program.tensors[name]
            self.program.constants.pop(name, None)


# Relax operation -> (number of constant arguments, the same in NumPy). Arguments behind those are whole numbers.
FOLDED: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, np.add), "subtract": (2, np.subtract), "multiply": (2, np.multiply), "divide": (2, np.divide),
    "negative": (1, np.negative), "sqrt": (1, np.sqrt), "exp": (1, np.exp), "triu": (1, np.triu), "tril": (1, np.tril)}

