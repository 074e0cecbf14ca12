"""The MLP of a transformer block as one streamed operation; its hidden layer is never whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Cost, Op, Sample, Shape, Site, register
from compilation.ops.common import (
    by_columns,
    fastest_first,
    frozen_bytes,
    grid,
    matrix,
    panels,
    part_shape,
    part_size,
    row_settings,
    stage_width,
    tensor,
    vector,
    width,
)

PARAMETERS = (vector("gamma", True), vector("beta", True), matrix("w1"), vector("b1", True), matrix("w2"),
              vector("b2", True), vector("ls", True))


class Mlp(Op):
    source = "vt_mlp_block.c"
    attrs = {"eps": ("float", 1e-6), "act": ("int32_t", 0), "norm": ("int32_t", 1), "residual": ("int32_t", 1),
             "rows": ("int32_t", 16), "chunk": ("int32_t", 64)}
    schedule = ("rows", "chunk")

    def dims(self, site: Site) -> dict[str, int]:
        n, d = site.shapes["x"]
        return {"n": n, "d": d, "hidden": site.shapes["w1"][0]}

    def sizes(self, site: Site) -> tuple[int, int, int, int, int]:
        """(n, d, hidden, panel width, hidden features at a time)."""
        n, d = site.shapes["x"]
        hidden = site.shapes["w1"][0]
        return n, d, hidden, width(n, self.attr(site, "rows")), min(hidden, self.attr(site, "chunk"))

    def schedules(self, site: Site) -> Iterator[dict[str, Any]]:
        n, hidden = site.shapes["x"][0], site.shapes["w1"][0]
        chunks = sorted({min(c, hidden) for c in (128, 64, 32, 16, 4, 1)}, reverse=True)
        return fastest_first(self, site, grid(rows=row_settings(n), chunk=chunks))

    def _samples(self, rng: np.random.Generator) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        for n, d, hidden in ((21, 12, 40), (5, 20, 24), (1, 7, 9)):
            made = {"x": rng.normal(0.3, 1.5, (n, d)), "gamma": rng.normal(1, 0.3, d), "beta": rng.normal(0, 0.3, d),
                    "w1": rng.normal(0, d**-0.5, (hidden, d)), "b1": rng.normal(0, 0.3, hidden),
                    "w2": rng.normal(0, hidden**-0.5, (d, hidden)), "b2": rng.normal(0, 0.3, d),
                    "ls": rng.normal(0.5, 0.2, d), "dy": rng.normal(size=(n, d))}
            yield {s.name: made[s.name] for s in self.inputs}, {"eps": 1e-6, "act": 0, "norm": 1, "residual": 1}


def forward(i: Arrays, attrs: dict[str, Any]) -> Arrays:
    """Everything the block makes: u = LN(x), h before and f after the activation, z, y."""
    u = ref.layer_norm(i["x"], i.get("gamma"), i.get("beta"), attrs["eps"]) if attrs["norm"] else i["x"]
    h = u @ i["w1"].T + i.get("b1", 0.0)
    f = ref.activation(h, attrs["act"])
    z = f @ i["w2"].T + i.get("b2", 0.0)
    y = z * i.get("ls", 1.0) + (i["x"] if attrs["residual"] else 0.0)
    return {"u": u, "h": h, "f": f, "z": z, "y": y}


@register
class MlpBlock(Mlp):
    """y (N, D) = [x +] ls * (act(LN(x) w1^T + b1) w2^T + b2)."""

    name, symbol, gradient = "mlp_block", "vt_mlp_block", "mlp_block_grad"
    inputs, outputs = (tensor("x"), *PARAMETERS), (tensor("y"),)
    inplace, rowwise = {"y": "x"}, ("x",)

    def infer(self, site: Site) -> dict[str, tuple[Shape, str]]:
        return {"y": (site.shapes["x"], "f32")}

    def cost(self, site: Site) -> Cost:
        n, d, hidden, t, _ = self.sizes(site)
        flash = panels(n, t) * frozen_bytes(site, *(p.name for p in PARAMETERS))
        return Cost(2 * n * d * hidden, 12 * n * d, 4 * n * d, flash)

    def scratch(self, site: Site) -> int:
        _, d, _, t, chunk = self.sizes(site)
        return 4 * t * (2 * d + chunk)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": forward(inputs, attrs)["y"]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made, attrs in self._samples(rng):
            hidden, d = made["w1"].shape
            bare = {k: made[k] for k in ("x", "w1", "w2")}
            yield Sample(made, attrs)
            yield Sample(bare, {**attrs, "act": 1, "residual": 0})
            yield Sample(bare, {**attrs, "act": 2, "norm": 0}, parts={"w1": ("cols", [0, d - 1]),
                                                                     "w2": ("cols", [1, hidden // 2, hidden - 1])})
            yield Sample(made, attrs, parts={"w1": ("rows", [0, hidden // 2, hidden - 1]), "w2": ("rows", [1, d - 1])})


@register
class MlpBlockGrad(Mlp):
    """Gradients of mlp_block. Where neither weight matrix is wanted, token rows run outside and d_x may take dy's
    place; else hidden chunks run outside and weights are updated chunk by chunk, without a gradient buffer."""

    name, symbol = "mlp_block_grad", "vt_mlp_block_grad"
    inputs = (tensor("x"), *PARAMETERS, tensor("dy"))
    outputs = (tensor("d_x"), vector("d_gamma"), vector("d_beta"), matrix("d_w1"), vector("d_b1"), matrix("d_w2"),
               vector("d_b2"), vector("d_ls"))
    needed_for = {"b2": ("d_ls",)}

    def infer(self, site: Site) -> dict[str, tuple[Shape, str]]:
        n, d, hidden, _, _ = self.sizes(site)
        made: dict[str, tuple[Shape, str]] = {"d_x": ((n, d), "f32"), "d_b1": ((hidden,), "f32")}
        made |= {f"d_{s}": (part_shape(site, s), "f32") for s in ("w1", "w2")}
        return made | {f"d_{s}": ((d,), "f32") for s in ("gamma", "beta", "b2", "ls")}

    def may_alias(self, site: Site) -> dict[str, str]:
        return {} if site.wants & {"d_w1", "d_w2"} else {"d_x": "dy"}

    def needs(self, site: Site) -> tuple[bool, bool, bool]:
        """Whether the gradient of LN(x), of the hidden layer, and the result itself have to be made."""
        norm = "d_x" in site.wants or bool(self.attr(site, "norm") and site.wants & {"d_gamma", "d_beta"})
        return norm, norm or bool(site.wants & {"d_b1", "d_w1"}), "d_ls" in site.wants

    def cost(self, site: Site) -> Cost:
        n, d, hidden, t, chunk = self.sizes(site)
        norm, inner, z = self.needs(site)
        w1, w2 = "d_w1" in site.wants, "d_w2" in site.wants
        macs = n * d * hidden * ((inner or z or w2) + inner + norm + z)
        macs += n * (part_size(site, "w1") * w1 + part_size(site, "w2") * w2)
        repeats = -(-hidden // chunk) if w1 or w2 else 1
        return Cost(macs, 4 * n * d * (4 + 2 * repeats), 4 * n * d * (1 + repeats) * norm,
                    panels(n, t) * frozen_bytes(site, "w1", "w2", "b1") * 2)

    def scratch(self, site: Site) -> int:
        n, d, hidden, t, chunk = self.sizes(site)
        norm, inner, z = self.needs(site)
        w1, w2 = "d_w1" in site.wants, "d_w2" in site.wants
        floats = d * z
        panel = t * (d + d * (site.has("ls") and inner) + d * z + chunk)
        if not (w1 or w2):
            if not (inner or z):
                return 0
            floats += d * len(site.wants & {"d_gamma", "d_beta"} if self.attr(site, "norm") else ())
            floats += hidden * ("d_b1" in site.wants) + t * (d * norm + chunk * inner)
            return 4 * (floats + panel)
        floats += 2 * n * bool(self.attr(site, "norm"))
        floats += n * d * (norm and "d_x" not in site.wants)
        floats += n * min(chunk, part_shape(site, "w2")[1]) * w2 + n * chunk * inner
        stage = 0
        if w1 and (self.attr(site, "norm") or by_columns(site, "w1")):
            stage = n * stage_width(part_shape(site, "w1")[1])
        return 4 * (floats + max(panel, stage))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        i, f = inputs, forward(inputs, attrs)
        g = i["dy"] * i.get("ls", 1.0)
        dh = (g @ i["w2"]) * ref.activation_slope(f["h"], attrs["act"])
        made = {"d_w1": dh.T @ f["u"], "d_b1": dh.sum(0), "d_w2": g.T @ f["f"], "d_b2": g.sum(0),
                "d_ls": (i["dy"] * f["z"]).sum(0), "d_x": dh @ i["w1"]}
        if attrs["norm"]:
            made["d_x"], made["d_gamma"], made["d_beta"] = ref.layer_norm_grad(i["x"], i.get("gamma"), made["d_x"],
                                                                               attrs["eps"])
        if attrs["residual"]:
            made["d_x"] = made["d_x"] + i["dy"]
        return made

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        vectors = ("d_gamma", "d_beta", "d_b1", "d_b2")
        for made, attrs in self._samples(rng):
            hidden, d = made["w1"].shape
            bare = {k: made[k] for k in ("x", "w1", "w2", "dy")}
            plain = {k: v for k, v in made.items() if k != "ls"}
            yield Sample(made, attrs, ("d_x", *vectors, "d_ls"))
            yield Sample(plain, attrs, ("d_x", *vectors))
            yield Sample(plain, attrs, ("d_x",))
            yield Sample(made, attrs, ("d_b1", "d_b2", "d_beta"))
            yield Sample(made, attrs, ("d_b2",))
            yield Sample(made, attrs, ("d_ls",))
            yield Sample(made, attrs, ("d_x", "d_w1", "d_w2", *vectors, "d_ls"))
            yield Sample(plain, attrs, ("d_w1", "d_w2", *vectors))
            yield Sample(plain, attrs, ("d_w2",))
            yield Sample(bare, {**attrs, "act": 1, "residual": 0}, ("d_x", "d_w1"))
            yield Sample(made, attrs, ("d_x", "d_w1", "d_w2"), {"w1": ("cols", [0, 2, d - 1]),
                                                                "w2": ("cols", [0, 1, hidden // 2, hidden - 1])})
            yield Sample(bare, {**attrs, "norm": 0, "act": 2}, ("d_x", "d_w1", "d_w2"), {
                "w1": ("rows", [0, 1, 2, 3, hidden - 1]), "w2": ("rows", [1, d - 1])})
            yield Sample(bare, {**attrs, "norm": 0}, ("d_w1", "d_w2"), {"w1": ("cols", [1]), "w2": ("rows", [1])})
