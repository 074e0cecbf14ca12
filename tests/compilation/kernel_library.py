"""Kernels as a shared library, called through ctypes with argument structs built from the headers and the registry."""

from __future__ import annotations

import ctypes as ct
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site
from compilation.types import F32, INDEX, Element

KERNELS = Path(__file__).resolve().parents[2] / "runtime" / "kernels"
FLAGS = ["-std=c99", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-DVT_PROFILE",
         "-shared", "-fPIC"]
GUARD = 64


class Part(ct.Structure):
    _fields_ = [("w", ct.c_void_p), ("rows", ct.c_void_p), ("cols", ct.c_void_p), ("n_rows", ct.c_int32),
                ("n_cols", ct.c_int32)]


class Matrix(ct.Structure):
    _fields_ = [("frozen", Part), ("trained", Part), ("rows", ct.c_int32), ("cols", ct.c_int32)]


class Sink(ct.Structure):
    _fields_ = [("grad", ct.c_void_p), ("param", ct.c_void_p), ("velocity", ct.c_void_p)]


class Step(ct.Structure):
    _fields_ = [("lr", ct.c_float), ("momentum", ct.c_float), ("macs", ct.POINTER(ct.c_uint64))]


@cache
def structures() -> dict[str, type[ct.Structure]]:
    """Every `vt_<op>_args` of the headers as a ctypes structure."""
    made: dict[str, type[ct.Structure]] = {}
    for header in sorted(KERNELS.glob("*.h")):
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
        for body, name in re.findall(r"typedef struct \{(.*?)\} (vt_\w+_args);", text, flags=re.S):
            fields: list[tuple[str, Any]] = []
            for declaration in filter(None, (d.strip() for d in body.split(";"))):
                kind, first, *more = re.match(r"((?:const )?\w+) (.*)", declaration, flags=re.S).groups()  # type: ignore
                for item in (first if not more else declaration).split(","):
                    item = item.strip()
                    c_type = (ct.c_void_p if item.startswith("*") else
                              {"vt_matrix": Matrix, "vt_sink": Sink, "int32_t": ct.c_int32, "float": ct.c_float}[kind])
                    fields.append((item.lstrip("* "), c_type))
            made[name] = type(name, (ct.Structure,), {"_fields_": fields})
    return made


def build(folder: Path, *options: str, compiler: tuple[str, ...] = (sys.executable, "-m", "ziglang", "cc"),
          name: str = "kernels.so") -> ct.CDLL:
    """All kernels in one shared library."""
    sources = [str(p) for p in sorted(KERNELS.glob("*.c"))]
    subprocess.run([*compiler, *FLAGS, *options, *sources, "-lm", "-o", str(folder / name)], check=True)
    return ct.CDLL(str(folder / name))


def site_of(op: Op, sample: Sample, settings: dict[str, Any] | None = None) -> Site:
    shapes = {s: v.shape for s, v in sample.inputs.items()}
    parts = {s: (axis, len(index)) for s, (axis, index) in sample.parts.items()}
    return Site(shapes, {**{k: d for k, (_, d) in op.attrs.items()}, **sample.attrs, **(settings or {})},
                frozenset(sample.wants), parts)


def trained_part(sample: Sample, slot: str, whole: np.ndarray) -> np.ndarray:
    """Of a matrix-shaped array, what belongs to the slot's trained part."""
    if slot not in sample.parts:
        return whole
    axis, index = sample.parts[slot]
    if whole.shape[axis == "cols"] == len(index):
        return whole                    # made from compact inputs
    return np.take(whole, index, 1 if axis == "cols" else 0)


@dataclass
class Result:
    outputs: Arrays
    updated: Arrays                     # slot -> parameter after a fused update
    velocity: Arrays
    macs: int
    scratch_written: int                # bytes up to the last one that was written
    intact: bool                        # guards around scratch and outputs


@dataclass
class Update:
    """Fused SGD instead of written gradients."""

    lr: float = 0.05
    momentum: float = 0.0
    velocity: bool = False


@dataclass
class Memory:
    """Keeps arrays alive during a call, with guards around what the kernel writes."""

    guarded: list[np.ndarray] = field(default_factory=list)
    keep: list[Any] = field(default_factory=list)

    def buffer(self, size: int, fill: int) -> np.ndarray:
        raw = np.full(size + 2 * GUARD, 0xA5, np.uint8)
        raw[GUARD:GUARD + size] = fill
        self.guarded.append(raw)
        return raw[GUARD:GUARD + size]

    def output(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.buffer(4 * int(np.prod(shape)), 0xFF).view(np.float32).reshape(shape)   # all NaN

    def array(self, value: np.ndarray, element: Element = F32) -> np.ndarray:
        made = np.ascontiguousarray(value, element.numpy).copy()
        self.keep.append(made)
        return made

    def intact(self) -> bool:
        return all((r[:GUARD] == 0xA5).all() and (r[-GUARD:] == 0xA5).all() for r in self.guarded)


def _matrix(memory: Memory, sample: Sample, slot: str, trainable: bool) -> tuple[Matrix, np.ndarray | None]:
    """The C view of a weight, and its trained array."""
    whole = sample.inputs[slot]
    m = Matrix(rows=whole.shape[0], cols=whole.shape[1])
    if slot not in sample.parts:
        data = memory.array(whole)
        setattr(m, "trained" if trainable else "frozen", Part(data.ctypes.data, None, None, *whole.shape))
        return m, data
    axis, index = sample.parts[slot]
    rest = [i for i in range(whole.shape[axis == "cols"]) if i not in index]
    trained = None
    for name, chosen in (("frozen", rest), ("trained", index)):
        data = memory.array(np.take(whole, chosen, 1 if axis == "cols" else 0))
        table = memory.array(np.array(chosen), INDEX).ctypes.data
        part = Part(data.ctypes.data, table if axis == "rows" else None, table if axis == "cols" else None, *data.shape)
        setattr(m, name, part)
        trained = data
    return m, trained


def run(library: ct.CDLL, op: Op, sample: Sample, settings: dict[str, Any] | None = None, update: Update | None = None,
        alias: dict[str, str] | None = None, fill: int = 0x5A) -> Result:
    """Call the kernel once. alias: output slot -> input slot whose storage it takes over."""
    site = site_of(op, sample, settings)
    memory, alias = Memory(), alias or {}
    args = structures()[f"{op.symbol}_args"]()
    inferred = {s: made.shape for s, made in op.infer(site).items()}
    stored: dict[str, np.ndarray] = {}
    trained: dict[str, np.ndarray] = {}
    field_types = dict(args._fields_)
    for slot in op.inputs:
        if slot.name not in sample.inputs:
            continue
        if slot.kind == "matrix":
            view, data = _matrix(memory, sample, slot.name, f"d_{slot.name}" in sample.wants)
            setattr(args, slot.name, view)
            if data is not None:
                trained[slot.name] = data
            continue
        data = memory.array(sample.inputs[slot.name], slot.element)
        if slot.name in alias.values():
            kept, data = data, memory.output(data.shape)
            data[...] = kept
        stored[slot.name] = trained[slot.name] = data
        if field_types[slot.name] is not Sink:
            setattr(args, slot.name, data.ctypes.data)
    for slot in op.inputs:              # a parameter that the operation itself updates
        if field_types.get(slot.name) is Sink:
            setattr(args, slot.name, Sink(None, trained[slot.name].ctypes.data, None))
    outputs: Arrays = {}
    velocity: Arrays = {}
    for slot in op.outputs:
        if sample.wants and slot.name not in sample.wants and slot.name.startswith("d_"):
            continue
        if slot.name in alias:
            outputs[slot.name] = stored[alias[slot.name]]
            setattr(args, slot.name, outputs[slot.name].ctypes.data)
        elif field_types[slot.name] is not Sink:
            outputs[slot.name] = memory.output(inferred[slot.name])
            setattr(args, slot.name, outputs[slot.name].ctypes.data)
        elif update is None:
            outputs[slot.name] = memory.output(inferred[slot.name])
            setattr(args, slot.name, Sink(outputs[slot.name].ctypes.data, None, None))
        else:
            parameter = slot.name.removeprefix("d_")
            if parameter not in trained:            # such as beta: not read, only updated
                trained[parameter] = memory.array(np.ones(inferred[slot.name]))
            if update.velocity:
                velocity[parameter] = memory.array(np.full(inferred[slot.name], 0.25))
            setattr(args, slot.name, Sink(None, trained[parameter].ctypes.data,
                                          velocity[parameter].ctypes.data if update.velocity else None))
    for name, (kind, _) in op.attrs.items():
        setattr(args, name, kind(site.attrs[name]))
    for name, value in op.dims(site).items():
        setattr(args, name, value)
    size = op.scratch(site)
    scratch = memory.buffer(size, fill)
    if "scratch" in field_types:
        args.scratch = scratch.ctypes.data if size else None
    macs = ct.c_uint64(0)
    step = Step(update.lr if update else 0.05, update.momentum if update else 0.0, ct.pointer(macs))
    getattr(library, op.symbol)(ct.byref(args), ct.byref(step))
    written = np.flatnonzero(scratch != fill)
    return Result({s: v.astype(np.float64) for s, v in outputs.items()}, trained, velocity, macs.value,
                  int(written[-1]) + 1 if written.size else 0, memory.intact())
