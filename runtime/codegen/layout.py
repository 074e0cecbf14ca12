"""Where every tensor of a placed Program lives on the device, and what the constant weights contain.

RAM blocks: `arena` (offsets of the plan), `trained`, `state`, `output` (packed in Program order, no padding).
Flash: `weights` = every constant float tensor, 16-byte aligned, then the initial trained values, packed like
the trained block, then the seal: a magic word and the CRC-32 of all before it. Index lists (u16) are tables of their
own, equal lists shared.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compilation.cost import FLASH_ALIGNMENT, SEAL_BYTES
from compilation.program import ARENA_ROLES, Program, Role, Tensor, Weight
from compilation.types import INDEX
from runtime.errors import CodegenError

RAM_BLOCKS = {Role.TRAINED: "trained", Role.STATE: "state", Role.OUTPUT: "output"}
MAGIC = int.from_bytes(b"VTW1", "little")


@dataclass
class Layout:
    """Root tensor -> (block, byte offset); bytes of each block; index tables by C name."""

    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    trained: list[Tensor] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    initial_offset: int = 0                                     # of the initial trained values, in `weights`
    tables: dict[str, list[int]] = field(default_factory=dict)
    table_of: dict[tuple[int, ...], str] = field(default_factory=dict)

    def table(self, values: Sequence[int], hint: str) -> str:
        """C name of the u16 table with these values."""
        key = tuple(values)
        if key not in self.table_of:
            name = f"index_{len(self.tables)}"
            self.table_of[key] = name
            self.tables[name] = list(values)
        return self.table_of[key]

    @property
    def table_bytes(self) -> int:
        return 2 * sum(len(t) for t in self.tables.values())


def used_names(program: Program) -> set[str]:
    """Root tensors that some call reads or writes (parts of weights included)."""
    names: set[str] = set()
    for call in program.calls:
        scratch = [call.scratch] if call.scratch else []
        for name in (*call.inputs.values(), *call.outputs.values(), *call.updates.values(), *scratch):
            if name in program.weights:
                weight = program.weights[name]
                names |= {program.storage(part) for part in (weight.frozen, weight.trained) if part}
            elif name in program.tensors:
                names.add(program.storage(name))
    return names


def lay_out(program: Program) -> Layout:
    """Places every tensor. Raises CodegenError for an arena tensor without an offset."""
    out = Layout(sizes={"arena": program.arena_bytes, "trained": 0, "state": 0, "output": 0, "weights": 0})
    used = used_names(program)
    for t in program.tensors.values():
        if t.alias is not None:
            continue
        if t.role in ARENA_ROLES:
            if t.offset is None and t.name in used:
                raise CodegenError(f"tensor {t.name} ({t.role.value}, {t.bytes} bytes) has no place in the arena: "
                                   "run the placement pass before code generation")
            if t.offset is not None:
                out.places[t.name] = ("arena", t.offset)
        elif t.role in RAM_BLOCKS:
            block = RAM_BLOCKS[t.role]
            out.places[t.name] = (block, out.sizes[block])
            out.sizes[block] += t.bytes
            if t.role is Role.TRAINED:
                out.trained.append(t)
        elif t.element != INDEX and t.name in used:
            out.sizes["weights"] += -out.sizes["weights"] % FLASH_ALIGNMENT
            out.places[t.name] = ("weights", out.sizes["weights"])
            out.sizes["weights"] += t.bytes
            out.constants.append(t)
    out.sizes["weights"] += -out.sizes["weights"] % FLASH_ALIGNMENT
    out.initial_offset = out.sizes["weights"]
    out.sizes["weights"] += out.sizes["trained"] + SEAL_BYTES
    return out


def part_of(program: Program, name: str) -> tuple[Weight, str] | None:
    """The weight that this tensor is a part of, and which ("frozen" or "trained")."""
    for weight in program.weights.values():
        for part in ("frozen", "trained"):
            if getattr(weight, part) == name:
                return weight, part
    return None


def slice_part(weight: Weight, part: str, whole: np.ndarray) -> np.ndarray:
    """The rows or columns of a whole matrix (any shape that flattens to (rows, cols)) that a part holds."""
    matrix = whole.reshape(weight.shape)
    if weight.axis is None:
        return matrix
    chosen = weight.index if part == "trained" else weight.rest
    return np.take(matrix, chosen, 1 if weight.axis == "cols" else 0)


def part_value(program: Program, tensor: Tensor, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The value of a CONSTANT or initial TRAINED tensor, in its dtype and shape.

    `values` is looked up by tensor name, then by source (the PyTorch parameter), then by weight name; a whole matrix
    is cut to the part that the tensor holds. Raises CodegenError when there is none or it does not fit.
    """
    found = part_of(program, tensor.name)
    keys = [tensor.name, tensor.source, *([found[0].name] if found else [])]
    key = next((k for k in keys if k and k in values), None)
    if key is None:
        raise CodegenError(f"no value for {tensor.role.value} tensor {tensor.name} {tensor.shape} (source "
                           f"{tensor.source or 'unknown'}): give one under the tensor's or the parameter's name")
    value = np.asarray(values[key])
    want = int(np.prod(tensor.shape))
    if value.size != want and found is not None and value.size == int(np.prod(found[0].shape)):
        value = slice_part(*found, value)
    if value.size != want:
        raise CodegenError(f"value {key} has shape {value.shape}, tensor {tensor.name} needs {tensor.shape}")
    return tensor.type.array(value)


def weights_image(program: Program, layout: Layout, values: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of weights.bin (little endian), sealed."""
    image = np.zeros(layout.sizes["weights"], dtype=np.uint8)

    def put(tensor: Tensor, offset: int) -> None:
        value = part_value(program, tensor, values)
        if not np.isfinite(value).all():
            raise CodegenError(f"the value of {tensor.name} (source {tensor.source or 'unknown'}) has NaN or infinity: "
                               "the weights file is damaged or training diverged")
        image[offset:offset + tensor.bytes] = np.frombuffer(value.tobytes(), dtype=np.uint8)

    for t in layout.constants:
        put(t, layout.places[t.name][1])
    for t in layout.trained:
        put(t, layout.initial_offset + layout.places[t.name][1])
    seal = np.array([MAGIC, zlib.crc32(image[:-SEAL_BYTES].tobytes())], "<u4")
    image[-SEAL_BYTES:] = np.frombuffer(seal.tobytes(), dtype=np.uint8)
    return image.tobytes()


def crc(image: bytes) -> int:
    """The CRC-32 in the seal of weights.bin."""
    return int.from_bytes(image[-4:], "little")


def digest(image: bytes) -> str:
    """Names the content of weights.bin: it stands in weights.S so that no build cache serves a stale object."""
    return hashlib.sha256(image).hexdigest()
