"""Nests in C: their functions in a shared library beside the kernels, called through ctypes."""

from __future__ import annotations

import ctypes as ct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compilation.ops import REGISTRY, Slot
from compilation.ops.base import Arrays, Sample
from compilation.regions.judge import judge
from compilation.regions.loops import Nest
from runtime.codegen.generate import environment, op_headers
from runtime.codegen.regions import RegionCode, RegionSlots, region_code
from tests.compilation.kernel_library import FLAGS, KERNELS, Matrix, Memory, Sink, Step, matrix
from tests.compilation.nests import Case

ZIG = (sys.executable, "-m", "ziglang", "cc")


def code(name: str, case: Case, nest: Nest) -> RegionCode:
    """The C of a case's nest, written by the code generator; judged first, as it will run in this process."""
    judge(nest, case.shapes, case.outputs, case.trained, case.updates)
    matrices = {w.tensor for _, c in nest.calls() for s, w in (*c.inputs.items(), *c.updates.items())
                if REGISTRY[c.op].slots[s].kind == "matrix"}

    def kind(slot: str) -> str:
        return "matrix" if slot in matrices else "tile" if slot in "x dy q k v" else "vector"

    inputs = [Slot(s, kind(s)) for s in case.inputs]
    outputs = [Slot(s, kind(s.removeprefix("d_")) if s.startswith("d_") else "tile") for s in case.expected]
    shapes = {**case.shapes, **case.outputs}
    slots = RegionSlots.of(inputs, outputs, {*case.inputs, *case.outputs}, case.updates, shapes, case.trained, False)
    return region_code(name, nest, slots, name)


def source(codes: Mapping[str, RegionCode]) -> str:
    """A C file; each function can be called from outside."""
    ops = sorted({op for c in codes.values() for op in c.ops})
    headers = "".join(f'#include "{h}"\n' for h in op_headers([REGISTRY[op] for op in ops], KERNELS))
    template = environment().get_template("region.c.j2")
    text = [f"{template.render(region=c)}void run_{n}(const {n}_args *a, const vt_step *s);\n"
            f"void run_{n}(const {n}_args *a, const vt_step *s) {{ {n}(a, s); }}\n" for n, c in codes.items()]
    return headers + "\n".join(text)


def build(folder: Path, codes: Mapping[str, RegionCode]) -> ct.CDLL:
    (folder / "nests.c").write_text(source(codes))
    sources = [str(p) for p in sorted(KERNELS.glob("*.c"))]
    subprocess.run([*ZIG, *FLAGS, "-I", str(KERNELS), str(folder / "nests.c"), *sources, "-lm", "-o",
                    str(folder / "nests.so")], check=True)
    return ct.CDLL(str(folder / "nests.so"))


def run(library: ct.CDLL, name: str, c: RegionCode, case: Case, nest: Nest, lr: float = 1.0) -> tuple[Arrays, int]:
    """The results, and of updates minus the change at rate 1; and the multiply-accumulates counted.

    Updated parameters start from 0, where nothing reads them, so that the change is the gradient to the bit."""
    memory = Memory()
    kinds: dict[str, Any] = {"vt_matrix": Matrix, "vt_sink": Sink}
    declared = [(f.split()[-1].lstrip("*"), kinds.get(f.split()[0], ct.c_void_p)) for f in c.fields]
    args = type("Args", (ct.Structure,), {"_fields_": declared})()
    sample = Sample(dict(case.inputs.items()), parts=case.parts)
    results, trained, before = {}, {}, {}
    for slot, kind in declared:
        if slot == "scratch":
            args.scratch = memory.buffer(nest.scratch, 0xFF).ctypes.data
        elif kind is Matrix:
            view, data = matrix(memory, sample, slot, slot in case.updates)
            setattr(args, slot, view)
            if data is not None:
                trained[slot] = data
        elif slot in case.inputs:
            trained[slot] = memory.array(case.inputs[slot])
            setattr(args, slot, trained[slot].ctypes.data)
        elif slot.removeprefix("d_") in case.updates:
            parameter = slot.removeprefix("d_")
            before[slot] = trained[parameter].copy()
            results[slot] = trained[parameter]
            setattr(args, slot, Sink(None, trained[parameter].ctypes.data, None, 0))
        else:
            results[slot] = memory.output(case.outputs[slot])
            at = results[slot].ctypes.data
            setattr(args, slot, Sink(at, None, None, 0) if kind is Sink else at)
    macs = ct.c_uint64(0)
    step = Step(lr, 0.0, ct.pointer(macs))
    getattr(library, f"run_{name}")(ct.byref(args), ct.byref(step))
    assert memory.intact()
    return {s: before[s] - v if s in before else v for s, v in results.items()}, macs.value


