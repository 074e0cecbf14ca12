"""Form streamed operations: chains that are computed a few token rows (or one head) at a time.

`mlp_block` covers [layer_norm ->] linear -> activation -> linear [-> scale] [-> add of the chain's own input];
`attn_block` covers [layer_norm ->] packed linear -> attention -> linear [+ gram] [-> scale] [-> add].
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
        first, second = self.made.get(act.inputs["x"]), self._only_reader(act.outputs["y"])
        if first is None or second is None or first.op != "linear" or second.op != "linear" \
                or self.uses[act.inputs["x"]] != 1 or second.inputs["x"] != act.outputs["y"]:
            return None
        chain = Chain("mlp_block", [first, act, second], where=first.where.rsplit(".", 1)[0])
        chain.attrs["act"] = ACTIVATIONS[act.op](act)
        inputs = {"w1": first.inputs["w"], "w2": second.inputs["w"]}
        inputs |= {s: c.inputs["b"] for s, c in (("b1", first), ("b2", second)) if "b" in c.inputs}
        x = self._norm_above(chain, first.inputs["x"], 1)
        chain.inputs = {"x": x, **chain.inputs, **inputs}
        result = self._tail(chain, second.outputs["y"], x)
        if self.program.tensors[result].shape != self.program.tensors[x].shape:
            return None
        return chain, result

    def attention(self, core: Call) -> tuple[Chain, str] | None:
        packed, proj = self.made.get(core.inputs["qkv"]), self._only_reader(core.outputs["y"])
        if packed is None or proj is None or packed.op != "linear" or proj.op != "linear" \
                or self.uses[core.inputs["qkv"]] != 1 or proj.inputs["x"] != core.outputs["y"]:
            return None
        chain = Chain("attn_block", [packed, core, proj], where=packed.where.rsplit(".", 1)[0])
        chain.attrs["heads"] = core.attrs["heads"]
        inputs = {"wqkv": packed.inputs["w"], "wproj": proj.inputs["w"]}
        inputs |= {s: c.inputs["b"] for s, c in (("bqkv", packed), ("bproj", proj)) if "b" in c.inputs}
        source, result, readers = packed.inputs["x"], proj.outputs["y"], 1
        reader = self._only_reader(result)
        if reader and reader.op == "add":
            other = reader.inputs["b"] if reader.inputs["a"] == result else reader.inputs["a"]
            gram = self.made.get(other)
            if gram and gram.op == "gram" and gram.inputs["x"] == source and self.uses[other] == 1:
                chain.calls += [gram, reader]
                inputs |= {"gram_a": gram.inputs["a"], "gram_b": gram.inputs["b"]}
                result, readers = reader.outputs["y"], 2
        x = self._norm_above(chain, source, readers)
        chain.inputs = {"x": x, **chain.inputs, **inputs}
        result = self._tail(chain, result, x)
        if self.program.tensors[result].shape != self.program.tensors[x].shape:
            return None
        chain.attrs["q_rows"] = self.program.tensors[x].shape[0]
        return chain, result


def form_streams(program: Program, chosen: set[int] | None = None) -> int:
    """Replace chains by streamed operations, in place; returns how many chains there are.

    chosen: the indices (in program order) of the chains to stream; None streams all of them.
    """
    chains = []
    matcher = Matcher(program)
    for c in program.calls:
        found = matcher.mlp(c) if c.op in ACTIVATIONS else matcher.attention(c) if c.op == "attention" else None
        if found:
            chains.append(found)
    for i, (chain, result) in enumerate(chains):
        if chosen is not None and i not in chosen:
            continue
        attrs = {k: default for k, (_, default) in REGISTRY[chain.op].attrs.items()} | chain.attrs
        new = Call(chain.op, chain.inputs, {"y": result}, attrs, where=chain.where)
        last = max(chain.calls, key=program.calls.index)
        program.calls[program.calls.index(last)] = new
        for c in chain.calls:
            if c is not last:
                program.calls.remove(c)
            for t in c.outputs.values():
                if t != result:
                    del program.tensors[t]
    return len(chains)
