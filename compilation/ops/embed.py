"""Patch embedding straight from the uint8 image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import (
    COUNT,
    matrix,
    part_size,
    row_settings,
    stage_width,
    tensor,
    vector,
    width,
)
from compilation.target import TILES
from compilation.types import SUM, U8, Type

PARAMETERS = (matrix("w"), vector("b", True), vector("scale"), vector("shift"), vector("prefix", True),
              vector("pos", True))


class Embedding(Op):
    source = "vt_patch_embed.c"
    indices = "image: h v c, w: d k, b: d, scale: c, shift: c, prefix: p d, pos: t d, dy: t d"
    legal = {"patch": COUNT, "rows": TILES}

    def check(self, site: Site) -> None:
        (h, w, c), patch = site.shapes["image"], self.attr(site, "patch")
        if h % patch or w % patch or site.shapes["w"][1] != c * patch * patch:
            raise ValueError(f"patches of {patch} x {patch} x {c} do not fit an image of {h} x {w} and a weight with "
                             f"{site.shapes['w'][1]} columns")
        for slot in ("pos", "dy"):
            if site.has(slot) and site.shapes[slot][0] != self.tokens(site):
                raise ValueError(f"{slot} has {site.shapes[slot][0]} rows, not {self.tokens(site)}")

    def patches(self, site: Site) -> int:
        h, w, _ = site.shapes["image"]
        return (h // self.attr(site, "patch")) * (w // self.attr(site, "patch"))

    def dims(self, site: Site) -> dict[str, int]:
        h, w, c = site.shapes["image"]
        return {"height": h, "width": w, "channels": c, "d": site.shapes["w"][0],
                "prefix_rows": site.shapes["prefix"][0] if site.has("prefix") else 0}

    def tokens(self, site: Site) -> int:
        return self.patches(site) + self.dims(site)["prefix_rows"]

    def _samples(self, rng: np.random.Generator) -> Iterator[tuple[Arrays, int]]:
        for h, w, c, p, d, prefix in ((6, 9, 3, 3, 21, 1), (8, 8, 1, 4, 5, 0), (14, 28, 3, 7, 18, 2)):
            n = (h // p) * (w // p) + prefix
            made = {"image": rng.integers(0, 256, (h, w, c)), "w": rng.normal(size=(d, c * p * p)),
                    "b": rng.normal(size=d), "scale": rng.uniform(0.01, 0.02, c), "shift": rng.normal(size=c)}
            if prefix:
                made |= {"prefix": rng.normal(size=(prefix, d)), "pos": rng.normal(size=(n, d))}
            yield made, p


@register
class PatchEmbed(Embedding):
    """y (N, D) = concat(prefix, patches w^T + b) + pos; patches of the normalised image, which never exists."""

    name, symbol, gradient = "patch_embed", "vt_patch_embed", "patch_embed_grad"
    inputs, outputs = (tensor("image", element=U8), *PARAMETERS), (tensor("y"),)
    attrs = {"patch": (int, 16), "rows": (int, 16)}
    schedule = ("rows",)

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type((self.tokens(site), site.shapes["w"][0]))}

    def macs(self, site: Site) -> int:
        (d, k), n = site.shapes["w"], self.patches(site)
        return n * d * k

    def scratch(self, site: Site) -> int:
        (d, k), t = site.shapes["w"], width(self.patches(site), self.attr(site, "rows"))
        return SUM.of(t * (k + (d if t > 1 else 0)))

    def schedules(self, site: Site) -> Iterator[dict[str, Any]]:
        for rows in row_settings(self.patches(site)):
            yield {"rows": rows}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        x = ref.patches(inputs["image"], inputs["scale"], inputs["shift"], attrs["patch"])
        y = x @ inputs["w"].T + inputs.get("b", 0.0)
        if "prefix" in inputs:
            y = np.concatenate([inputs["prefix"], y])
        return {"y": y + inputs.get("pos", 0.0)}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made, p in self._samples(rng):
            yield Sample(made, {"patch": p})
            yield Sample({k: v for k, v in made.items() if k not in ("b", "pos")}, {"patch": p},
                         parts={"w": ("cols", [1, 2, 5])})


@register
class PatchEmbedGrad(Embedding):
    """Gradients of the parameters (there is none of an image)."""

    name, symbol = "patch_embed_grad", "vt_patch_embed_grad"
    inputs = (tensor("image", element=U8), *(p for p in PARAMETERS if p.name != "b"), tensor("dy"))
    outputs = (matrix("d_w"), vector("d_b"), vector("d_prefix"), vector("d_pos"))
    attrs = {"patch": (int, 16)}

    def infer(self, site: Site) -> dict[str, Type]:
        d, dims = site.shapes["w"][0], self.dims(site)
        return {"d_w": Type(site.part("w")), "d_b": Type((d,)), "d_pos": Type(site.shapes["dy"]),
                "d_prefix": Type((dims["prefix_rows"], d))}

    def macs(self, site: Site) -> int:
        return self.patches(site) * part_size(site, "w") * ("d_w" in site.wants)

    def scratch(self, site: Site) -> int:
        return SUM.of(self.patches(site) * stage_width(site.part("w")[1])) if "d_w" in site.wants else 0

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        x = ref.patches(inputs["image"], inputs["scale"], inputs["shift"], attrs["patch"])
        rows = inputs["prefix"].shape[0] if "prefix" in inputs else 0
        g = inputs["dy"][rows:]
        return {"d_w": g.T @ x, "d_b": g.sum(0), "d_prefix": inputs["dy"][:rows], "d_pos": inputs["dy"]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made, p in self._samples(rng):
            del made["b"]
            n = (made["image"].shape[0] // p) * (made["image"].shape[1] // p)
            d, rows = made["w"].shape[0], made["prefix"].shape[0] if "prefix" in made else 0
            made["dy"] = rng.normal(size=(n + rows, d))
            wants = ("d_w", "d_b", *(("d_prefix", "d_pos") if rows else ()))
            yield Sample(made, {"patch": p}, wants)
            yield Sample(made, {"patch": p}, ("d_w",), {"w": ("cols", [0, 3, 4, 7])})
            yield Sample(made, {"patch": p}, ("d_w",), {"w": ("rows", [0, 3, 4])})


@register
class NormalizeImage(Op):
    """y (1, C, H, W) = the normalised image, for models that do not begin with a patch embedding."""

    name, symbol, source = "normalize_image", "vt_normalize_image", "vt_image.c"
    inputs, outputs = (tensor("image", element=U8), vector("scale"), vector("shift")), (tensor("y"),)
    indices = "image: h w c, scale: c, shift: c"

    def infer(self, site: Site) -> dict[str, Type]:
        h, w, c = site.shapes["image"]
        return {"y": Type((1, c, h, w))}

    def dims(self, site: Site) -> dict[str, int]:
        h, w, c = site.shapes["image"]
        return {"height": h, "width": w, "channels": c}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": (inputs["image"] * inputs["scale"] + inputs["shift"]).transpose(2, 0, 1)[None]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"image": rng.integers(0, 256, (5, 4, 3)), "scale": rng.uniform(0.01, 0.02, 3),
                      "shift": rng.normal(size=3)})
