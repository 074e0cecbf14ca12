"""Program -> a self-contained C folder: header, step, constant weights, the kernels that it needs, build files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from compilation.cost import STACK_BYTES
from compilation.ops.base import REGISTRY, Op
from compilation.pieces import trained_parts
from compilation.program import VIEW, Program, Role, Tensor
from compilation.target import KEYS, QUERIES, STAGE
from compilation.types import F32, INDEX, LABEL, U8
from runtime.codegen.emit import TIR_PREFIX, CallCode, Emitter, table_values
from runtime.codegen.layout import MAGIC, Layout, crc, digest, lay_out, part_value, weights_image
from runtime.codegen.literals import c_float, c_string
from runtime.codegen.place import put, require_ours
from runtime.errors import CodegenError

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
SUPPORT = "vt_support.c"        # in every folder: what a compiler may call by itself
AUGMENT = "vt_augment.h"        # beside every step that reads bytes: for the firmware to include, if it wants
TEMPLATES = Path(__file__).resolve().parent / "templates"

DEFINITION = re.compile(r"^(?!static)[a-z_0-9]+ \**(vt_\w+)\([^;]*?\)\s*\{", re.MULTILINE)
WORD = re.compile(r"\bvt_\w+")
TILING = {"VT_KEYS": KEYS, "VT_QUERIES": QUERIES, "VT_STAGE": STAGE}
TILE = re.compile(rf"\b({'|'.join(TILING)}) = (\d+)")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


@dataclass
class Interface:
    """The tensors a caller of the C code meets."""

    image: Tensor
    label: Tensor | None
    logits: Tensor
    loss: Tensor | None

    @property
    def classes(self) -> int:
        return int(self.logits.shape[-1])


@dataclass
class Generated:
    """What was written. Byte figures are exact: planned RAM and constant flash without code."""

    folder: Path
    layout: Layout
    interface: Interface
    sources: list[str] = field(default_factory=list)    # C files to compile, in order

    @property
    def ram_bytes(self) -> int:
        """Arena + trained + state + output + stack reserve: what the budget counts."""
        s = self.layout.sizes
        return s["arena"] + s["trained"] + s["state"] + s["output"] + STACK_BYTES

    @property
    def constant_bytes(self) -> int:
        return self.layout.sizes["weights"] + self.layout.table_bytes


def find_interface(program: Program) -> Interface:
    """Image, label, logits and loss, as the Program names them, or from roles and types."""
    def named(key: str, candidates: list[Tensor]) -> Tensor | None:
        if name := getattr(program, key):
            if name not in program.tensors:
                raise CodegenError(f"the Program says that {key} is tensor {name}, which does not exist")
            return program.tensors[name]
        return candidates[0] if candidates else None

    tensors = program.tensors.values()
    image = named("image", [t for t in tensors if t.role is Role.INPUT and t.element != LABEL])
    label = named("label", [t for t in tensors if t.role is Role.INPUT and t.element == LABEL])
    losses = [program.tensors[c.outputs["loss"]] for c in program.calls if "loss" in c.outputs]
    loss = named("loss", losses)
    outputs = [t for t in tensors if t.role is Role.OUTPUT and (loss is None or t.name != loss.name)]
    logits = named("logits", [t for t in outputs if t.element == F32])
    if image is None or logits is None:
        raise CodegenError("the Program has no image INPUT or no logits OUTPUT: nothing to call from outside")
    return Interface(image, label, logits, loss)


def check_tiles(copied: Iterable[str], kernels: Path) -> None:
    """Raises CodegenError where the kernels are tiled in another way than the Program was planned for."""
    for name in copied:
        for constant, value in TILE.findall((kernels / name).read_text()):
            if int(value) != TILING[constant]:
                raise CodegenError(f"kernel file {name} has {constant} = {value}; the Program was planned for "
                                   f"{TILING[constant]} (compilation.target)")


def kernel_files(sources: set[str], kernels: Path) -> list[str]:
    """The kernel sources, every project header they include, and every source that defines a function they call."""
    todo, done = sorted(sources), []
    definer = {function: path.name for path in sorted(kernels.glob("*.c"))
               for function in DEFINITION.findall(path.read_text())}
    while todo:
        name = todo.pop(0)
        if name in done:
            continue
        path = kernels / name
        if not path.is_file():
            raise CodegenError(f"kernel file {name} does not exist in {kernels.name}/")
        done.append(name)
        text = path.read_text()
        todo += [found for found in INCLUDE.findall(text) if (kernels / found).is_file()]
        if name.endswith(".c"):
            todo += sorted({definer[word] for word in WORD.findall(text) if word in definer})
    return sorted(done)


@dataclass(frozen=True)
class TrainedEntry:
    """A row of the table of trained weights in the C code."""

    name: str
    offset: int
    count: int
    rows: int
    cols: int
    axis: str
    index: str


def trained_entries(program: Program, layout: Layout) -> list[TrainedEntry]:
    """Offsets and counts are in floats; rows and cols are the stored shape; index names the chosen columns or rows."""
    entries = []
    for part in trained_parts(program):
        index = layout.table(part.index, part.parameter) if part.axis else ""
        offset = layout.places[part.tensors[0].name][1] // 4
        entries.append(TrainedEntry(part.parameter, offset, part.bytes // 4, *part.shape, part.axis or "", index))
    return entries


def constant_tables(program: Program, values: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Index tensors that belong to no weight: their values come with the parameters."""
    tables = {}
    for t in program.tensors.values():
        loose = t.role is Role.CONSTANT and t.element == INDEX and table_values(program, t.name) is None
        if loose and (t.name in values or t.source in values):
            tables[t.name] = [int(v) for v in part_value(program, t, values).ravel()]
    return tables


def environment() -> jinja2.Environment:
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
                             trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    env.filters["c_string"] = c_string
    env.filters["c_float"] = c_float
    env.filters["thousands"] = lambda n: f"{n:,}"
    return env


def generate(program: Program, values: Mapping[str, np.ndarray], folder: str | Path, *,
             registry: Mapping[str, Op] | None = None, kernels: Path = KERNELS) -> Generated:
    """Writes the C folder of a placed Program.

    program: placed (every arena tensor has an offset). values: constants and initial trained weights by tensor name
    or by PyTorch parameter name (whole parameters; parts are cut here). folder: replaced where it holds generated code
    and nothing else. Raises CodegenError where a value, a kernel or a place is missing; nothing is written then.
    """
    folder = Path(folder)
    require_ours(folder)
    registry = {**(REGISTRY if registry is None else registry), **program.regions}
    layout, interface = lay_out(program), find_interface(program)
    emitter = Emitter(program, layout, registry, constant_tables(program, values))
    calls = [emitter.call(i, c) for i, c in enumerate(program.calls)]
    names = {c.op for c in program.calls if not c.op.startswith(TIR_PREFIX)} - {VIEW, *program.regions}
    names |= {op for region in emitter.regions.values() for op in region.ops}
    ops = [registry[name] for name in sorted(names)]
    headers = op_headers(ops, kernels)
    math = {"vt_math.h"} if emitter.tir and (kernels / "vt_math.h").is_file() else set()
    beside = {SUPPORT, *([AUGMENT] if interface.image.element == U8 else [])}
    copied = sorted({*kernel_files({op.source for op in ops} | set(headers) | math, kernels), *beside})
    check_tiles(set(copied) - beside, kernels)
    image = weights_image(program, layout, values)
    files = render(program, layout, interface, calls, emitter, copied, headers, image)

    def write(fresh: Path) -> None:
        for name, text in files.items():
            (fresh / name).write_text(text)
        for name in copied:
            shutil.copyfile((KERNELS if name in beside else kernels) / name, fresh / name)
        (fresh / "weights.bin").write_bytes(image)

    put(folder, write)
    return Generated(folder, layout, interface, source_files(copied, files))


def source_files(copied: list[str], files: Mapping[str, str]) -> list[str]:
    return sorted(n for n in (*copied, *files) if n.endswith((".c", ".S")))


def render(program: Program, layout: Layout, interface: Interface, calls: list[CallCode], emitter: Emitter,
           copied: list[str], op_headers: list[str], image: bytes) -> dict[str, str]:
    """The generated texts by file name. image: of weights.bin."""
    entries = trained_entries(program, layout)
    names = ["vit_train.c", "weights.S", *(["vit_tir.c"] if emitter.tir else [])]
    context: dict[str, Any] = {
        "name": program.name, "program": program, "layout": layout, "sizes": layout.sizes,
        "interface": interface, "calls": calls, "predict_calls": program.predict_calls,
        "tir": list(emitter.tir.values()), "regions": list(emitter.regions.values()),
        "entries": entries, "stack_bytes": STACK_BYTES,
        "digest": digest(image), "weights_magic": MAGIC, "weights_crc": crc(image),
        "momentum": program.momentum,
        "image_place": layout.places[program.storage(interface.image.name)],
        "label_pointer": emitter.pointer(interface.label.name) if interface.label else "",
        "logits_pointer": emitter.pointer(interface.logits.name),
        "loss_pointer": emitter.pointer(interface.loss.name) if interface.loss else "",
        "image_type": interface.image.element.c,
        "item_bytes": interface.image.element.bytes,
        "op_headers": op_headers,
        "sources": sorted([*(n for n in copied if n.endswith(".c")), *names]),
        "headers": sorted([*(n for n in copied if n.endswith(".h")), "vit_train.h"]),
    }
    env = environment()
    names += ["vit_train.h", "Makefile", "CMakeLists.txt"]
    return {name: env.get_template(name + ".j2").render(context) for name in names}


def op_headers(ops: list[Op], kernels: Path) -> list[str]:
    """The headers that declare the argument structs of these operations."""
    texts = {h.name: h.read_text() for h in sorted(kernels.glob("*.h"))}
    found = {"vt_kernels.h"}
    for op in ops:
        name = next((h for h, text in texts.items() if re.search(rf"\b{op.symbol}_args\b", text)), None)
        if name is None:
            raise CodegenError(f"no header in {kernels.name}/ declares {op.symbol}_args (operation {op.name})")
        found.add(name)
    return sorted(found)
