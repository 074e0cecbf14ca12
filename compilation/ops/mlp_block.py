"""The MLP of a transformer block as one streamed operation; its hidden layer is never whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import (
    COUNT,
    FLAG,
    check_eps,
    check_pairs,
    fastest_first,
    grid,
    matrix,
    part_shape,
    part_size,
    row_settings,
    stage_width,
    tensor,
    vector,
    width,
)
from compilation.target import TILES
from compilation.types import SUM, Type

PARAMETERS = (vector("gamma", True), vector("beta", True), matrix("w1"), vector("b1", True), matrix("w2"),
              vector("b2", True), vector("ls", True), vector("fc1_a", True), vector("fc1_b", True),
              vector("fc2_a", True), vector("fc2_b", True))
ACTS = ("gelu", "gelu_tanh", "relu")
LOW = ("fc1_a", "fc1_b", "fc2_a", "fc2_b")        # low-rank additions (LoRA) to the two linear layers


class Mlp(Op):
    source = "vt_mlp_block.c"
    attrs = {"eps": (float, 1e-6), "act": (int, 0), "norm": (int, 1), "residual": (int, 1),
             "rows": (int, 16), "chunk": (int, 64), "fc1_scale": (float, 1.0),
             "fc2_scale": (float, 1.0)}
    indices = ("x: n d, gamma: d, beta: d, w1: h d, b1: h, w2: d h, b2: d, ls: d, fc1_a: r d, fc1_b: h r, fc2_a: s h, "
               "fc2_b: d s, dy: n d")
    legal = {"act": range(3), "norm": FLAG, "residual": FLAG, "rows": TILES, "chunk": COUNT}
    schedule = ("rows", "chunk")

    def check(self, site: Site) -> None:
        check_eps(self.attr(site, "eps"))
        check_pairs(site, ("fc1_a", "fc1_b"), ("fc2_a", "fc2_b"))

    def dims(self, site: Site) -> dict[str, int]:
        n, d = site.shapes["x"]
        r1, r2 = self.ranks(site)
        return {"n": n, "d": d, "hidden": site.shapes["w1"][0], "fc1_rank": r1, "fc2_rank": r2}

    def ranks(self, site: Site) -> tuple[int, int]:
        """Of the low-rank additions to the two linear layers; 0 where there is none."""
        return tuple(site.shapes[s][0] if site.has(s) else 0 for s in ("fc1_a", "fc2_a"))  # type: ignore[return-value]

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
        for n, d, hidden, r in ((21, 12, 40, 3), (5, 20, 24, 17), (1, 7, 9, 1)):
            made = {"x": rng.normal(0.3, 1.5, (n, d)), "gamma": rng.normal(1, 0.3, d), "beta": rng.normal(0, 0.3, d),
                    "w1": rng.normal(0, d**-0.5, (hidden, d)), "b1": rng.normal(0, 0.3, hidden),
                    "w2": rng.normal(0, hidden**-0.5, (d, hidden)), "b2": rng.normal(0, 0.3, d),
                    "ls": rng.normal(0.5, 0.2, d), "dy": rng.normal(size=(n, d)),
                    "fc1_a": rng.normal(0, d**-0.5, (r, d)), "fc1_b": rng.normal(0, r**-0.5, (hidden, r)),
                    "fc2_a": rng.normal(0, hidden**-0.5, (r + 1, hidden)),
                    "fc2_b": rng.normal(0, r**-0.5, (d, r + 1))}
            yield ({s.name: made[s.name] for s in self.inputs},
                   {"eps": 1e-6, "act": 0, "norm": 1, "residual": 1, "fc1_scale": 0.75, "fc2_scale": 1.25})


def effective(i: Arrays, attrs: dict[str, Any], which: str) -> np.ndarray:
    """The weights of one linear layer with its low-rank addition: W + scale * B A."""
    w = i[f"w{which}"]
    return w + attrs[f"fc{which}_scale"] * i[f"fc{which}_b"] @ i[f"fc{which}_a"] if f"fc{which}_a" in i else w


def without(made: Arrays, *starts: str) -> Arrays:
    return {k: v for k, v in made.items() if not k.startswith(starts)}


def forward(i: Arrays, attrs: dict[str, Any]) -> Arrays:
    """Everything the block makes: u = LN(x), h before and f after the activation, z, y."""
    u = ref.layer_norm(i["x"], i.get("gamma"), i.get("beta"), attrs["eps"]) if attrs["norm"] else i["x"]
    h = u @ effective(i, attrs, "1").T + i.get("b1", 0.0)
    f = ref.activation(h, ACTS[attrs["act"]])
    z = f @ effective(i, attrs, "2").T + i.get("b2", 0.0)
    y = z * i.get("ls", 1.0) + (i["x"] if attrs["residual"] else 0.0)
    return {"u": u, "h": h, "f": f, "z": z, "y": y}


@register
class MlpBlock(Mlp):
    """y (N, D) = [x +] ls * (act(LN(x) w1^T + b1) w2^T + b2).

    Either linear layer may have a low-rank addition: u W^T + b + scale * (u A^T) B^T.
    """

    name, symbol, gradient = "mlp_block", "vt_mlp_block", "mlp_block_grad"
    inputs, outputs = (tensor("x"), *PARAMETERS), (tensor("y"),)
    inplace, rowwise = {"y": "x"}, ("x",)

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type(site.shapes["x"])}

    def macs(self, site: Site) -> int:
        n, d, hidden, _, _ = self.sizes(site)
        return 2 * n * d * hidden + n * (d + hidden) * sum(self.ranks(site))

    def scratch(self, site: Site) -> int:
        _, d, _, t, chunk = self.sizes(site)
        return SUM.of(t * (2 * d + chunk + sum(self.ranks(site))))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": forward(inputs, attrs)["y"]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made, attrs in self._samples(rng):
            hidden, d = made["w1"].shape
            bare = {k: made[k] for k in ("x", "w1", "w2")}
            yield Sample(made, attrs)
            yield Sample(without(made, "fc1"), attrs)
            yield Sample(without(made, "fc2"), {**attrs, "act": 1}, parts={"w1": ("cols", [0, d - 1])})
            made = without(made, "fc")
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
               vector("d_b2"), vector("d_ls"), vector("d_fc1_a"), vector("d_fc1_b"), vector("d_fc2_a"),
               vector("d_fc2_b"))
    needed_for = {"b2": ("d_ls",)}

    def infer(self, site: Site) -> dict[str, Type]:
        n, d, hidden, _, _ = self.sizes(site)
        made: dict[str, Type] = {"d_x": Type((n, d)), "d_b1": Type((hidden,))}
        made |= {f"d_{s}": Type(part_shape(site, s)) for s in ("w1", "w2")}
        made |= {f"d_{s}": Type(site.shapes[s]) for s in LOW if site.has(s)}
        return made | {f"d_{s}": Type((d,)) for s in ("gamma", "beta", "b2", "ls")}

    def may_alias(self, site: Site) -> dict[str, str]:
        return {} if site.wants & {"d_w1", "d_w2"} else {"d_x": "dy"}

    def needs(self, site: Site) -> tuple[bool, bool, bool]:
        """Whether the gradient of LN(x), of the hidden layer, and the result itself have to be made."""
        norm = "d_x" in site.wants or bool(self.attr(site, "norm") and site.wants & {"d_gamma", "d_beta"})
        return norm, norm or bool(site.wants & {"d_b1", "d_w1", "d_fc1_a", "d_fc1_b"}), "d_ls" in site.wants

    def low(self, site: Site) -> tuple[bool, bool, bool]:
        """Whether the gradients' low1 and low2 and the second addition's own low2 have to be made (vt_lora.h)."""
        (norm, inner, z), (r1, r2) = self.needs(site), self.ranks(site)
        return (r1 > 0 and (norm or "d_fc1_a" in site.wants), r2 > 0 and (inner or "d_fc2_a" in site.wants),
                r2 > 0 and (z or "d_fc2_b" in site.wants))

    def _low_macs(self, site: Site) -> int:
        n, d, hidden, _, _ = self.sizes(site)
        (norm, inner, z), (r1, r2), (dlow1, dlow2, low2) = self.needs(site), self.ranks(site), self.low(site)
        a1, b1, a2, b2 = (f"d_{s}" in site.wants for s in LOW)
        first = (d + hidden) + hidden * (dlow1 + b1) + d * (dlow1 and norm) + d * a1
        second = d * (dlow2 + (z and low2) + b2) + hidden * (inner + a2 + low2)
        return n * (r1 * first + r2 * second)

    def _low_floats(self, site: Site, tokens: int, features: int) -> int:
        """Floats for the low-rank additions, with so many tokens and hidden features at a time."""
        _, d, _, t, _ = self.sizes(site)
        (r1, r2), (dlow1, dlow2, low2) = self.ranks(site), self.low(site)
        a1, b1, a2, b2 = (f"d_{s}" in site.wants for s in LOW)
        sums = r1 * (d * a1 + features * b1) + r2 * (features * a2 + d * b2)
        return sums + tokens * (r1 * (1 + dlow1) + r2 * (dlow2 + low2)) + t * max(r1, r2)

    def macs(self, site: Site) -> int:
        n, d, hidden, _, _ = self.sizes(site)
        norm, inner, z = self.needs(site)
        w1, w2 = "d_w1" in site.wants, "d_w2" in site.wants
        anything = inner or z or w2 or bool(site.wants & {"d_fc2_a", "d_fc2_b"})
        macs = n * d * hidden * (anything + inner + norm + z) + anything * self._low_macs(site)
        macs += n * (part_size(site, "w1") * w1 + part_size(site, "w2") * w2)
        return macs

    def scratch(self, site: Site) -> int:
        n, d, hidden, t, chunk = self.sizes(site)
        norm, inner, z = self.needs(site)
        w1, w2 = "d_w1" in site.wants, "d_w2" in site.wants
        floats = d * z
        panel = t * (d + d * (site.has("ls") and (inner or self.low(site)[1])) + d * z + chunk)
        if not (w1 or w2):
            if not (inner or z or site.wants & {"d_fc2_a", "d_fc2_b"}):
                return 0
            floats += self._low_floats(site, t, hidden)
            floats += d * len(site.wants & {"d_gamma", "d_beta"} if self.attr(site, "norm") else ())
            floats += hidden * ("d_b1" in site.wants) + t * (d * norm + chunk * inner)
            return SUM.of(floats + panel)
        floats += 2 * n * bool(self.attr(site, "norm")) + self._low_floats(site, n, chunk)
        floats += n * d * (norm and "d_x" not in site.wants)
        floats += n * min(chunk, part_shape(site, "w2")[1]) * w2 + n * chunk * inner
        stage = 0
        if w1 and self.attr(site, "norm"):
            stage = n * stage_width(part_shape(site, "w1")[1])
        return SUM.of(floats + max(panel, stage))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        i, f = inputs, forward(inputs, attrs)
        g = i["dy"] * i.get("ls", 1.0)
        dh = (g @ effective(i, attrs, "2")) * ref.activation_slope(f["h"], ACTS[attrs["act"]])
        made = {"d_w1": dh.T @ f["u"], "d_b1": dh.sum(0), "d_w2": g.T @ f["f"], "d_b2": g.sum(0),
                "d_ls": (i["dy"] * f["z"]).sum(0), "d_x": dh @ effective(i, attrs, "1")}
        for k in ("1", "2"):                 # W + scale * B A is trained: dA = scale * B^T dW, dB = scale * dW A^T
            if f"fc{k}_a" in i:
                dw = attrs[f"fc{k}_scale"] * made[f"d_w{k}"]
                made |= {f"d_fc{k}_a": i[f"fc{k}_b"].T @ dw, f"d_fc{k}_b": dw @ i[f"fc{k}_a"].T}
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
            all_low = tuple(f"d_{s}" for s in LOW)
            yield Sample(made, attrs, ("d_x", *all_low))
            yield Sample(made, attrs, ("d_x", *all_low, *vectors, "d_ls"))
            yield Sample(made, attrs, ("d_x", *vectors))
            yield Sample(made, attrs, ("d_b2", "d_ls"))
            for s in all_low:
                yield Sample(made, attrs, (s,))
            yield Sample(without(made, "ls", "fc1"), {**attrs, "act": 1}, ("d_x", "d_fc2_a", "d_fc2_b"))
            yield Sample(without(made, "fc2", "gamma", "beta"), {**attrs, "norm": 0}, ("d_x", "d_fc1_a", "d_fc1_b"))
            yield Sample(made, attrs, ("d_x", "d_w1", "d_w2", *vectors, "d_ls", *all_low),
                         {"w1": ("cols", [0, 2, d - 1]), "w2": ("rows", [1])})
            yield Sample(without(made, "ls"), attrs, ("d_w2", "d_fc1_b", "d_fc2_b"))
            yield Sample(without(made, "fc1"), attrs, ("d_w1", "d_fc2_a"))
            made = without(made, "fc")
            plain = without(made, "ls")
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
