"""The attention of a transformer block as one streamed operation: per head, a few queries by a block of keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import (
    COUNT,
    FLAG,
    blocks,
    by_columns,
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
from compilation.ops.gram import GramPart, rank_blocks
from compilation.ops.packed_attention import check_heads
from compilation.target import KEYS, TILES
from compilation.types import SUM, Type

PARAMETERS = (vector("gamma", True), vector("beta", True), matrix("wqkv"), vector("bqkv", True), matrix("wproj"),
              vector("bproj", True), vector("ls", True), vector("gram_a", True), vector("gram_b", True),
              vector("qkv_a", True), vector("qkv_b", True), vector("proj_a", True), vector("proj_b", True))
LOW = ("qkv_a", "qkv_b", "proj_a", "proj_b")      # low-rank additions (LoRA) to the two linear layers


class AttentionOp(Op):
    source = "vt_attn_block.c"
    attrs = {"eps": (float, 1e-6), "norm": (int, 1), "heads": (int, 1), "residual": (int, 1),
             "q_rows": (int, 1), "rows": (int, 16), "key_block": (int, 65535),
             "gram_block": (int, 64), "qkv_scale": (float, 1.0), "proj_scale": (float, 1.0)}
    indices = ("x: n d, gamma: d, beta: d, wqkv: 3*d d, bqkv: 3*d, wproj: d d, bproj: d, ls: d, gram_a: n g, gram_b: g d, "
               "qkv_a: r d, qkv_b: 3*d r, proj_a: p d, proj_b: d p, dy: q d")
    legal = {"norm": FLAG, "heads": COUNT, "residual": FLAG, "q_rows": COUNT, "rows": TILES, "key_block": COUNT,
             "gram_block": COUNT, "spare": FLAG}
    schedule: ClassVar[tuple[str, ...]] = ("rows", "key_block", "gram_block")

    def check(self, site: Site) -> None:
        (n, d), q = site.shapes["x"], self.attr(site, "q_rows")
        check_heads(d, self.attr(site, "heads"))
        check_eps(self.attr(site, "eps"))
        check_pairs(site, ("gram_a", "gram_b"), ("qkv_a", "qkv_b"), ("proj_a", "proj_b"))
        if q not in (1, n):
            raise ValueError(f"one row is made or all {n}, not {q}")
        if site.shapes.get("dy", (q,))[0] != q:
            raise ValueError(f"dy has {site.shapes['dy'][0]} rows, the result {q}")

    def dims(self, site: Site) -> dict[str, int]:
        n, d = site.shapes["x"]
        r, rp = self.ranks(site)
        return {"n": n, "d": d, "rank": site.shapes["gram_b"][0] if site.has("gram_b") else 0, "qkv_rank": r,
                "proj_rank": rp}

    def ranks(self, site: Site) -> tuple[int, int]:
        """Of the low-rank additions to the packed linear and to the projection; 0 where there is none."""
        return tuple(site.shapes[s][0] if site.has(s) else 0 for s in ("qkv_a", "proj_a"))  # type: ignore[return-value]

    def gram(self, site: Site) -> GramPart | None:
        if not site.has("gram_a"):
            return None
        (n, d), r = site.shapes["x"], site.shapes["gram_b"][0]
        return GramPart(n, self.attr(site, "q_rows"), d, r, self.attr(site, "rows"), self.attr(site, "gram_block"))

    def _settings(self, site: Site, whole: bool) -> Iterator[dict[str, Any]]:
        n = site.shapes["x"][0]
        ranks = rank_blocks(site.shapes["gram_b"][0]) if site.has("gram_b") else [self.attrs["gram_block"][1]]
        keys = [n]
        if not whole:
            even = {blocks(n, k) for k in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)}
            keys = sorted(even | {k for k in (8, 6, 4, 2, 1) if k < n}, reverse=True)
        return grid(rows=row_settings(n), key_block=keys, gram_block=ranks)

    def _samples(self, rng: np.random.Generator) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        for n, heads, d, r in ((21, 4, 5, 3), (7, 1, 18, 2), (5, 2, 6, 17), (1, 3, 2, 1)):
            w = heads * d
            made = {"x": rng.normal(0.3, 1.5, (n, w)), "gamma": rng.normal(1, 0.3, w), "beta": rng.normal(0, 0.3, w),
                    "wqkv": rng.normal(0, 1.2 * w**-0.5, (3 * w, w)), "bqkv": rng.normal(0, 0.3, 3 * w),
                    "wproj": rng.normal(0, w**-0.5, (w, w)), "bproj": rng.normal(0, 0.3, w),
                    "ls": rng.normal(0.5, 0.2, w), "gram_a": rng.normal(0, 0.5, (n, r)),
                    "gram_b": rng.normal(0, 0.5, (r, w)), "dy": rng.normal(size=(n, w)),
                    "qkv_a": rng.normal(0, w**-0.5, (r, w)), "qkv_b": rng.normal(0, r**-0.5, (3 * w, r)),
                    "proj_a": rng.normal(0, w**-0.5, (r + 1, w)), "proj_b": rng.normal(0, r**-0.5, (w, r + 1))}
            yield ({s.name: made[s.name] for s in self.inputs},
                   {"eps": 1e-6, "norm": 1, "heads": heads, "residual": 1, "q_rows": n, "qkv_scale": 0.75,
                    "proj_scale": 1.25})


def without(made: Arrays, *starts: str) -> Arrays:
    return {k: v for k, v in made.items() if not k.startswith(starts)}


def effective(i: Arrays, attrs: dict[str, Any], which: str) -> np.ndarray:
    """The weights of one linear layer with its low-rank addition: W + scale * B A."""
    w = i[f"w{which}"]
    return w + attrs[f"{which}_scale"] * i[f"{which}_b"] @ i[f"{which}_a"] if f"{which}_a" in i else w


def forward(i: Arrays, attrs: dict[str, Any]) -> Arrays:
    """Everything the block makes: u = LN(x), qkv, o, z = proj(o) + T, all rows; y, the first q_rows rows."""
    u = ref.layer_norm(i["x"], i.get("gamma"), i.get("beta"), attrs["eps"]) if attrs["norm"] else i["x"]
    qkv = u @ effective(i, attrs, "qkv").T + i.get("bqkv", 0.0)
    o = ref.packed_attention(qkv, attrs["heads"])
    z = o @ effective(i, attrs, "proj").T + i.get("bproj", 0.0)
    if "gram_a" in i:
        z = z + ref.gram(u, i["gram_a"], i["gram_b"])
    y = z * i.get("ls", 1.0) + (i["x"] if attrs["residual"] else 0.0)
    return {"u": u, "qkv": qkv, "o": o, "z": z, "y": y[:attrs["q_rows"]]}


@register
class AttnBlock(AttentionOp):
    """y (q_rows, D) = [x +] ls * (proj(attention(qkv(LN(x)))) + T), T the Gram residual of LN(x); q_rows is N or 1.

    qkv and proj are linear layers, each with an optional low-rank addition: u W^T + b + scale * (u A^T) B^T.
    """

    name, symbol, gradient = "attn_block", "vt_attn_block", "attn_block_grad"
    inputs, outputs = (tensor("x"), *PARAMETERS), (tensor("y"),)

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type((self.attr(site, "q_rows"), site.shapes["x"][1]))}

    def repeats(self, site: Site) -> int:
        """How often the last head computes its queries."""
        n = site.shapes["x"][0]
        return blocks(n, min(n, self.attr(site, "key_block")))

    def macs(self, site: Site) -> int:
        n, w = site.shapes["x"]
        heads, q = self.attr(site, "heads"), self.attr(site, "q_rows")
        r, rp = self.ranks(site)
        if q == 1:
            macs = 2 * n * w * heads + 4 * w * w + 3 * w * r * (1 + heads)
        else:
            macs = n * w * (4 * w + 2 * n + 4 * r) + (self.repeats(site) - 1) * n * (w + r) * (w // heads)
        macs += 2 * q * w * rp
        if (gram := self.gram(site)) is not None:
            macs += gram.forward_macs()
        return macs

    def scratch(self, site: Site) -> int:
        n, w = site.shapes["x"]
        r, rp = self.ranks(site)
        heads, q, rows = self.attr(site, "heads"), self.attr(site, "q_rows"), self.attr(site, "rows")
        d, t, bk = w // heads, width(n, rows), self.attr(site, "key_block")
        if q == 1:
            inner = 3 * w + d + r
        elif bk >= n:
            inner = 2 * n * d + t * (w + 2 * d + min(KEYS, n))
        else:
            inner = 2 * n + 2 * bk * d + t * (w + 2 * d + min(KEYS, n if heads > 2 else bk))
        inner += r * (n + t) * (q > 1)
        inner = SUM.of(max(inner, (2 * w + rp) * width(q, rows)))
        if (gram := self.gram(site)) is not None:
            inner = max(inner, gram.forward_scratch())
        return 8 * n * bool(self.attr(site, "norm")) + inner

    def schedules(self, site: Site) -> Iterator[dict[str, Any]]:
        return fastest_first(self, site, self._settings(site, self.attr(site, "q_rows") == 1))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": forward(inputs, attrs)["y"]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made, attrs in self._samples(rng):
            w = made["x"].shape[1]
            bare = {k: made[k] for k in ("x", "wqkv", "wproj")}
            low = without(made, "gram")
            made = without(made, "qkv", "proj")
            plain = without(made, "gram")
            yield Sample(low, attrs)
            yield Sample(without(low, "proj", "ls"), {**attrs, "residual": 0})
            yield Sample(without(low, "qkv", "b", "gamma"), {**attrs, "norm": 0}, parts={"wproj": ("cols", [1, w - 1])})
            yield Sample(low, {**attrs, "q_rows": 1})
            yield Sample(without(low, "proj", "gamma", "beta"), {**attrs, "q_rows": 1, "norm": 0})
            yield Sample(made, attrs)
            yield Sample(plain, attrs)
            yield Sample(bare, {**attrs, "norm": 0, "residual": 0}, parts={"wqkv": ("cols", [0, w - 1])})
            yield Sample(plain, attrs, parts={"wqkv": ("rows", [0, w, 3 * w - 1]), "wproj": ("cols", [1, w - 1])})
            yield Sample(made, {**attrs, "q_rows": 1})
            yield Sample(bare, {**attrs, "q_rows": 1, "residual": 0, "norm": 0}, parts={"wproj": ("rows", [0, w - 1])})


@register
class AttnBlockGrad(AttentionOp):
    """Gradients of attn_block; d_x collects the gradient of LN(x) and everything inside is computed again from x."""

    name, symbol = "attn_block_grad", "vt_attn_block_grad"
    inputs = (tensor("x"), *PARAMETERS, tensor("dy"))
    outputs = (tensor("d_x"), vector("d_gamma"), vector("d_beta"), matrix("d_wqkv"), vector("d_bqkv"),
               matrix("d_wproj"), vector("d_bproj"), vector("d_ls"), vector("d_gram_a"), vector("d_gram_b"),
               vector("d_qkv_a"), vector("d_qkv_b"), vector("d_proj_a"), vector("d_proj_b"))
    needed_for = {"bproj": ("d_ls",)}
    attrs = {**AttentionOp.attrs, "spare": (int, 0)}
    schedule = (*AttentionOp.schedule, "spare")

    def infer(self, site: Site) -> dict[str, Type]:
        n, w = site.shapes["x"]
        made: dict[str, Type] = {"d_x": Type((n, w)), "d_bqkv": Type((3 * w,))}
        made |= {f"d_{s}": Type((w,)) for s in ("gamma", "beta", "bproj", "ls")}
        made |= {f"d_{s}": Type(part_shape(site, s)) for s in ("wqkv", "wproj")}
        return made | {f"d_{s}": Type(site.shapes[s]) for s in ("gram_a", "gram_b", *LOW) if site.has(s)}

    def needs(self, site: Site) -> tuple[bool, bool, bool]:
        """Whether the gradient of LN(x), the attention itself, and its result o have to be made."""
        norm = "d_x" in site.wants or bool(self.attr(site, "norm") and site.wants & {"d_gamma", "d_beta"})
        o = bool(site.wants & {"d_ls", "d_wproj", "d_proj_a", "d_proj_b"})
        return norm, norm or o or bool(site.wants & {"d_wqkv", "d_bqkv", "d_qkv_a", "d_qkv_b"}), o

    def gram_wants(self, site: Site) -> tuple[bool, bool, bool, bool]:
        return self.needs(site)[0], "d_gram_a" in site.wants, "d_gram_b" in site.wants, "d_ls" in site.wants

    def spare(self, site: Site) -> bool:
        """Whether gradients of keys and values are made first, then, in the same memory, those of queries, and o."""
        whole = self.attr(site, "key_block") >= site.shapes["x"][0]
        return bool(self.attr(site, "spare")) and whole and self.attr(site, "q_rows") > 1

    def _head_macs(self, site: Site) -> int:
        n, w = site.shapes["x"]
        heads, wants = self.attr(site, "heads"), site.wants
        norm, _, o = self.needs(site)
        ls = "d_ls" in wants
        trained = part_size(site, "wqkv") * ("d_wqkv" in wants) + part_size(site, "wproj") * ("d_wproj" in wants)
        if self.attr(site, "q_rows") == 1:
            macs = 4 * w * w + (4 + 2 * norm) * n * w * heads
            query = norm or bool(wants & {"d_wqkv", "d_bqkv", "d_qkv_a", "d_qkv_b"})
            macs += w * w * (norm + query + o + ls)
            return macs + trained + self._low_row_macs(site, query)
        bk = min(n, self.attr(site, "key_block"))
        second = blocks(n, bk)
        spare = self.spare(site)
        first = blocks(n, 2 * bk) if second > 1 else int(spare)
        macs = 2 * n * w * w * (1 + (second > 1))                    # keys, values
        macs += 2 * n * w * w * (first + second)                     # queries, gradient of o
        macs += n * n * w * (2 + 5 + o + 4 * spare)                  # attention
        macs += norm * n * w * w * (second + 2) + ls * n * w * w * second
        return macs + n * trained + self._low_macs(site, first, second)

    def _low_row_macs(self, site: Site, query: bool) -> int:
        """Multiply-adds of the low-rank additions with one query row."""
        w, heads, wants = site.shapes["x"][1], self.attr(site, "heads"), site.wants
        norm, _, o = self.needs(site)
        (r, rp), ls = self.ranks(site), "d_ls" in wants
        each = 4 + 2 * heads + query * (heads + 1) + (norm or "d_qkv_a" in wants) + norm * heads
        each += (o or "d_qkv_b" in wants) * heads + o + 3 * ("d_qkv_b" in wants) + 3 * heads * ("d_qkv_a" in wants)
        share = 2 + (ls or "d_proj_b" in wants) + ls * heads + len(wants & {"d_proj_a", "d_proj_b"})
        return w * (r * each + rp * share)

    def _low_macs(self, site: Site, first: int, second: int) -> int:
        """Multiply-adds of the low-rank additions, with so many times all queries before and in the last pass."""
        (n, w), heads, wants = site.shapes["x"], self.attr(site, "heads"), site.wants
        (r, rp), ls, norm = self.ranks(site), "d_ls" in wants, self.needs(site)[0]
        collected = (norm or "d_qkv_a" in wants) + ("d_qkv_b" in wants)
        each = 1 + 2 * (1 + (second > 1)) + first + second + (second + 2) * collected + norm + ("d_qkv_a" in wants)
        share = 1 + first + second * (1 + ("d_proj_a" in wants) + (ls or "d_proj_b" in wants) + heads * ls)
        return n * w * (r * each + rp * (share + ("d_proj_b" in wants)))

    def macs(self, site: Site) -> int:
        macs = self._head_macs(site) if self.needs(site)[1] else 0
        gram = self.gram(site)
        if gram is not None and any(self.gram_wants(site)):
            macs += gram.backward_macs(*self.gram_wants(site))
        return macs

    def _head_scratch(self, site: Site) -> int:
        """Floats for the attention of all heads."""
        n, w = site.shapes["x"]
        heads, wants = self.attr(site, "heads"), site.wants
        (r, rp), d = self.ranks(site), w // heads
        if self.attr(site, "q_rows") == 1:
            return w * (5 + site.has("ls")) + 4 * d + 2 * n + 6 * r + 3 * rp + r * w * ("d_qkv_a" in wants)
        t, bk = width(n, self.attr(site, "rows")), min(n, self.attr(site, "key_block"))
        whole, spare, o = bk == n, self.spare(site), self.needs(site)[2] and not self.spare(site)
        floats = 4 * bk * d + (0 if whole else 3 * n)
        if not spare:
            kept = min(d, part_shape(site, "wproj")[1]) if by_columns(site, "wproj") else d
            floats += (d if whole else 3 * d) * ("d_bqkv" in wants) + n * kept * ("d_wproj" in wants)
            floats += (n if "d_wqkv" in wants else t) * d
        at_once = min(KEYS, n if whole else 2 * bk, n)
        panel = t * (w + w * site.has("ls") + d * o + (4 if t > 1 else 2) * d + 2 * at_once)
        stage = 0
        if "d_wqkv" in wants and self.attr(site, "norm"):
            stage = n * stage_width(part_shape(site, "wqkv")[1])
        floats += max(panel, stage)
        floats += rp * n + max(r, rp) * t + 3 * d * r * ("d_qkv_b" in wants) + rp * d * ("d_proj_a" in wants)
        if "d_qkv_a" in wants and self.attr(site, "norm"):
            floats = max(floats, n * stage_width(w))
        shared = r * n * (1 + (self.needs(site)[0] or "d_qkv_a" in wants)) + rp * n * ("d_proj_b" in wants)
        return floats + shared

    def scratch(self, site: Site) -> int:
        n, w = site.shapes["x"]
        norm, inner, _ = self.needs(site)
        base = 2 * n * bool(self.attr(site, "norm")) + w * ("d_ls" in site.wants)
        base += n * w * (norm and "d_x" not in site.wants)
        work = SUM.of(self._head_scratch(site)) if inner else 0
        gram = self.gram(site)
        if gram is not None and any(self.gram_wants(site)):
            work = max(work, gram.backward_scratch(*self.gram_wants(site)))
        return SUM.of(base) + work

    def schedules(self, site: Site) -> Iterator[dict[str, Any]]:
        one, trained = self.attr(site, "q_rows") == 1, bool(site.wants & {"d_wqkv", "d_wproj"})
        settings = list(self._settings(site, one or trained))
        if trained and not one:
            settings = [{**s, "spare": v} for s in settings for v in (0, 1)]
        return fastest_first(self, site, settings)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        i, f = inputs, forward(inputs, attrs)
        dy = np.zeros_like(i["x"])
        dy[:attrs["q_rows"]] = i["dy"]
        g = dy * i.get("ls", 1.0)
        dqkv = ref.packed_attention_grad(f["qkv"], g @ effective(i, attrs, "proj"), attrs["heads"])
        made = {"d_wproj": g.T @ f["o"], "d_bproj": g.sum(0), "d_ls": (dy * f["z"]).sum(0), "d_wqkv": dqkv.T @ f["u"],
                "d_bqkv": dqkv.sum(0), "d_x": dqkv @ effective(i, attrs, "qkv")}
        for which in ("qkv", "proj"):        # W + scale * B A is trained: dA = scale * B^T dW, dB = scale * dW A^T
            if f"{which}_a" in i:
                dw = attrs[f"{which}_scale"] * made[f"d_w{which}"]
                made |= {f"d_{which}_a": i[f"{which}_b"].T @ dw, f"d_{which}_b": dw @ i[f"{which}_a"].T}
        if "gram_a" in i:
            dx, made["d_gram_a"], made["d_gram_b"] = ref.gram_grad(f["u"], i["gram_a"], i["gram_b"], g)
            made["d_x"] = made["d_x"] + dx
        if attrs["norm"]:
            made["d_x"], made["d_gamma"], made["d_beta"] = ref.layer_norm_grad(i["x"], i.get("gamma"), made["d_x"],
                                                                               attrs["eps"])
        if attrs["residual"]:
            made["d_x"] = made["d_x"] + dy
        return made

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        vectors = ("d_gamma", "d_beta", "d_bqkv", "d_bproj")
        for made, attrs in self._samples(rng):
            w = made["x"].shape[1]
            bare = {k: made[k] for k in ("x", "wqkv", "wproj", "dy")}
            low = without(made, "gram")
            made = without(made, "qkv", "proj")
            plain = without(made, "gram", "ls")
            cols = {"wqkv": ("cols", [0, w - 1]), "wproj": ("cols", [0, w // 2, w - 1])}
            rows = {"wqkv": ("rows", [0, 1, w, 3 * w - 1]), "wproj": ("rows", [0, w - 1])}
            for q in sorted({attrs["q_rows"], 1}, reverse=True):
                at = {**attrs, "q_rows": q}
                for inputs in (made, plain, bare, low):
                    inputs["dy"] = made["dy"][:q]
                yield from self._low_samples(low, at, vectors, cols)
                yield Sample(dict(made), at, ("d_x", "d_wqkv", "d_wproj", *vectors, "d_ls", "d_gram_a", "d_gram_b"))
                yield Sample(dict(made), at, ("d_x", *vectors, "d_ls"))
                yield Sample(dict(plain), at, ("d_x", *vectors))
                yield Sample(dict(plain), at, ("d_x",))
                yield Sample(dict(plain), at, ("d_gamma", "d_bqkv"))
                yield Sample(dict(made), at, ("d_bproj",))
                yield Sample(dict(made), at, ("d_gram_a",))
                yield Sample(dict(made), at, ("d_x", "d_gram_b"))
                yield Sample(dict(plain), at, ("d_x", "d_wqkv", "d_wproj"), cols)
                yield Sample(dict(made), at, ("d_wqkv", "d_wproj"), rows)
                yield Sample(dict(bare), {**at, "norm": 0, "residual": 0}, ("d_x", "d_wproj"), cols)
                yield Sample(dict(bare), {**at, "norm": 0}, ("d_wqkv",), cols)

    def _low_samples(self, made: Arrays, at: dict[str, Any], vectors: tuple[str, ...],
                     cols: dict[str, tuple[str, list[int]]]) -> Iterator[Sample]:
        """With low-rank additions to one or both of the linear layers."""
        all_low = tuple(f"d_{s}" for s in LOW)
        yield Sample(dict(made), at, ("d_x", *all_low))
        yield Sample(dict(made), at, ("d_x", *vectors, "d_ls"))
        yield Sample(dict(made), at, ("d_x", "d_wqkv", "d_wproj", *all_low, *vectors, "d_ls"), cols)
        for s in all_low:
            yield Sample(without(made, "ls"), at, (s,))
        yield Sample(without(made, "ls", "b"), at, ("d_x", "d_qkv_b", "d_proj_b"))
        yield Sample(without(made, "qkv", "gamma", "beta"), {**at, "norm": 0}, ("d_x", "d_proj_a", "d_ls"))
        yield Sample(without(made, "proj", "ls", "gamma", "beta"), {**at, "norm": 0, "residual": 0}, ("d_qkv_a", "d_bqkv"))
