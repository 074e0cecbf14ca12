"""The calls of a region's definition, cut to what is wanted: one for each gradient, with what they lack put before them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from compilation.ops import REGISTRY
from compilation.program import Call, Program
from compilation.regions.loops import PANEL
from compilation.types import Type


def normal_calls(definition: Program, results: Iterable[str], split: bool) -> list[Call]:
    """The calls that the wanted results need: one for each gradient, with what they lack put before them.

    split: operations whose outputs are made together are split, too, by the axes of their outputs.
    """
    wanted = set(results)
    calls = [c for call in needed(definition.calls, wanted) for c in with_before(call)]
    calls = needed([c for call in calls for c in apart(call, split)], wanted)
    return in_order(needed(remade(calls), wanted))


def in_order(calls: list[Call]) -> list[Call]:
    """The calls, each behind those that it reads from, otherwise as they were."""
    made = {t: c for c in calls for t in c.outputs.values()}
    out: list[Call] = []
    done: set[int] = set()

    def put(call: Call) -> None:
        if id(call) not in done:
            done.add(id(call))
            for t in call.inputs.values():
                if t in made:
                    put(made[t])
            out.append(call)

    for call in calls:
        put(call)
    return out


def needed(calls: Iterable[Call], wanted: set[str]) -> list[Call]:
    """The calls, outputs and inputs that lead to what is wanted."""
    calls = list(calls)
    made = {t: i for i, c in enumerate(calls) for t in c.outputs.values()}
    kept: dict[int, set[str]] = {}
    left = list(wanted)
    while left:
        tensor = left.pop()
        if tensor not in made or tensor in kept.setdefault(made[tensor], set()):
            continue
        kept[made[tensor]].add(tensor)
        call = calls[made[tensor]]
        left += _read_for(call, {s for s, t in call.outputs.items() if t in kept[made[tensor]]}).values()
    out = []
    for i in sorted(kept):
        outputs = {s: t for s, t in calls[i].outputs.items() if t in kept[i]}
        out.append(replace(calls[i], outputs=outputs, inputs=_read_for(calls[i], set(outputs))))
    return out


def _read_for(call: Call, outputs: set[str]) -> dict[str, str]:
    """The inputs that are read for some of the outputs."""
    rules = REGISTRY[call.op].needed_for
    return {s: t for s, t in call.inputs.items() if s not in rules or set(rules[s]) & outputs}


def with_before(call: Call) -> list[Call]:
    """The call behind the one that makes the inputs it lacks."""
    op = REGISTRY[call.op]
    if op.before is None or any(s.name in call.inputs for s in REGISTRY[op.before].outputs):
        return [call]
    first = REGISTRY[op.before]
    stem = next(iter(call.outputs.values()))
    made = {s.name: f"{stem}.{s.name}" for s in first.outputs}
    inputs = {s.name: call.inputs[s.name] for s in first.inputs if s.name in call.inputs}
    attrs = {k: v for k, v in call.attrs.items() if k in first.attrs}
    return [Call(first.name, inputs, made, attrs, where=call.where), replace(call, inputs={**call.inputs, **made})]


def remade(calls: list[Call]) -> list[Call]:
    """Where a gradient call can give the forward result of its own operation, too, the forward call is left out."""
    out = list(calls)
    for call in calls:
        op = REGISTRY[call.op]
        if any(set(op.free(g)) != set(op.free(s)) for g in op.remakes for s in call.outputs) \
                and any(c is not call and c.op == call.op and c.inputs == call.inputs for c in calls):
            continue                        # it was split, and another part has the same axes
        forward = next((f for f in out if REGISTRY[f.op].gradient == op.name and all(
            call.inputs.get(s) == t for s, t in f.inputs.items())), None) if op.remakes else None
        if forward is not None and not ancestors(out, call) & set(forward.outputs.values()):
            more = {g: forward.outputs[s] for g, s in op.remakes.items() if s in forward.outputs}
            out = [replace(call, outputs={**call.outputs, **more}) if c is call else c for c in out if c is not forward]
    return out


def ancestors(calls: list[Call], call: Call) -> set[str]:
    """The tensors that a call is computed from."""
    made = {t: c for c in calls for t in c.outputs.values()}
    found: set[str] = set()
    left = list(call.inputs.values())
    while left:
        t = left.pop()
        if t not in found:
            found.add(t)
            left += made[t].inputs.values() if t in made else []
    return found


def apart(call: Call, split: bool) -> list[Call]:
    """One call for each output; of operations that make theirs together, one for all, or one for outputs of the same
    axes."""
    op = REGISTRY[call.op]
    groups: dict[object, dict[str, str]] = {}
    sinks_first = sorted(call.outputs.items(), key=lambda o: not op.slots[o[0]].sink)    # what comes last may take its place
    for slot, tensor in sinks_first:
        together = op.joint or op.carried
        key: object = slot if not together else frozenset(op.free(slot)) if split else 0
        groups.setdefault(key, {})[slot] = tensor
    return [replace(call, outputs=g) for g in groups.values()] if len(groups) > 1 else [call]


def with_copies(calls: list[Call], results: set[str], types: dict[str, Type]) -> list[Call]:
    """A result that is made as a panel, or is read inside the region, too, is a copy of a tensor of the region's own, whose
    type is put into `types`."""
    read = {t for c in calls for t in c.inputs.values()}
    names: dict[str, str] = {}
    copies = []
    for c in calls:
        op = REGISTRY[c.op]
        for slot, t in c.outputs.items():
            if t in results and not op.slots[slot].sink and (t in read or op.layout.get(slot) == PANEL):
                names[t] = f"{t}.inner"
                types[names[t]] = types[t]
                copies.append(Call("copy", {"x": names[t]}, {"y": t}, where=c.where))
    renamed = [replace(c, inputs={s: names.get(t, t) for s, t in c.inputs.items()},
                       outputs={s: names.get(t, t) for s, t in c.outputs.items()}) for c in calls]
    return renamed + copies
