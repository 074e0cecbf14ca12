"""Parameters in pieces: several tensors of a Program that each hold a range of rows of one parameter.

A packed linear whose result is read in windows of columns alone is one linear for each window; its weight's rows, and its
bias, are then pieces: tensors of their own, with `Tensor.source` the parameter and `Tensor.first` the piece's first row
(of a vector: element) in it. Whoever deals with users speaks of parameters: plans come in by parameter (`expand`), values
are cut from parameters (`held`), and what is trained goes out as one part for each parameter (`trained_parts`), for the
trained tensors of a parameter's pieces stand next to each other (`gather`), their bytes those of its trained part.
A parameter that is not cut is its own only piece.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compilation.program import Program, Role, Tensor, Weight

Selection = str | dict[str, list[int]]     # "all", {"cols": [...]} or {"rows": [...]}
PARAMETERS = (Role.CONSTANT, Role.TRAINED)


def pieces(program: Program) -> dict[str, list[Tensor]]:
    """Parameter -> its tensors by their first rows, whole ones and parts of weights, frozen and trained."""
    found: dict[str, list[Tensor]] = {}
    for t in program.tensors.values():
        if t.role in PARAMETERS and t.name not in program.constants:
            found.setdefault(t.source or t.name, []).append(t)
    return {p: sorted(tensors, key=lambda t: t.first) for p, tensors in found.items()}


def cut(program: Program, parameter: str, windows: Sequence[tuple[int, int]]) -> list[str]:
    """Put pieces in the place of a parameter's tensor: (first row, rows) each. Returns their names."""
    whole = program.tensors[parameter]
    row = whole.shape[1:] if len(whole.shape) == 2 else ()
    made = [replace(whole, name=f"{parameter}[{first}:{first + n}]", type=whole.type.shaped((n, *row)), first=first)
            for first, n in windows]
    kept = [made if t is whole else [t] for t in program.tensors.values()]
    program.tensors = {t.name: t for group in kept for t in group}
    return [t.name for t in made]


def names(program: Program, parameters: Iterable[str]) -> list[str]:
    """The tensors behind these parameters; a name that is no parameter's stays."""
    known = pieces(program)
    return [name for p in parameters for name in ([t.name for t in known[p]] if p in known else [p])]


def expand(tensors: Sequence[Tensor], selection: Selection) -> dict[str, Selection]:
    """A selection of a parameter, by piece; pieces of which nothing is chosen are left out."""
    if isinstance(selection, str) or "cols" in selection:
        return {t.name: selection for t in tensors}
    made: dict[str, Selection] = {}
    for t in tensors:
        rows = [i - t.first for i in selection["rows"] if t.first <= i < t.first + t.shape[0]]
        if rows:
            made[t.name] = "all" if len(rows) == t.shape[0] else {"rows": rows}
    return made


def gather(program: Program) -> None:
    """Put the trained tensors of each parameter, and their states, next to each other, in the order of its rows."""
    apart = {t.source for t in program.tensors.values() if t.first}
    groups: dict[tuple[str, Role], list[Tensor]] = {}
    for t in program.tensors.values():
        if t.role in (Role.TRAINED, Role.STATE) and t.source in apart:
            groups.setdefault((t.source, t.role), []).append(t)
    order: dict[str, Tensor] = {}
    for t in program.tensors.values():
        group = groups.get((t.source, t.role), [t]) if t.source in apart else [t]
        order |= {g.name: g for g in sorted(group, key=lambda g: g.first) if g.name not in order}
    program.tensors = order


def apart(program: Program) -> str:
    """What is wrong with the pieces of a Program; "" where nothing is."""
    last = ""
    done: set[str] = set()
    for t in program.tensors.values():
        if t.first and (t.first < 0 or t.role not in (*PARAMETERS, Role.STATE)):
            return f"{t.name} ({t.role.value}) is no piece of a parameter from row {t.first}"
    for parameter, tensors in pieces(program).items() if any(t.first for t in program.tensors.values()) else ():
        ends = {t.first: t.first + _extent(program, t) for t in tensors}
        for (first, end), following in zip(ends.items(), list(ends)[1:], strict=False):
            if end > following:
                return f"the pieces of {parameter} from {first} and from {following} overlap"
    for t in program.tensors.values():
        if t.role is Role.TRAINED:
            if t.source and t.source != last and t.source in done:
                return f"{t.name} does not stand next to the other trained pieces of {t.source}"
            last = t.source
            done.add(last)
    return ""


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


def held(program: Program, tensor: Tensor, whole: np.ndarray) -> np.ndarray:
    """What a tensor holds of its parameter's whole value. A value that fits the tensor as it is stays what it is."""
    if whole.size == tensor.type.count:
        return whole
    found = part_of(program, tensor.name)
    shape = found[0].shape if found else tensor.shape
    row = math.prod(shape[1:])
    others = [] if whole.size == math.prod(shape) else pieces(program)[tensor.source or tensor.name]
    if any(t.first for t in others) and whole.size == row * max(t.first + _extent(program, t) for t in others):
        whole = whole.reshape(-1, *shape[1:])[tensor.first:tensor.first + shape[0]]
    return slice_part(*found, whole) if found and whole.size == math.prod(shape) else whole


@dataclass(frozen=True)
class TrainedPart:
    """What is trained of one parameter: tensors next to each other, together as one matrix (a vector: one row).

    name: of the only tensor, or made from the parameter's like that. shape: as stored. whole: the parameter's, as a matrix.
    axis: which columns ("cols") or rows of it are stored, those of `index`; None: all of it.
    """

    name: str
    parameter: str
    tensors: tuple[Tensor, ...]
    shape: tuple[int, int]
    whole: tuple[int, int]
    axis: str | None
    index: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return sum(t.bytes for t in self.tensors)

    def of(self, whole: np.ndarray) -> np.ndarray:
        """The elements of a whole parameter that are stored, flat."""
        if self.axis is None:
            return whole.ravel()
        return np.take(whole.reshape(self.whole), self.index, 1 if self.axis == "cols" else 0).ravel()

    def rest(self, whole: np.ndarray) -> np.ndarray:
        """The elements that are not stored, flat."""
        if self.axis is None:
            return whole.ravel()[:0]
        return np.delete(whole.reshape(self.whole), self.index, 1 if self.axis == "cols" else 0).ravel()


def trained_parts(program: Program) -> list[TrainedPart]:
    """One for each parameter of which anything is trained, in Program order."""
    groups: dict[str, list[Tensor]] = {}
    for t in program.tensors.values():
        if t.role is Role.TRAINED and t.alias is None:
            groups.setdefault(t.source or t.name, []).append(t)
    known = pieces(program)
    return [_joined(program, parameter, tuple(tensors), known[parameter]) for parameter, tensors in groups.items()]


def _joined(program: Program, parameter: str, tensors: tuple[Tensor, ...], known: Collection[Tensor]) -> TrainedPart:
    along = 1 if len(tensors[0].shape) < 2 else 0           # the pieces of a vector lie side by side in its one row
    ends = [t.first + _extent(program, t) for t in known]
    rows, columns = _matrix(program, tensors[0])
    whole = (rows, max(ends)) if along else (max(ends), columns)
    found = part_of(program, tensors[0].name)
    if found and found[0].axis == "cols":
        axis: str | None = "cols"
        index: tuple[int, ...] = found[0].index
        shape = (whole[0], len(index))
    else:
        index = tuple(i for t in tensors for i in _chosen(program, t))
        shape = (rows, len(index)) if along else (len(index), columns)
        axis = None if len(index) == whole[along] else ("rows", "cols")[along]
    in_pieces = any(t.first for t in known)
    name = tensors[0].name if not in_pieces else f"{parameter}.trained" if axis else parameter
    return TrainedPart(name, parameter, tensors, shape, whole, axis, index if axis else ())


def _extent(program: Program, tensor: Tensor) -> int:
    """The rows (of a vector: elements) of the piece that a tensor is (a part of)."""
    return _matrix(program, tensor)[len(tensor.shape) < 2]


def _matrix(program: Program, tensor: Tensor) -> tuple[int, int]:
    """The shape of the piece that a tensor is (a part of), as a matrix; a vector is one row."""
    if found := part_of(program, tensor.name):
        return found[0].shape
    return math.prod(tensor.shape[:-1]), tensor.shape[-1] if tensor.shape else 1


def _chosen(program: Program, tensor: Tensor) -> list[int]:
    """The rows (of a vector: elements) of the parameter that a trained tensor holds."""
    found = part_of(program, tensor.name)
    listed = found[0].index if found and found[0].axis == "rows" else range(_extent(program, tensor))
    return [tensor.first + i for i in listed]
