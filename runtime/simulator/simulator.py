"""Runs a generated C folder on this machine: feeds images, reads losses and weights, and watches its memory.

Around each RAM block stand guard bytes. Before each run everything is poisoned that the run must write before it reads:
the arena except the image, the output block, the stack; before vt_init the trained weights and the optimiser state. So a
read of memory that was never written shows as a NaN, or as a difference between two poisons (`Simulator.measure`).
Measured figures are what the run touched, not what was planned.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from compilation.program import Program
from runtime.codegen.check import check_folder
from runtime.codegen.generate import STACK_BYTES, find_interface
from runtime.codegen.layout import lay_out, part_value
from runtime.errors import CodegenError, SimulationError
from runtime.toolchain import Build, Firmware, build_firmware, build_shared
from runtime.toolchain.compiler import temporary_folder

HARNESS = Path(__file__).resolve().parent / "vit_harness.c"
GUARD_BYTES = 4096
GUARD = 0xB7
POISONS = (0xFF, 0x7F)      # as floats a NaN and 3.4e38; a byte left alone under both was not written
BLOCKS = ("arena", "trained", "state", "output")
ERRORS = {                  # of vit_train.h
    -1: "the label is out of range",
    -2: "the learning rate is negative, infinite or NaN",
    -3: "the constant weights are not at their address, or are damaged",
    -4: "the logits are not finite: the training diverged (smaller learning rate?) or the step read memory that it never "
        "wrote",
}


@dataclass(frozen=True)
class Measured:
    """Measured on real runs of the C code, in bytes. ram = arena high-water mark + blocks + stack reserve."""

    arena_bytes: int
    trained_bytes: int
    state_bytes: int
    output_bytes: int
    other_bytes: int            # writable memory of the firmware build that belongs to no block: must be 0
    stack_bytes: int            # deepest chain of calls of the Cortex-M7 build
    host_stack_bytes: int       # deepest stack that the runs touched on this machine (wider registers, larger frames)
    flash_bytes: int            # linked Cortex-M7 code and constants
    code_bytes: int
    macs: int
    predict_macs: int
    undefined: frozenset[str]   # symbols the freestanding build lacks: must be empty

    @property
    def ram_bytes(self) -> int:
        return (self.arena_bytes + self.trained_bytes + self.state_bytes + self.output_bytes + self.other_bytes
                + STACK_BYTES)


class Simulator:
    """A training step, built and loaded from its C folder. Use as a context manager: it holds a temporary folder.

    All arrays are copies. Raises SimulationError where the folder does not belong to the Program or its weights are
    damaged, and where the C code leaves its memory or makes a NaN; ToolchainError where it cannot be built.
    """

    def __init__(self, folder: str | Path, program: Program, build: Build | None = None) -> None:
        self.folder, self.program = Path(folder), program
        try:
            self.layout, self.interface = lay_out(program), find_interface(program)
            check_folder(self.folder, self.layout, self.interface.classes, self.interface.image.bytes)
        except CodegenError as error:
            raise SimulationError(str(error)) from None
        build = build or Build()
        defines = ("VT_PROFILE", "VT_SIMULATOR", f"VT_GUARD_BYTES={GUARD_BYTES}",
                   *(["VT_HAS_TRAIN_STEP"] if self.interface.label else []))
        self.build = replace(build, defines=(*build.defines, *defines))
        self.room = temporary_folder("vit-simulator-")
        try:
            library = build_shared(self.folder, Path(self.room.name) / "vit_train.so", self.build, [HARNESS])
            self.library = ctypes.CDLL(str(library))
            self._declare()
            self.host_stack_bytes = 0
            self._guard()
            self.reset()
        except OSError as error:
            self.close()
            raise SimulationError(f"the built C code cannot be loaded: {error}") from None
        except BaseException:
            self.close()
            raise

    def _declare(self) -> None:
        lib = self.library
        lib.vt_simulator_block.restype = ctypes.c_void_p
        lib.vt_simulator_block.argtypes = [ctypes.c_int32, ctypes.POINTER(ctypes.c_uint32)]
        lib.vt_input.restype = lib.vt_logits.restype = lib.vt_trained.restype = ctypes.c_void_p
        lib.vt_macs.restype = ctypes.c_uint64
        for scan in (lib.vt_sim_first_difference, lib.vt_sim_last_difference):
            scan.restype, scan.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint8]
        lib.vt_init.restype = ctypes.c_int32
        lib.vt_sim_run.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_float, ctypes.c_uint8,
                                   ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_int32),
                                   ctypes.POINTER(ctypes.c_uint64)]
        self.blocks: dict[str, tuple[int, int]] = {}
        for which, block in enumerate(BLOCKS):
            size = ctypes.c_uint32()
            start = lib.vt_simulator_block(which, ctypes.byref(size))
            if size.value != self.layout.sizes[block]:
                raise SimulationError(f"the C code's {block} block has {size.value} bytes, the Program's "
                                      f"{self.layout.sizes[block]}: the folder was generated from another Program")
            if size.value:
                self.blocks[block] = (start, size.value)

    # -- life --------------------------------------------------------------------------------------
    def close(self) -> None:
        self.room.cleanup()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def reset(self, poison: int = POISONS[0]) -> None:
        """vt_init: the initial trained weights, zero optimiser state; over memory full of poison."""
        for block in ("trained", "state"):
            if block in self.blocks:
                start, size = self.blocks[block]
                ctypes.memset(start, poison, size)
        status = int(self.library.vt_init())
        self._check_guards("vt_init")
        if status:
            raise SimulationError(f"vt_init refused: {ERRORS.get(status, status)}")

    # -- memory ------------------------------------------------------------------------------------
    def _view(self, block: str) -> np.ndarray:
        """The live bytes of a block (no copy)."""
        start, size = self.blocks[block]
        return np.ctypeslib.as_array(ctypes.cast(start, ctypes.POINTER(ctypes.c_uint8)), (size,))

    def _guard(self) -> None:
        for start, size in self.blocks.values():
            ctypes.memset(start - GUARD_BYTES, GUARD, GUARD_BYTES)
            ctypes.memset(start + size, GUARD, GUARD_BYTES)

    def _check_guards(self, what: str) -> None:
        for block, (start, size) in self.blocks.items():
            above = self.library.vt_sim_first_difference(start + size, GUARD_BYTES, GUARD)
            below = self.library.vt_sim_last_difference(start - GUARD_BYTES, GUARD_BYTES, GUARD)
            if above >= 0 or below >= 0:
                where = f"{above} bytes past the end" if above >= 0 else f"{GUARD_BYTES - below} bytes before the start"
                self._guard()
                raise SimulationError(f"{what} wrote {where} of the {block} block ({size} bytes)")

    def _poison(self, poison: int) -> None:
        """The output block, and everything in the arena except the image, which the caller has just written."""
        if "output" in self.blocks:
            start, size = self.blocks["output"]
            ctypes.memset(start, poison, size)
        start, size = self.blocks["arena"]
        block, offset = self.layout.places[self.program.storage(self.interface.image.name)]
        image = self.interface.image.bytes
        if block != "arena":
            ctypes.memset(start, poison, size)
            return
        ctypes.memset(start, poison, offset)
        ctypes.memset(start + offset + image, poison, size - offset - image)

    def write_image(self, image: np.ndarray) -> None:
        """image: uint8 (H, W, C) (or as many values of the Program's input type)."""
        kind = self.interface.image.element.numpy
        data = np.ascontiguousarray(image)
        if data.size != math.prod(self.interface.image.shape) or data.dtype != kind:
            raise SimulationError(f"image is {data.dtype} {data.shape}, the Program reads {np.dtype(kind)} "
                                  f"{self.interface.image.shape}")
        ctypes.memmove(self.library.vt_input(), data.ctypes.data, data.nbytes)

    # -- runs --------------------------------------------------------------------------------------
    def _run(self, predict: bool, image: np.ndarray, label: int, lr: float, poison: int) -> tuple[float, int]:
        """What vt_train_step and vt_predict return (of the one that is called)."""
        self.write_image(image)
        self._poison(poison)
        loss, result, stack = ctypes.c_float(), ctypes.c_int32(), ctypes.c_uint64()
        error = self.library.vt_sim_run(int(predict), label, lr, poison, ctypes.byref(loss),
                                        ctypes.byref(result), ctypes.byref(stack))
        if error:
            raise SimulationError(f"no thread for the simulated core (system error {error})")
        self.host_stack_bytes = max(self.host_stack_bytes, int(stack.value))
        self._check_guards("vt_predict" if predict else "vt_train_step")
        return float(loss.value), int(result.value)

    def train_step(self, image: np.ndarray, label: int, lr: float, poison: int = POISONS[0]) -> float:
        """One step; returns the loss. Raises SimulationError for a label or a learning rate out of range, and for logits or
        a loss that are not finite."""
        if self.interface.label is None:
            raise SimulationError("the Program only predicts: it has no label input")
        if not 0 <= int(label) < self.interface.classes:
            raise SimulationError(f"label {label} is out of range: legal are 0..{self.interface.classes - 1}")
        if not 0 <= lr <= float(np.finfo(np.float32).max):
            raise SimulationError(f"learning rate {lr} is out of range: legal are finite float32 numbers from 0")
        loss, _ = self._run(False, image, int(label), lr, poison)
        if not math.isfinite(loss):
            raise SimulationError(f"the loss is {loss}: the training diverged (smaller learning rate?) or the step "
                                  "read memory that it never wrote")
        if loss < 0:
            raise SimulationError(ERRORS.get(int(loss), f"the loss is {loss}"))
        return loss

    def predict(self, image: np.ndarray, poison: int = POISONS[0]) -> int:
        """The class with the largest logit. Raises SimulationError for logits that are not finite."""
        _, best = self._run(True, image, 0, 0.0, poison)
        if best < 0:
            raise SimulationError(ERRORS.get(best, f"the class is {best}"))
        return best

    @property
    def logits(self) -> np.ndarray:
        """float32 (classes,) of the last run."""
        at = ctypes.cast(self.library.vt_logits(), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(at, (self.interface.classes,)).copy()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the last run, as the kernels counted them."""
        return int(self.library.vt_macs())

    # -- trained weights ---------------------------------------------------------------------------
    def trained(self) -> dict[str, np.ndarray]:
        """Trained tensor name -> float32 copy in the stored shape (for a partial weight: the trained part)."""
        out = {}
        for t in self.layout.trained:
            offset = self.layout.places[t.name][1]
            out[t.name] = self._view("trained")[offset:offset + t.bytes].view(np.float32).reshape(t.shape).copy()
        return out

    def load_trained(self, values: Mapping[str, np.ndarray]) -> None:
        """Sets trained tensors; `values` as for code generation (tensor or parameter name, parts cut here).
        Optimiser state is set to zero."""
        self.reset()
        for t in self.layout.trained:
            offset = self.layout.places[t.name][1]
            try:
                value = part_value(self.program, t, values)
            except CodegenError as error:
                raise SimulationError(str(error)) from None
            self._view("trained")[offset:offset + t.bytes] = np.frombuffer(value.tobytes(), np.uint8)

    # -- measurements ------------------------------------------------------------------------------
    def measure(self, image: np.ndarray, label: int = 0, lr: float = 0.01,
                firmware: Firmware | None = None) -> Measured:
        """Runs one step under each poison from the initial weights, compares, and reads the sizes of a bare Cortex-M7
        build. Restores the initial state. Raises SimulationError where the two runs differ (memory was read before it
        was written) or where the stack is deeper than its reserve."""
        touched, images, losses = [], [], []
        trains = self.interface.label is not None
        self.host_stack_bytes = 0
        for poison in POISONS:
            self.reset(poison)
            if trains:
                losses.append(self.train_step(image, label, lr, poison))
            else:
                losses.append(self.predict(image, poison))
            macs = self.macs
            start, size = self.blocks["arena"]
            touched.append(int(self.library.vt_sim_last_difference(start, size, poison)) + 1)
            images.append({b: self._view(b).tobytes() for b in self.blocks if b != "arena"})
        if images[0] != images[1] or len(set(losses)) > 1:
            different = [b for b in images[0] if images[0][b] != images[1][b]] or ["loss"]
            raise SimulationError(f"the step's {', '.join(different)} depends on what memory held before: "
                                  "a kernel reads, or leaves, memory that was never written")
        self.reset()
        self.predict(image)
        predict_macs = self.macs
        self.reset()
        # the image is written by the caller, so its bytes count as touched whatever they are
        block, offset = self.layout.places[self.program.storage(self.interface.image.name)]
        image_end = offset + self.interface.image.bytes if block == "arena" else 0
        firmware = firmware or build_firmware(self.folder)
        ram = dict(firmware.ram)
        blocks = {b: sum(ram.pop(n, 0) for n in (f".vt_{b}", f".bss.vt_{b}")) for b in BLOCKS}
        if firmware.stack_bytes > STACK_BYTES:
            raise SimulationError(f"the step needs {firmware.stack_bytes} bytes of stack, the reserve is {STACK_BYTES} "
                                  f"({' > '.join(firmware.stack_chain)})")
        return Measured(arena_bytes=max(*touched, image_end), trained_bytes=blocks["trained"],
                        state_bytes=blocks["state"], output_bytes=blocks["output"],
                        other_bytes=sum(ram.values()), stack_bytes=firmware.stack_bytes,
                        host_stack_bytes=self.host_stack_bytes,
                        flash_bytes=firmware.flash_bytes, code_bytes=firmware.code_bytes, macs=macs,
                        predict_macs=predict_macs, undefined=firmware.undefined)
