"""torch.export -> Relax -> the forward Program, in the registry's operations.

Relax spells one idea in many ways (a linear is permute + matmul + add, attention is fifteen rearrangements
around `nn.attention`). The importer walks the Relax bindings once, keeps every rearrangement symbolic
(`values.View`), and emits a registry operation as soon as it is complete. What the registry has no operation
for is kept as a Relax call (`relax:<name>`) and goes through legalised TIR later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.frontend.torch import from_exported_program

from compilation.capture import Exported
from compilation.errors import CaptureError, UnsupportedOperationError
from compilation.program import Program, Role, Tensor
from compilation.tvm_adapter.builder import op_name
from compilation.tvm_adapter.rearrange import shape_of
from compilation.tvm_adapter.recognise import Recogniser
from compilation.tvm_adapter.values import Constant, Many, Value, View, view_of


def import_model(exported: Exported, name: str) -> Program:
    """The forward pass as a Program: INPUT tensors, one tensor a parameter, calls; `logits` is the result.

    Raises UnsupportedOperationError, naming the operation and its module path.
    """
    try:
        module = from_exported_program(exported.program, keep_params_as_input=True,
                                       unwrap_unit_return_tuple=True, run_ep_decomposition=False)
    except Exception as error:
        raise UnsupportedOperationError(_name_the_unsupported(exported, error)) from error
    module, _ = relax.frontend.detach_params(module)
    return Importer(exported, module["main"], name).run()


def _name_the_unsupported(exported: Exported, error: Exception) -> str:
    text = str(error)
    for node in exported.program.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", str(node.target)) in text:
            path = exported.module_paths.get(node.name) or "the model's top level"
            return (f"operation {node.target} in {path} has no Relax importer: replace it by supported operations "
                    f"or keep it out of the compiled model")
    return f"the model cannot be imported: {text.strip().splitlines()[-1]}"


class Importer(Recogniser):
    """One walk over the bindings of a Relax function."""

    def __init__(self, exported: Exported, function: relax.Function, name: str) -> None:
        super().__init__(name)
        self.exported, self.function = exported, function
        self.values: dict[Any, Value] = {}
        self.handlers: dict[str, Callable[[relax.Call, list[Value]], Value | None]] = {
            "matmul": self.matmul, "add": self.add, "multiply": self.multiply, "divide": self.divide,
            "nn.layer_norm": self.layer_norm, "nn.gelu": self.gelu, "nn.gelu_tanh": self.gelu_tanh,
            "nn.relu": self.relu, "nn.attention": self.attention, "nn.conv2d": self.conv2d,
            "concat": self.concat, "mean": self.mean,
        }

    # -- the walk -----------------------------------------------------------------------------------
    def run(self) -> Program:
        spec = self.exported.spec
        first, *params = self.function.params
        if spec.is_image:
            c, h, w = spec.shape
            self._tensor("image", (h, w, c), "u8", Role.INPUT)
            self._tensor("image.scale", (c,), "f32", Role.CONSTANT)
            self._tensor("image.shift", (c,), "f32", Role.CONSTANT)
            self.program.constants = {"image.scale": tuple(np.asarray(spec.scale).tolist()),
                                      "image.shift": tuple(np.asarray(spec.shift).tolist())}
        else:
            self._tensor("input", (1, *spec.shape), "f32", Role.INPUT)
        self.program.image = "image" if spec.is_image else "input"
        self.values[first] = view_of(self.program.image, (1, *spec.shape))
        for var in params:
            if str(var.name) not in self.exported.argument_names:
                raise CaptureError(f"the imported model's argument {var.name} is no parameter: one input is expected")
            parameter, shape = self.exported.argument_names[str(var.name)], shape_of(var)
            self.program.add(Tensor(parameter, shape, "f32", Role.CONSTANT, source=parameter))
            self.values[var] = view_of(parameter, shape, parameter=True)
        bindings = [b for block in self.function.body.blocks for b in block.bindings]
        for b in bindings:
            relax.analysis.post_order_visit(b.value, self._count_use)
        self._count_use(self.function.body.body)
        for b in bindings:
            self.values[b.var] = self._bind(b.value)
        self.program.logits = self._materialise(self.values[self.function.body.body])
        self._drop_unused_parameters()
        return self.program

    def _count_use(self, expr: Any) -> None:
        if isinstance(expr, relax.Var):
            self.uses[expr] = self.uses.get(expr, 0) + 1

    def _bind(self, expr: Any) -> Value:
        if isinstance(expr, relax.Call):
            args = [self._arg(a) for a in expr.args]
            self._locate(args)
            name = op_name(expr)
            handler = self.handlers.get(name)
            value = handler(expr, args) if handler else None
            if value is None:
                value = self._rearrange(name, expr, args)
            return value if value is not None else self._tail(name, expr, args)
        return self._arg(expr)

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

    def _drop_unused_parameters(self) -> None:
        used = {t for c in self.program.calls for t in c.inputs.values()}
        for name in [n for n, t in self.program.tensors.items() if t.role is Role.CONSTANT and n not in used]:
            del self.program.tensors[name]
            self.program.constants.pop(name, None)
