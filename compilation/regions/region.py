"""A region: an operation that the compiler makes of a chain of leaves. Everything about it follows from its definition."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from functools import cached_property
from typing import Any

from compilation.ops import REGISTRY
from compilation.ops.base import Arrays, Op, Setting, Site, Slot
from compilation.program import Program, Role
from compilation.regions import plan
from compilation.regions.calls import needed
from compilation.regions.loops import Nest
from compilation.target import HOST, Target
from compilation.types import Type

PREFIX = "region."


class Region(Op):
    """An operation whose definition is a small Program of leaves on whole tensors.

    definition: tensors of role INPUT (token matrices) and CONSTANT (parameters) are the input slots, by their names; calls
    in order; `results` names the tensors that are the output slots. A gradient region has the forward one's input slots,
    `dy`, and results `d_<slot>`; a call asks for some of them.
    """

    attrs = {"schedule": (str, "")}
    schedule = ("schedule",)

    def __init__(self, definition: Program, results: tuple[str, ...], gradient: Region | None = None) -> None:
        self.definition, self.results = definition, results
        self.gradient_region = gradient

    @cached_property
    def name(self) -> str:  # type: ignore[override]
        """Names the content: equal chains are one region."""
        d = self.definition
        content = (self.results, *(tuple(v.items()) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else v
                                   for v in (getattr(d, f.name) for f in fields(d))))
        if content not in _NAMES:
            _NAMES[content] = PREFIX + hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:10]
        return _NAMES[content]

    def to_json(self) -> dict[str, Any]:
        """Plain data: the definition and what it gives."""
        return {"definition": json.loads(self.definition.to_json()), "results": list(self.results)}

    # slots ------------------------------------------------------------------------------------------
    @cached_property
    def inputs(self) -> tuple[Slot, ...]:  # type: ignore[override]
        kinds: dict[str, str] = {}      # a parameter that is read as tokens are is trained as a whole, as vectors are
        for call in self.definition.calls:
            for slot, tensor in call.inputs.items():
                kind = REGISTRY[call.op].slots[slot].kind
                kinds[tensor] = kind if kinds.get(tensor, kind) == kind and kind != "tile" else "vector"
        roles = {Role.INPUT: "tile", Role.CONSTANT: ""}
        return tuple(Slot(t.name, roles[t.role] or kinds.get(t.name, "vector"), element=t.element)
                     for t in self.definition.tensors.values() if t.role in roles)

    @cached_property
    def outputs(self) -> tuple[Slot, ...]:  # type: ignore[override]
        kinds = {s.name: s.kind for s in self.inputs}
        return tuple(Slot(r, kinds.get(r.removeprefix("d_"), "tile") if r.startswith("d_") else "tile",
                          element=self.definition.tensors[r].element) for r in self.results)

    # what it computes -----------------------------------------------------------------------------------
    @cached_property
    def needed_for(self) -> dict[str, tuple[str, ...]]:  # type: ignore[override]
        """Input slot -> the results that need it."""
        reads = {r: {t for c in needed(self.definition.calls, {r}) for t in c.inputs.values()} for r in self.results}
        return {s.name: tuple(r for r in self.results if s.name in reads[r]) for s in self.inputs}

    def bind(self, site: Site) -> dict[str, int]:
        for slot, shape in site.shapes.items():
            if self.definition.tensors[slot].shape != tuple(shape):
                raise ValueError(f"{slot} has shape {list(shape)}, not {list(self.definition.tensors[slot].shape)}")
        return {}

    def infer(self, site: Site) -> dict[str, Type]:
        made = {r: self.definition.tensors[r].type for r in self.results}
        return {r: t.shaped(site.part(r.removeprefix("d_"))) if r.removeprefix("d_") in site.parts else t
                for r, t in made.items()}

    # what it costs -----------------------------------------------------------------------------------------
    def settings(self, site: Site, target: Target) -> list[Setting]:
        return [Setting({"schedule": o.schedule}, o.scratch, o.macs, o.time) for o in plan.space(self, site, target).options]

    def macs(self, site: Site) -> int:
        return plan.layout(self, site).work(HOST)[0]      # the same on every core

    def time(self, site: Site, target: Target) -> int:
        found = plan.space(self, site, target).options
        schedule = site.attrs.get("schedule") or found[0].schedule
        known = next((o.time for o in found if o.schedule == schedule), None)
        return plan.layout(self, site, schedule).work(target)[1] if known is None else known

    def scratch(self, site: Site) -> int:
        return plan.nest(self, site).scratch

    def may_alias(self, site: Site) -> dict[str, str]:
        return dict(plan.space(self, site).over)

    def dims(self, site: Site) -> dict[str, int]:
        return {}

    def nest(self, site: Site) -> Nest:
        """The loops of a call under its schedule, every tensor in its place."""
        return plan.nest(self, site)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        made = [r for r in self.results if all(s in inputs for s, results in self.needed_for.items() if r in results)]
        values = dict(inputs)
        for c in needed(self.definition.calls, set(made)):
            results = REGISTRY[c.op].reference({s: values[t] for s, t in c.inputs.items()}, dict(c.attrs))
            values |= {t: results[s] for s, t in c.outputs.items()}
        return {r: values[r] for r in made}


_NAMES: dict[tuple[Any, ...], str] = {}     # by content
