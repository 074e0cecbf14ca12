"""Runs a Program on its operations' NumPy references in float64: the second witness, between PyTorch and C.

It knows nothing of offsets or kernels, so a difference from PyTorch is a fault of capture, differentiation or
scheduling, and a difference of C from it is a fault of a kernel, of code generation or of the memory plan.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compilation.errors import VerificationError
from compilation.ops import REGISTRY
from compilation.program import VIEW, Call, Program, Role
from compilation.types import F32, LABEL


class Interpreter:
    """A training step in float64. values: initial CONSTANT and TRAINED tensors by name (`parameter_values`)."""

    def __init__(self, program: Program, values: Mapping[str, np.ndarray]) -> None:
        self.program = program
        self.memory: dict[str, np.ndarray] = {
            n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in values.items()}
        for t in program.tensors.values():
            if t.role is Role.STATE:
                self.memory[t.name] = np.zeros(t.shape)

    def step(self, image: np.ndarray, label: int, lr: float, momentum: float = 0.0) -> float:
        """One step, updates included; image as the INPUT tensor holds it. Returns the loss."""
        for t in self.program.tensors.values():
            if t.role is Role.INPUT:
                value = np.array([label]) if t.element == LABEL else np.asarray(image).reshape(t.shape)
                self.memory[t.name] = value.astype(np.float64) if t.element == F32 else value
        for call in self.program.calls:
            self._run(call, lr, momentum)
        return float(self.memory[self.program.loss].reshape(()))

    def _value(self, name: str) -> np.ndarray:
        weight = self.program.weights.get(name)
        if weight is None:
            return self.memory[name]
        if weight.axis is None:
            return self.memory[weight.trained or weight.frozen or ""]
        whole = np.empty(weight.shape)
        for tensor, index in ((weight.frozen, weight.rest), (weight.trained, weight.index)):
            whole[(slice(None), list(index)) if weight.axis == "cols" else list(index)] = self.memory[tensor or ""]
        return whole

    def _run(self, call: Call, lr: float, momentum: float) -> None:
        if call.op == VIEW:
            out = call.outputs["y"]
            self.memory[out] = self.memory[call.inputs["x"]].reshape(self.program.tensors[out].shape)
            return
        if call.op == "sgd":
            self._update(call.updates["p"], self.memory[call.inputs["g"]], lr, momentum)
            return
        if call.op not in REGISTRY:
            raise VerificationError(f"{call.op} has no NumPy reference: long-tail operations run only as C")
        op = REGISTRY[call.op]
        results = op.reference({s: self._value(t) for s, t in call.inputs.items()}, dict(call.attrs))
        for slot, name in call.outputs.items():
            self.memory[name] = self._part(call, slot, results[slot]).reshape(self.program.tensors[name].shape)
        for slot, parameter in call.updates.items():
            self._update(parameter, self._part(call, f"d_{slot}", results[f"d_{slot}"]), lr, momentum)

    def _part(self, call: Call, slot: str, gradient: np.ndarray) -> np.ndarray:
        """Of a gradient of a whole matrix, what belongs to the trained part."""
        weight = self.program.weights.get(call.inputs.get(slot.removeprefix("d_"), ""))
        if not slot.startswith("d_") or weight is None or weight.axis is None or gradient.shape != weight.shape:
            return gradient
        return np.take(gradient, weight.index, 1 if weight.axis == "cols" else 0)

    def _update(self, parameter: str, gradient: np.ndarray, lr: float, momentum: float) -> None:
        weight = self.program.weights.get(parameter)
        name = (weight.trained or "") if weight else parameter
        gradient = gradient.reshape(self.memory[name].shape)
        velocity = f"{name}.velocity"
        if velocity in self.memory:
            self.memory[velocity] = momentum * self.memory[velocity] + gradient
            gradient = self.memory[velocity]
        self.memory[name] = self.memory[name] - lr * gradient
