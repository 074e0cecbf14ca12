"""A toy registry and Program: image (6) -> dense (partly trained columns) -> squared loss -> fused update."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from compilation.ops.base import Op, Site, Slot
from compilation.program import Call, Program, Role, Tensor, Weight
from compilation.types import I32, U8, Type
from runtime.codegen import Generated, generate
from runtime.codegen.generate import KERNELS

HERE = Path(__file__).resolve().parent
K, O = 6, 4


class ToyOp(Op):
    source = "toy.c"

    def dims(self, site: Site) -> dict[str, int]:
        return {}


class Dense(ToyOp):
    name, symbol = "toy_dense", "vt_toy_dense"
    inputs = (Slot("image", element=U8), Slot("w", "matrix"), Slot("b", "vector", optional=True))
    outputs = (Slot("y"),)
    attrs: ClassVar[dict[str, tuple[type, Any]]] = {"gain": (float, 1.0), "fault": (int, 0)}


class DenseGrad(ToyOp):
    name, symbol = "toy_dense_grad", "vt_toy_dense_grad"
    inputs = (Slot("image", element=U8), Slot("w", "matrix"), Slot("b", "vector", optional=True), Slot("dy"))
    outputs = (Slot("d_w", "matrix"), Slot("d_b", "vector"))
    attrs: ClassVar[dict[str, tuple[type, Any]]] = {"gain": (float, 1.0)}


class Square(ToyOp):
    name, symbol = "toy_square", "vt_toy_square"
    inputs = (Slot("logits"), Slot("label", element=I32))
    outputs = (Slot("loss"), Slot("d_logits"))

    def dims(self, site: Site) -> dict[str, int]:
        return {"k": site.shapes["logits"][-1]}


class Deep(ToyOp):
    name, symbol, source = "toy_deep", "vt_toy_deep", "toy_deep.c"
    inputs = (Slot("image", element=U8),)
    outputs = ()

    def dims(self, site: Site) -> dict[str, int]:
        return {"k": site.shapes["image"][-1]}


REGISTRY: dict[str, Op] = {cls.name: cls() for cls in (Dense, DenseGrad, Square, Deep)}


def program(axis: str | None = "cols", momentum: float = 0.0, fault: int = 0) -> Program:
    """Placed by hand: image @0, label @16, d_logits @32, scratch @48."""
    p = Program("toy", predict_calls=1, momentum=momentum)
    index = {"cols": [1, 4], "rows": [0, 3], None: []}[axis]
    trained = {"cols": (O, 2), "rows": (2, K), None: (O, K)}[axis]
    frozen = {"cols": (O, K - 2), "rows": (O - 2, K), None: None}[axis]
    p.add(Tensor("image", Type((K,), U8), Role.INPUT, offset=0))
    p.add(Tensor("label", Type((1,), I32), Role.INPUT, offset=16))
    if frozen:
        p.add(Tensor("fc.weight.frozen", Type(frozen), Role.CONSTANT, "fc.weight"))
    p.add(Tensor("fc.weight.trained", Type(trained), Role.TRAINED, "fc.weight"))
    p.add(Tensor("fc.bias", Type((O,)), Role.TRAINED, "fc.bias"))
    if momentum:
        p.add(Tensor("fc.weight.trained.velocity", Type(trained), Role.STATE))
        p.add(Tensor("fc.bias.velocity", Type((O,)), Role.STATE))
    p.weights["fc.weight"] = Weight("fc.weight", (O, K), "fc.weight.frozen" if frozen else None, "fc.weight.trained",
                                    axis, tuple(index))
    p.add(Tensor("logits", Type((1, O)), Role.OUTPUT))
    p.add(Tensor("loss", Type((1,)), Role.OUTPUT))
    p.add(Tensor("d_logits", Type((1, O)), Role.GRADIENT, offset=32))
    p.add(Tensor("sum", Type((4,), U8), Role.SCRATCH, offset=48))
    attrs = {"gain": 0.01}
    p.calls = [
        Call("toy_dense", {"image": "image", "w": "fc.weight", "b": "fc.bias"}, {"y": "logits"},
             {**attrs, "fault": fault}, scratch="sum", where="fc"),
        Call("toy_square", {"logits": "logits", "label": "label"}, {"loss": "loss", "d_logits": "d_logits"}),
        Call("toy_dense_grad", {"image": "image", "w": "fc.weight", "b": "fc.bias", "dy": "d_logits"}, {}, attrs,
             updates={"w": "fc.weight", "b": "fc.bias"}, where="fc"),
    ]
    return p


def values() -> dict[str, np.ndarray]:
    """Whole parameters by their PyTorch names, float32."""
    rng = np.random.default_rng(0)
    return {"fc.weight": rng.normal(size=(O, K)).astype(np.float32), "fc.bias": rng.normal(size=O).astype(np.float32)}


def write(p: Program, folder: Path, kernels: Path, parameters: dict[str, np.ndarray] | None = None) -> Generated:
    """Generates C with the toy kernels (`kernels`: a scratch folder that is filled here)."""
    if not kernels.exists():
        shutil.copytree(HERE / "toy_kernels", kernels)
        shutil.copyfile(KERNELS / "vt_kernels.h", kernels / "vt_kernels.h")
    return generate(p, values() if parameters is None else parameters, folder, registry=REGISTRY, kernels=kernels)


def part(p: Program, whole: np.ndarray, rest: bool = False) -> np.ndarray:
    """The trained (or frozen) part of the toy's weight."""
    weight = p.weights["fc.weight"]
    if weight.axis is None:
        return whole[:0] if rest else whole
    index = list(weight.rest if rest else weight.index)
    return whole[:, index] if weight.axis == "cols" else whole[index]


def reference(p: Program, images: np.ndarray, labels: np.ndarray, lr: float, momentum: float = 0.0
              ) -> tuple[list[float], dict[str, np.ndarray]]:
    """Float64 losses and final whole parameters of SGD with the update masked to the trained part."""
    w, b = (values()[k].astype(np.float64) for k in ("fc.weight", "fc.bias"))
    weight = p.weights["fc.weight"]
    mask = np.zeros_like(w)
    if weight.axis == "cols":
        mask[:, weight.index] = 1
    elif weight.axis == "rows":
        mask[list(weight.index)] = 1
    else:
        mask[:] = 1
    vw, vb, losses = np.zeros_like(w), np.zeros_like(b), []
    for image, label in zip(images, labels, strict=True):
        x = 0.01 * image.astype(np.float64)
        d = w @ x + b - np.eye(O)[label]
        losses.append(float(0.5 * d @ d))
        vw, vb = momentum * vw + np.outer(d, x) * mask, momentum * vb + d
        w, b = w - lr * vw, b - lr * vb
    return losses, {"fc.weight": w, "fc.bias": b}
