"""Products of several matrices are taken in the order of the fewest multiply-accumulates.

A chain is a tree of products of which nothing but the next product reads a result, seen through transpositions and through
factors that are numbers. How it is split is the classical dynamic programme; which results are made transposed is free, and
a right factor is, so that its product's gradients come row by row. The numbers become one, and multiply the smallest result.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from compilation.ops import REGISTRY
from compilation.ops.matmul import Product
from compilation.passes.rewrite import fresh, producers, site, use_counts
from compilation.program import Call, Program, Role, Tensor

FACTOR = "mul_const"
PRODUCTS = {op.turned: op.name for op in REGISTRY.values() if isinstance(op, Product)}
NAMES = frozenset(PRODUCTS.values())


def order_products(program: Program) -> None:
    """Rewrite the chains of three matrices and more, in place."""
    made, uses = producers(program), use_counts(program)
    inner = {t for c in program.calls if c.op in NAMES or c.op == FACTOR for t in c.inputs.values()
             if uses[t] == 1 and t in made and (made[t].op in NAMES or made[t].op == FACTOR)}
    for root in list(program.calls):
        result = root.outputs.get("y", "")
        if (root.op in NAMES or root.op == FACTOR) and result not in inner:
            chain = _Chain(program, made, uses, root)
            if len(chain.factors) > 2:
                chain.rewrite()


def shrink_factors(program: Program) -> None:
    """A number that multiplies what linear maps make of a smaller tensor multiplies that instead, in place; 1 multiplies
    nothing."""
    scaled: dict[tuple[str, float], str] = {}
    for result in [c.outputs["y"] for c in program.calls if c.op == FACTOR and c.outputs["y"] != program.logits]:
        made, uses = producers(program), use_counts(program)
        call = made[result]
        value, at, reader, slot = float(call.attrs["value"]), call.inputs["x"], call, "x"
        while value != 1.0 and uses[at] == 1 and at in made and (inner := _scales(made[at])):
            maker, at = made[at], made[at].inputs[inner]
            if at in made and _elements(program, at) < _elements(program, reader.inputs[slot]):
                reader, slot = maker, inner
        if reader is call and value != 1.0:
            continue
        if reader is not call:
            source = reader.inputs[slot]
            if (source, value) not in scaled:
                t = program.tensors[source]
                name = program.add(Tensor(fresh(program, f"{source}.scaled"), t.type, Role.ACTIVATION, source=t.source)).name
                after = Call(FACTOR, {"x": source}, {"y": name}, call.attrs, where=call.where)
                program.calls.insert(program.position(made[source]) + 1, after)
                scaled[source, value] = name
            program.replace_call(reader, replace(reader, inputs={**reader.inputs, slot: scaled[source, value]}))
        program.replace_call(call)
        program.calls = [c.renamed({result: call.inputs["x"]}) for c in program.calls]
        del program.tensors[result]


def _elements(program: Program, tensor: str) -> int:
    return prod(program.tensors[tensor].shape)


def _scales(call: Call) -> str:
    """The slot that all that a call makes is linear in, if it is the only one and nothing is added; else ""."""
    op = REGISTRY.get(call.op)
    if op is None or set(op.once) & call.inputs.keys():
        return ""
    slots = [s for s in call.inputs if set(call.outputs) <= set(op.linear.get(s, ()))]
    return slots[0] if len(slots) == 1 else ""


@dataclass(frozen=True)
class Factor:
    """A matrix of the chain: the tensor, or what it is the transpose of."""

    tensor: str
    turned: bool


class _Chain:
    def __init__(self, program: Program, made: dict[str, Call], uses: Counter[str], root: Call) -> None:
        self.program, self.made, self.uses, self.root = program, made, uses, root
        self.result = root.outputs["y"]
        self.inside: list[Call] = []
        self.number = 1.0
        self.factors = self._flat(self.result, False)
        self.sizes: list[int] = []              # of the axes between the factors, and at both ends
        self.splits: dict[tuple[int, int], int] = {}
        self.calls: list[Call] = []

    def _flat(self, tensor: str, turned: bool) -> list[Factor]:
        call = self.made.get(tensor)
        if call is None or not (call.op in NAMES or call.op == FACTOR) or (
                tensor != self.result and self.uses[tensor] != 1):
            return [Factor(tensor, turned)]
        self.inside.append(call)
        if call.op == FACTOR:
            self.number *= call.attrs["value"]
            return self._flat(call.inputs["x"], turned)
        op = REGISTRY[call.op]
        assert isinstance(op, Product)
        a, b = (self._flat(call.inputs[s], t != turned) for s, t in zip("ab", op.turned, strict=True))
        return b + a if turned else a + b

    def _shape(self, factor: Factor) -> tuple[int, int]:
        rows, columns = self.program.tensors[factor.tensor].shape[-2:]
        return (columns, rows) if factor.turned else (rows, columns)

    def rewrite(self) -> None:
        """Of three factors and more: matrices."""
        n = len(self.factors)
        self.sizes = [self._shape(f)[0] for f in self.factors] + [self._shape(self.factors[-1])[1]]
        work: dict[tuple[int, int], int] = {(i, i): 0 for i in range(n)}
        for length in range(1, n):
            for i in range(n - length):
                j = i + length
                found = [(work[i, s] + work[s + 1, j] + self.sizes[i] * self.sizes[s + 1] * self.sizes[j + 1], -s)
                         for s in range(i, j)]
                work[i, j], at = min(found)
                self.splits[i, j] = -at
        before = sum(REGISTRY[c.op].macs(site(self.program, c)) for c in self.inside)
        if work[0, n - 1] > before or not self._ways(0, n - 1, False):
            return
        for c in self.inside:
            if c is not self.root:
                del self.program.tensors[c.outputs["y"]]
        self._emit(0, n - 1, False)
        if self.number != 1.0:
            self._scale()
        for c in self.inside:
            self.program.replace_call(c, *(self.calls if c is self.root else []))

    def _ways(self, i: int, j: int, turned: bool) -> list[tuple[bool, bool]]:
        """How the two operands of this part's product (or of its transpose) may be taken, best first."""
        return [flags for flags in product((False, True), (True, False)) if flags in PRODUCTS and all(
            self._can(*side, flag != turned) for side, flag in zip(self._sides(i, j, turned), flags, strict=True))]

    def _sides(self, i: int, j: int, turned: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        s = self.splits[i, j]
        return ((s + 1, j), (i, s)) if turned else ((i, s), (s + 1, j))

    def _can(self, i: int, j: int, turned: bool) -> bool:
        """Whether this part can be had (as its transpose)."""
        return self.factors[i].turned == turned if i == j else bool(self._ways(i, j, turned))

    def _emit(self, i: int, j: int, turned: bool) -> str:
        if i == j:
            return self.factors[i].tensor
        flags = self._ways(i, j, turned)[0]
        a, b = (self._emit(*side, flag != turned) for side, flag in zip(self._sides(i, j, turned), flags, strict=True))
        call = Call(PRODUCTS[flags], {"a": a, "b": b}, {}, where=self.root.where)
        whole = (i, j) == (0, len(self.factors) - 1)
        made, = REGISTRY[call.op].infer(site(self.program, call)).values()
        name = self.result if whole else fresh(self.program, f"{self.result}.product")
        if not whole:
            self.program.add(Tensor(name, made, Role.ACTIVATION, source=self.root.where))
        self.calls.append(Call(call.op, call.inputs, {"y": name}, where=self.root.where))
        return name

    def _scale(self) -> None:
        """The number, at the smallest of the results."""
        at = min(range(len(self.calls)), key=lambda n: prod(self.program.tensors[self.calls[n].outputs["y"]].shape))
        name = self.calls[at].outputs["y"]
        t = self.program.tensors[name]
        plain = self.program.add(Tensor(fresh(self.program, f"{name}.plain"), t.type, Role.ACTIVATION, source=t.source)).name
        self.calls[at] = Call(self.calls[at].op, self.calls[at].inputs, {"y": plain}, where=self.root.where)
        self.calls.insert(at + 1, Call(FACTOR, {"x": plain}, {"y": name}, {"value": self.number}, where=self.root.where))
