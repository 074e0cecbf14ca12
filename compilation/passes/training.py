"""From a forward pass to a training step: loss, gradients, the update plan, and updates as soon as possible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compilation.errors import PlanError
from compilation.ops import REGISTRY
from compilation.passes.rewrite import fresh, parameter_views, producers, use_counts, whole_weight
from compilation.program import Call, Program, Role, Tensor, Weight
from compilation.types import INDEX, LABEL, Type

Selection = str | dict[str, list[int]]     # "all", {"cols": [...]} or {"rows": [...]}


MOST_INDICES = 2**16      # an index list is uint16_t on the device


def add_loss(program: Program) -> None:
    """Append the label input and softmax cross-entropy."""
    logits = program.logits
    t = program.tensors[logits]
    if len(t.shape) != 2 or t.shape[0] != 1:
        raise PlanError(f"the model's result has shape {t.shape}, not (1, classes): a classifier is expected")
    if t.shape[1] < 2:
        raise PlanError(f"the model's result has shape {t.shape}: a classifier needs at least 2 classes, with one the "
                        "cross-entropy is 0 whatever the weights are")
    program.put(logits, role=Role.OUTPUT)
    program.label = program.add(Tensor(fresh(program, "label"), Type((1,), LABEL), Role.INPUT)).name
    program.loss = program.add(Tensor(fresh(program, "loss"), Type((1,)), Role.OUTPUT)).name
    program.calls.append(Call("cross_entropy", {"logits": logits, "label": program.label}, {"loss": program.loss}))


def make_matrices(program: Program) -> None:
    """Every parameter in a matrix slot becomes a Weight (all of it frozen so far)."""
    for call in program.calls:
        if call.op in REGISTRY:
            for s in REGISTRY[call.op].inputs:
                if s.kind == "matrix" and s.name in call.inputs:
                    whole_weight(program, call.inputs[s.name])


def trained_names(plan: dict[str, Selection]) -> list[str]:
    """The parameters of which a plan trains anything."""
    return [n for n, s in plan.items() if s not in ("none", None) and (isinstance(s, str) or any(s.values()))]


def check_plan(program: Program, plan: dict[str, Selection], known: dict[str, tuple[int, ...]]) -> dict[str, Selection]:
    """The plan's selections, normalised; parameters the compiled model does not use raise PlanError."""
    checked: dict[str, Selection] = {}
    for name, selection in plan.items():
        if selection in ("none", None):
            continue
        if name not in known:
            raise PlanError(f"the update plan trains {name!r}, which the model does not have")
        if name not in program.tensors:
            raise PlanError(f"the update plan trains {name!r}, which the compiled model does not use")
        if selection == "all":
            checked[name] = "all"
            continue
        (axis, index), = selection.items() if isinstance(selection, dict) and len(selection) == 1 else (("?", []),)
        if axis not in ("cols", "rows"):
            raise PlanError(f"{name}: a selection is 'all', 'none', {{cols: [...]}} or {{rows: [...]}}, not {selection!r}")
        if name not in program.weights:
            raise PlanError(f"{name}: only weight matrices can be trained in part; use 'all' or 'none'")
        if others := [c for c in program.calls if name in c.inputs.values() and not _as_matrix(c, name)]:
            raise PlanError(f"{name}: {others[0].op} in {others[0].where or 'the model'} reads it whole, so it cannot be "
                            "trained in part; use 'all' or 'none'")
        size = program.weights[name].shape[1 if axis == "cols" else 0]
        if size > MOST_INDICES:
            raise PlanError(f"{name}: it has {size:,} {axis}, and the device lists at most {MOST_INDICES:,} (two bytes an "
                            "index); use 'all' or 'none'")
        if list(index) != sorted(set(index)) or (index and not 0 <= index[0] <= index[-1] < size):
            raise PlanError(f"{name}: {axis} must be ascending, without repeats and within 0..{size - 1}")
        if index:
            checked[name] = "all" if len(index) == size else {axis: [int(i) for i in index]}
    return checked


def _as_matrix(call: Call, name: str) -> bool:
    """Whether a call reads this parameter in matrix slots only."""
    return call.op in REGISTRY and all(REGISTRY[call.op].slots[s].kind == "matrix" for s,
                                       t in call.inputs.items() if t == name)


def apply_plan(program: Program, plan: dict[str, Selection], momentum: float) -> None:
    """Split trained matrices into their frozen and trained parts; trained tensors move to RAM."""
    for name, selection in plan.items():
        weight = program.weights.get(name)
        if selection == "all":
            trained = program.put(name, role=Role.TRAINED).name
            if weight:
                program.weights[name] = replace(weight, frozen=None, trained=name)
        else:
            assert isinstance(selection, dict) and weight is not None
            (axis, index), = selection.items()
            rows, cols = weight.shape
            k = len(index)
            part = (rows, k) if axis == "cols" else (k, cols)
            rest = (rows, cols - k) if axis == "cols" else (rows - k, cols)
            source = program.tensors.pop(name).type
            trained = program.add(Tensor(f"{name}.trained", source.shaped(part), Role.TRAINED, source=name)).name
            frozen = program.add(Tensor(f"{name}.frozen", source.shaped(rest), Role.CONSTANT, source=name)).name
            program.weights[name] = Weight(name, weight.shape, frozen, trained, axis, tuple(index))
        if momentum:
            program.add(Tensor(f"{trained}.velocity", program.tensors[trained].type, Role.STATE, source=name))


def add_updates(program: Program, backward: list[Call], gradients: dict[str, str]) -> None:
    """Append the backward calls, each wanted gradient followed at once by its update.

    A gradient that one gradient operation makes and nothing else reads is applied inside that operation
    (`Call.updates`), so that it never exists as a tensor, unless other calls of the forward pass read the parameter, too:
    they may be computed again later. Any other gets an `sgd` call, after the last reader of the parameter.
    """
    forward = len(program.calls)
    program.calls += backward
    uses, views = use_counts(program), parameter_views(program)
    made = {t: i for i, c in enumerate(program.calls) for t in c.outputs.values()}
    readers: dict[str, list[int]] = {}
    for i, c in enumerate(program.calls):
        for t in c.inputs.values():
            readers.setdefault(views.get(t, t), []).append(i)
    updates: list[tuple[int, Call]] = []        # after which call, and the call itself
    for parameter, gradient in gradients.items():
        at = made[gradient]
        call, last = program.calls[at], readers[parameter][-1]
        slot = next(s for s, t in call.outputs.items() if t == gradient)
        sole = sum(i < forward for i in readers[parameter]) == 1
        if uses[gradient] == 0 and slot.startswith("d_") and last <= at and sole:
            outputs = {s: t for s, t in call.outputs.items() if t != gradient}
            program.calls[at] = replace(call, outputs=outputs, updates={**call.updates, slot.removeprefix("d_"): parameter})
            del program.tensors[gradient]
        else:
            update = Call("sgd", {"p": parameter, "g": gradient}, {}, updates={"p": parameter}, where=call.where)
            updates.append((max(last, at), update))
    for at, update in sorted(updates, key=lambda u: u[0], reverse=True):
        program.calls.insert(at + 1, update)
    _shape_partial_gradients(program)


def _shape_partial_gradients(program: Program) -> None:
    """A gradient of a matrix trained in part has the shape of the trained part."""
    for call in program.calls:
        for slot, t in call.outputs.items():
            weight = program.weights.get(call.inputs.get(slot.removeprefix("d_"), ""))
            if slot.startswith("d_") and weight and weight.trained:
                program.put(t, type=program.tensors[weight.trained].type)
        if call.op == "add" and call.outputs["y"] in program.tensors:
            program.put(call.outputs["y"], type=program.tensors[call.inputs["a"]].type)


def slice_early(program: Program) -> None:
    """Where only some columns of a linear are trained, keep only those columns of its input, cut where it is made."""
    for call in [c for c in program.calls if c.op == "linear_grad" and "x" in c.inputs]:
        weight = program.weights[call.inputs["w"]]
        if weight.axis != "cols":
            continue
        x = call.inputs["x"]
        index = fresh(program, f"{weight.name}.columns")
        program.add(Tensor(index, Type((len(weight.index),), INDEX), Role.CONSTANT, source=weight.name))
        program.constants[index] = weight.index
        made = producers(program).get(x)
        at = program.position(made) + 1 if made else 0
        whole = program.tensors[x].type
        columns = whole.shaped((whole.shape[0], len(weight.index)))
        cut = program.add(Tensor(fresh(program, f"{x}.columns"), columns, Role.ACTIVATION)).name
        program.calls.insert(at, Call("take_cols", {"x": x, "index": index}, {"y": cut}, {}, where=call.where))
        program.replace_call(call, replace(call, inputs={**call.inputs, "x": cut}, attrs={**call.attrs, "x_sliced": 1}))


def parameter_values(program: Program, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The initial value of every CONSTANT and TRAINED tensor, cut from the model's parameters."""
    values: dict[str, np.ndarray] = {}
    for w in program.weights.values():
        if w.axis:
            whole = np.ascontiguousarray(parameters[w.name], np.float32).reshape(w.shape)
            axis = 1 if w.axis == "cols" else 0
            assert w.trained and w.frozen
            values[w.trained] = np.take(whole, w.index, axis)
            values[w.frozen] = np.take(whole, w.rest, axis)
    for t in program.tensors.values():
        if t.name in values or t.role not in (Role.CONSTANT, Role.TRAINED):
            continue
        source = program.constants[t.name] if t.name in program.constants else parameters[t.name]
        values[t.name] = t.type.array(source)
    return values

