"""Form streamed operations: chains that are computed a few token rows (or one head) at a time.

`mlp_block` covers [layer_norm ->] linear -> activation -> linear [-> scale] [-> add of the chain's own input];
`attn_block` covers [layer_norm ->] packed linear -> attention -> linear [+ gram] [-> scale] [-> add].
A linear may have a low-rank addition (LoRA): add(linear(x), [mul_const] linear(linear(x))).
The chain is found by its operations and by who reads what, not by names, shapes or models. Its hidden tensors
then never exist as a whole, forward or backward.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from compilation.ops import REGISTRY
from compilation.passes.rewrite import producers, use_counts
from compilation.program import Call, Program

ACTIVATIONS = {"gelu": lambda c: 1 if c.attrs.get("tanh") else 0, "relu": lambda c: 2}


@dataclass
class Chain:
    """A match under construction: the calls it replaces and the slots of the streamed operation."""

    op: str
    calls: list[Call] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass
class Layer:
    """A linear and, if it has one, its low-rank addition: x -> result."""

    calls: list[Call]
    x: str
    result: str
    inputs: dict[str, str]      # w, and b, a, up where present: y = x w^T + b + scale * (x a^T) up^T
    scale: float = 1.0
    readers: int = 1            # how often the layer reads x

    def slots(self, w: str, b: str, low: str) -> tuple[dict[str, str], dict[str, Any]]:
        """The slots and attributes of a streamed operation that takes the layer in."""
        names = {"w": w, "b": b, "a": f"{low}_a", "up": f"{low}_b"}
        return {names[s]: t for s, t in self.inputs.items()}, {f"{low}_scale": self.scale} if "a" in self.inputs else {}


class Matcher:
    """Finds chains in one Program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.made = producers(program)
        self.uses: Counter[str] = use_counts(program)
        self.readers: dict[str, list[Call]] = {}
        for c in program.calls:
            for t in c.inputs.values():
                self.readers.setdefault(t, []).append(c)

    def _only_reader(self, tensor: str) -> Call | None:
        return self.readers[tensor][0] if self.uses[tensor] == 1 and tensor in self.readers else None

    def _layer(self, tensor: str) -> Layer | None:
        """The layer that makes `tensor`."""
        made = self.made.get(tensor)
        if made and made.op == "add":
            a, b = made.inputs["a"], made.inputs["b"]
            return self._low_rank(made, a, b) or self._low_rank(made, b, a)
        if made is None or made.op != "linear":
            return None
        return Layer([made], made.inputs["x"], tensor, {s: t for s, t in made.inputs.items() if s != "x"})

    def _low_rank(self, total: Call, base: str, low: str) -> Layer | None:
        """The layer that `total` completes: a linear, `base`, plus its low-rank addition, `low`."""
        first, last, scale = self._sole(base, "linear"), self._sole(low, "mul_const"), 1.0
        if last:
            low, scale = last.inputs["x"], last.attrs["value"]
        up = self._sole(low, "linear")
        down = self._sole(up.inputs["x"], "linear") if up else None
        if first is None or up is None or down is None or "b" in up.inputs or "b" in down.inputs \
                or down.inputs["x"] != first.inputs["x"]:
            return None
        inputs = {s: t for s, t in first.inputs.items() if s != "x"}
        return Layer([first, down, up, *([last] if last else []), total], first.inputs["x"], total.outputs["y"],
                     {**inputs, "a": down.inputs["w"], "up": up.inputs["w"]}, scale, 2)

    def _sole(self, tensor: str, op: str) -> Call | None:
        """The call that makes `tensor`, if it is such an operation and its result is read once."""
        made = self.made.get(tensor)
        return made if made and made.op == op and self.uses[tensor] == 1 else None

    def _layer_below(self, x: str) -> Layer | None:
        """The layer that alone reads `x`."""
        for reader in self.readers.get(x, []):
            if reader.op != "linear" or reader.inputs["x"] != x:
                continue
            layer, result = Layer([], x, "", {}), reader.outputs["y"]
            while (found := self._layer(result)) and found.x == x:
                layer = found
                below = self._only_reader(result)
                if below is None or below.op != "add":
                    break
                result = below.outputs["y"]
            if layer.calls and layer.readers == self.uses[x]:
                return layer
        return None

    def _norm_above(self, chain: Chain, tensor: str, readers: int) -> str:
        """Take in the layer_norm that makes `tensor`, if only the chain reads it; returns the chain's input."""
        norm = self.made.get(tensor)
        if norm is None or norm.op != "layer_norm" or self.uses[tensor] != readers:
            chain.attrs["norm"] = 0
            return tensor
        chain.calls.insert(0, norm)
        chain.attrs |= {"norm": 1, "eps": norm.attrs["eps"]}
        chain.inputs |= {s: norm.inputs[s] for s in ("gamma", "beta") if s in norm.inputs}
        return norm.inputs["x"]

    def _tail(self, chain: Chain, tensor: str, x: str) -> str:
        """Take in the layer scale and the residual addition below; returns the chain's result."""
        reader = self._only_reader(tensor)
        if reader and reader.op == "scale":
            chain.calls.append(reader)
            chain.inputs["ls"] = reader.inputs["s"]
            tensor = reader.outputs["y"]
            reader = self._only_reader(tensor)
        chain.attrs["residual"] = 0
        if reader and reader.op == "add" and x in (reader.inputs["a"], reader.inputs["b"]) \
                and reader.inputs["a"] != reader.inputs["b"]:
            chain.calls.append(reader)
            chain.attrs["residual"] = 1
            tensor = reader.outputs["y"]
        return tensor

    def mlp(self, act: Call) -> tuple[Chain, str] | None:
        first, second = self._layer(act.inputs["x"]), self._layer_below(act.outputs["y"])
        if first is None or second is None or self.uses[act.inputs["x"]] != 1:
            return None
        chain = Chain("mlp_block", [*first.calls, act, *second.calls], where=first.calls[0].where.rsplit(".", 1)[0])
        one, two = first.slots("w1", "b1", "fc1"), second.slots("w2", "b2", "fc2")
        chain.attrs |= {"act": ACTIVATIONS[act.op](act), **one[1], **two[1]}
        x = self._norm_above(chain, first.x, first.readers)
        chain.inputs = {"x": x, **chain.inputs, **one[0], **two[0]}
        result = self._tail(chain, second.result, x)
        if self.program.tensors[result].shape != self.program.tensors[x].shape:
            return None
        return chain, result

    def attention(self, core: Call) -> tuple[Chain, str] | None:
        packed, proj = self._layer(core.inputs["qkv"]), self._layer_below(core.outputs["y"])
        if packed is None or proj is None or self.uses[core.inputs["qkv"]] != 1:
            return None
        chain = Chain("attn_block", [*packed.calls, core, *proj.calls], where=packed.calls[0].where.rsplit(".", 1)[0])
        one, two = packed.slots("wqkv", "bqkv", "qkv"), proj.slots("wproj", "bproj", "proj")
        chain.attrs |= {"heads": core.attrs["heads"], **one[1], **two[1]}
        inputs = {**one[0], **two[0]}
        source, result, readers = packed.x, proj.result, packed.readers
        reader = self._only_reader(result)
        if reader and reader.op == "add":
            other = reader.inputs["b"] if reader.inputs["a"] == result else reader.inputs["a"]
            gram = self.made.get(other)
            if gram and gram.op == "gram" and gram.inputs["x"] == source and self.uses[other] == 1:
                chain.calls += [gram, reader]
                inputs |= {"gram_a": gram.inputs["a"], "gram_b": gram.inputs["b"]}
                result, readers = reader.outputs["y"], readers + 1
        x = self._norm_above(chain, source, readers)
        chain.inputs = {"x": x, **chain.inputs, **inputs}
        result = self._tail(chain, result, x)
        if self.program.tensors[result].shape != self.program.tensors[x].shape:
            return None
        chain.attrs["q_rows"] = self.program.tensors[x].shape[0]
        return chain, result


def form_streams(program: Program, chosen: set[int] | None = None) -> int:
    """Replace chains by streamed operations, in place; returns how many chains there are.

    chosen: the indices (in program order) of the chains to stream; None streams all of them. Where two chains could
    take in the same call, the earlier one has it.
    """
    chains: list[tuple[Chain, str]] = []
    taken: set[int] = set()
    matcher = Matcher(program)
    for c in program.calls:
        found = matcher.mlp(c) if c.op in ACTIVATIONS else matcher.attention(c) if c.op == "packed_attention" else None
        if found and taken.isdisjoint(map(id, found[0].calls)):
            chains.append(found)
            taken.update(map(id, found[0].calls))
    for i, (chain, result) in enumerate(chains):
        if chosen is not None and i not in chosen:
            continue
        attrs = REGISTRY[chain.op].defaults() | chain.attrs
        new = Call(chain.op, chain.inputs, {"y": result}, attrs, where=chain.where)
        last = max(chain.calls, key=program.position)
        for c in chain.calls:
            program.replace_call(c, *([new] if c is last else []))
            for t in c.outputs.values():
                if t != result:
                    del program.tensors[t]
    return len(chains)
