"""Every operation of the registry: shapes, reference, gradients, kernel, scratch, storage, cost, updates.

A new operation is covered by its definition alone; only TORCH, the PyTorch words for it, is written here.
"""

from __future__ import annotations

import ctypes as ct
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compilation.ops import REGISTRY, Op, Sample, Site
from compilation.ops.base import Arrays
from compilation.ops.indices import parse
from tests.compilation.kernel_library import In, Sink, Step, Update, build, run, site_of, structures, trained_part

TOLERANCE = 3e-6            # float32 kernels against float64, relative to the largest value
Tensors = dict[str, torch.Tensor]


# -- the operations in PyTorch ---------------------------------------------------------------------------
def _norm(i: Tensors, a: dict[str, Any]) -> torch.Tensor:
    x = i["x"].unflatten(-1, (a["heads"] if "norm" not in a else 1, -1))
    return F.layer_norm(x, x.shape[-1:], i.get("gamma"), i.get("beta"), a["eps"]).flatten(-2) if a.get("norm", 1) else i["x"]


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.reshape(x.shape[0], heads, -1).transpose(0, 1)


def _separate(i: Tensors, a: dict[str, Any]) -> torch.Tensor:
    q, k, v = (_heads(i[s], a["heads"]) for s in ("q", "k", "v"))
    return F.scaled_dot_product_attention(q, k, v, scale=a["scale"] or None).transpose(0, 1).flatten(1)


def _statistics(i: Tensors, a: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    q, k, v, g = (_heads(i[s], a["heads"]) for s in ("q", "k", "v", "dy"))
    s = q @ k.mT * (a["scale"] or q.shape[-1] ** -0.5)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return s.amax(-1).T, e.sum(-1).T, (e * (g @ v.mT)).sum(-1).T


def _embed(i: Tensors, a: dict[str, Any]) -> torch.Tensor:
    image = (i["image"].double() * i["scale"] + i["shift"]).permute(2, 0, 1)[None]
    p, (d, _) = a["patch"], i["w"].shape
    y = F.conv2d(image, i["w"].reshape(d, -1, p, p), i.get("b"), stride=p)[0].flatten(1).T
    return torch.cat([i["prefix"], y] if "prefix" in i else [y]) + i.get("pos", 0.0)


def by_head(w: torch.Tensor, attrs: dict[str, Any]) -> torch.Tensor:
    return w.reshape(attrs["heads"], -1, w.shape[1])


TORCH: dict[str, Callable[[Tensors, dict[str, Any]], torch.Tensor]] = {
    "gelu": lambda i, a: F.gelu(i["x"], approximate="tanh" if a["tanh"] else "none"),
    "relu": lambda i, a: F.relu(i["x"]),
    "head_linear": lambda i, a: (by_head(i["w"], a) @ i["x"][..., None]).reshape(1, -1) + i["b"],
    "head_linear_t": lambda i, a: (i["x"].reshape(a["heads"], 1, -1) @ by_head(i["w"], a))[:, 0],
    "silu": lambda i, a: F.silu(i["x"]),
    "sigmoid": lambda i, a: torch.sigmoid(i["x"]),
    "tanh": lambda i, a: torch.tanh(i["x"]),
    "copy": lambda i, a: i["x"].clone(),
    "add": lambda i, a: i["a"] + i["b"],
    "mul": lambda i, a: i["a"] * i["b"],
    "scale": lambda i, a: i["x"] * i["s"],
    "mul_const": lambda i, a: i["x"] * a["value"],
    "take_row": lambda i, a: i["x"][a["row"]][None],
    "mean_rows": lambda i, a: i["x"][a["start"]:].mean(0, keepdim=True),
    "columns": lambda i, a: i["x"][:, a["start"]:a["start"] + a["count"]],
    "take_cols": lambda i, a: i["x"][:, i["index"].long()],
    "layer_norm": _norm,
    "linear": lambda i, a: F.linear(i["x"], i["w"], i.get("b")),
    "attention": _separate,
    "attention_statistics": _statistics,
    "matmul": lambda i, a: i["a"] @ i["b"],
    "matmul_tn": lambda i, a: i["a"].T @ i["b"],
    "matmul_nt": lambda i, a: i["a"] @ i["b"].T,
    "cross_entropy": lambda i, a: F.cross_entropy(i["logits"], i["label"].long())[None],
    "patch_embed": _embed,
    "normalize_image": lambda i, a: (i["image"].double() * i["scale"] + i["shift"]).permute(2, 0, 1)[None],
}


# -- samples ---------------------------------------------------------------------------------------------
def samples(op: Op) -> list[Sample]:
    return list(op.samples(np.random.default_rng(7)))


def each(choose: Callable[[Op], bool] = lambda op: True) -> pytest.MarkDecorator:
    chosen = [op for op in REGISTRY.values() if choose(op) and not op.inner]
    return pytest.mark.parametrize("op", chosen, ids=lambda op: op.name)


def is_gradient(op: Op) -> bool:
    return op.name in {o.gradient for o in REGISTRY.values()}


def settings_of(op: Op, sample: Sample) -> Iterator[dict[str, Any]]:
    """The defaults, and every setting that the operation offers."""
    yield {}
    yield from op.schedules(site_of(op, sample))


def differentiable(op: Op, sample: Sample) -> list[str]:
    made = {s.name for s in REGISTRY[op.gradient].outputs} if op.gradient else set()
    return [s for s in sample.inputs if f"d_{s}" in made]


def gradient_call(op: Op, sample: Sample, dy: np.ndarray) -> tuple[Op, Arrays, dict[str, Any]]:
    """The gradient operation of a forward sample, its inputs and attributes."""
    grad = REGISTRY[op.gradient or ""]
    known = {s.name for s in grad.inputs}
    inputs = {s: v for s, v in sample.inputs.items() if s in known}
    if "dy" in known:
        inputs["dy"] = dy
    if grad.before:
        made = REGISTRY[grad.before]
        inputs |= made.reference({s.name: inputs[s.name] for s in made.inputs}, site_of(op, sample).attrs)
    attrs = {k: v for k, v in site_of(op, sample).attrs.items() if k in grad.attrs}
    if "n" in grad.attrs:
        attrs["n"] = sample.inputs["x"].shape[0]
    attrs |= {a: op.bind(site_of(op, sample))[n] for n, a in grad.sized.items() if a not in op.attrs}
    return grad, inputs, attrs


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ct.CDLL:
    return build(tmp_path_factory.mktemp("kernels"), "-O3", "-march=native")


# -- definitions -----------------------------------------------------------------------------------------
@each()
def test_shapes_are_what_infer_says(op: Op) -> None:
    for sample in samples(op):
        site = site_of(op, sample)
        made = op.reference(sample.inputs, site.attrs)
        for slot, type_ in op.infer(site).items():
            if slot in made:
                assert trained_part(sample, slot.removeprefix("d_"), made[slot]).shape == type_.shape, (slot, sample)


@each()
def test_indices_say_what_fits(op: Op) -> None:
    """Every input has its axes, samples fit, and a shape with another size along a shared axis does not."""
    line = parse(op.indices)
    assert {s.name for s in op.inputs} <= line.axes.keys() or op.own_update
    assert not op.leaf or list(line.outputs) == [s.name for s in op.outputs]
    assert {n for n, (kind, _) in op.attrs.items() if kind is int} == op.legal.keys() & op.attrs.keys()
    for sample in samples(op):
        site = site_of(op, sample)
        op.bind(site)
        op.check(site)
        assert all(site.attrs[n] in legal for n, legal in op.legal.items() if n in site.attrs)
        axes = {s: [a.inner or a.index for a in axes] for s, axes in line.axes.items()
                if s in site.shapes and s != f"d_{op.own_update}"}      # which has the trained part's shape
        present = [a for listed in axes.values() for a in listed]
        for slot, listed in axes.items():
            for i, axis in enumerate(listed):
                if not axis or present.count(axis) > 1:
                    shape = list(site.shapes[slot])
                    shape[i] += 1
                    with pytest.raises(ValueError, match=r"has (shape|\d+ elements)"):
                        op.bind(replace(site, shapes={**site.shapes, slot: tuple(shape)}))


@each()
def test_struct_has_the_registry_s_fields(op: Op) -> None:
    """The C argument struct: one field a slot, attribute and shape, and scratch where it is needed."""
    fields = dict(structures()[f"{op.symbol}_args"]._fields_)  # type: ignore[attr-defined]
    sites = [site_of(op, sample) for sample in samples(op)] or [Site({}, {})]
    dims = {name for site in sites for name in op.dims(site)}
    expected = {s.name for s in (*op.inputs, *op.outputs)} | set(op.fields) | dims
    if op.own_update and op.slots[op.own_update].kind == "matrix":
        expected.add(f"{op.own_update}_sink")
    assert set(fields) - {"scratch"} == expected
    for name, (kind, _) in op.fields.items():
        assert fields[name] is {float: ct.c_float, int: ct.c_int32}[kind]


@each(lambda op: not is_gradient(op) and op.own_update is None)
def test_reference_and_gradient_against_torch(op: Op) -> None:
    for sample in samples(op):
        attrs = site_of(op, sample).attrs
        inputs = {s: torch.from_numpy(np.array(v)) for s, v in sample.inputs.items()}
        wanted = differentiable(op, sample)
        for s in wanted:
            inputs[s].requires_grad_(True)
        y = TORCH[op.name](inputs, attrs)
        results = y if isinstance(y, tuple) else (y,)
        for made, result in zip(op.reference(sample.inputs, attrs).values(), results, strict=True):
            np.testing.assert_allclose(made, result.detach().numpy(), rtol=1e-10, atol=1e-12)
        if not wanted:
            continue
        dy = np.random.default_rng(3).normal(size=y.shape) if op.name != "cross_entropy" else np.ones(1)
        y.backward(torch.from_numpy(dy))
        grad, grad_inputs, grad_attrs = gradient_call(op, sample, dy)
        found = grad.reference(grad_inputs, grad_attrs)
        for s in wanted:
            np.testing.assert_allclose(found[f"d_{s}"], inputs[s].grad, rtol=1e-8, atol=1e-10, err_msg=f"d_{s}")


@each(lambda op: op.gradient is not None)
def test_gradient_against_finite_differences(op: Op) -> None:
    rng = np.random.default_rng(5)
    for sample in samples(op):
        attrs = site_of(op, sample).attrs
        (y,) = op.reference(sample.inputs, attrs).values()
        dy = rng.normal(size=y.shape) if op.name != "cross_entropy" else np.ones(1)
        grad, grad_inputs, grad_attrs = gradient_call(op, sample, dy)
        found = grad.reference(grad_inputs, grad_attrs)
        for s in differentiable(op, sample):
            way = rng.normal(size=sample.inputs[s].shape)
            h = 1e-6

            def loss(step: float, s: str = s, way: np.ndarray = way, dy: np.ndarray = dy,
                     sample: Sample = sample, attrs: dict[str, Any] = attrs) -> float:
                (moved,) = op.reference({**sample.inputs, s: sample.inputs[s] + step * way}, attrs).values()
                return float((dy * moved).sum())

            slope = (loss(h) - loss(-h)) / (2 * h)
            assert slope == pytest.approx(float((found[f"d_{s}"] * way).sum()), rel=1e-6, abs=1e-6), (op.name, s)


# -- kernels ---------------------------------------------------------------------------------------------
@each(lambda op: op.own_update is None)
def test_kernel_for_every_setting(op: Op, library: ct.CDLL) -> None:
    """Against the reference, with exact scratch, exact count of multiply-adds, and nothing written beside."""
    for sample in samples(op):
        site = site_of(op, sample)
        expected = op.reference(sample.inputs, site.attrs)
        for settings in settings_of(op, sample):
            at = site_of(op, sample, settings)
            one, two = run(library, op, sample, settings), run(library, op, sample, settings, fill=0xC3)
            where = f"{op.name} {settings} {sample.wants} {sample.parts} {sample.attrs}"
            assert one.intact and two.intact, where
            assert one.macs == op.macs(at), where
            assert max(one.scratch_written, two.scratch_written) == op.scratch(at), where
            for slot, found in one.outputs.items():
                want = trained_part(sample, slot.removeprefix("d_"), expected[slot])
                np.testing.assert_allclose(found, want, rtol=0, atol=TOLERANCE * max(1.0, np.abs(want).max()),
                                           err_msg=f"{where} {slot}")
                np.testing.assert_array_equal(found, two.outputs[slot], f"{where} {slot} depends on what scratch held")


@each()
def test_in_place_is_out_of_place(op: Op, library: ct.CDLL) -> None:
    for sample in samples(op):
        for out, into in op.may_alias(site_of(op, sample)).items():
            if into not in sample.inputs or (out.startswith("d_") and out not in sample.wants):
                continue
            for settings in settings_of(op, sample):
                apart = run(library, op, sample, settings)
                placed = run(library, op, sample, settings, alias={out: into})
                assert placed.intact
                for slot, found in placed.outputs.items():
                    np.testing.assert_array_equal(found, apart.outputs[slot], f"{op.name} {slot} {settings}")


@each(lambda op: any(s.kind in ("vector", "matrix") for s in op.outputs))
@pytest.mark.parametrize("update", [Update(), Update(momentum=0.9, velocity=True)], ids=["sgd", "momentum"])
def test_fused_update_is_gradient_then_sgd(op: Op, update: Update, library: ct.CDLL) -> None:
    sinks = {s.name for s in op.outputs if s.kind in ("vector", "matrix")}
    for sample in samples(op):
        settings = list(settings_of(op, sample))
        for chosen in (settings[0], settings[-1]):
            apart, fused = run(library, op, sample, chosen), run(library, op, sample, chosen, update)
            for slot, found in fused.outputs.items():
                np.testing.assert_array_equal(found, apart.outputs[slot], f"{op.name} {slot} read updated weights")
            for slot in sinks & set(sample.wants):
                name = slot.removeprefix("d_")
                before = trained_part(sample, name, sample.inputs[name]) if name in sample.inputs else np.ones(
                    apart.outputs[slot].shape)
                p, v = sgd(library, before, apart.outputs[slot], update)
                np.testing.assert_array_equal(fused.updated[name], p, f"{op.name} {name}")
                if update.velocity:
                    np.testing.assert_array_equal(fused.velocity[name], v, f"{op.name} {name} velocity")


def sgd(library: ct.CDLL, p: np.ndarray, g: np.ndarray, update: Update) -> tuple[np.ndarray, np.ndarray]:
    """The sgd operation on its own: parameter and velocity after it (velocities start at 0.25)."""
    args = structures()["vt_sgd_args"]()
    p, g, v = (np.ascontiguousarray(a, np.float32).copy() for a in (p, g, np.full(g.shape, 0.25)))
    args.p = Sink(None, p.ctypes.data, v.ctypes.data if update.velocity else None)
    args.g, args.n, args.c, args.ld = In(g.ctypes.data, g.size, 1), 1, g.size, g.size
    library.vt_sgd(ct.byref(args), ct.byref(Step(update.lr, update.momentum, None)))
    return p, v


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torch_sgd(momentum: float, library: ct.CDLL) -> None:
    rng = np.random.default_rng(0)
    start, g = rng.normal(size=37), rng.normal(size=37)
    p, v = sgd(library, start, g, Update(lr=0.1, momentum=momentum, velocity=bool(momentum)))
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=momentum)
    parameter.grad = torch.from_numpy(g)
    if momentum:
        optimiser.state[parameter]["momentum_buffer"] = torch.full((37,), 0.25, dtype=torch.float64)
    optimiser.step()
    np.testing.assert_allclose(p, parameter.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(v, momentum * 0.25 + g if momentum else np.full(37, 0.25), atol=1e-6)


@each(lambda op: "rows" in op.schedule)
def test_panel_width_never_changes_a_bit(op: Op, library: ct.CDLL) -> None:
    """The order of every sum is that of the program, not of the token panels it is taken in."""
    for sample in samples(op):
        whole = run(library, op, sample, {"rows": 16})
        for rows in (1, 2, 4, 8):
            for slot, found in run(library, op, sample, {"rows": rows}).outputs.items():
                np.testing.assert_array_equal(found, whole.outputs[slot], f"{op.name} {slot} rows={rows}")


def builds() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Compilers and options whose kernels have to agree bit for bit with zig -O3 for this CPU."""
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "zig-O0": ((), ("-O0", "-fno-sanitize=undefined")), "zig-O3-baseline": ((), ("-O3", "-mcpu=baseline"))}
    for compiler in ("gcc", "clang"):
        if path := shutil.which(compiler):
            found[f"{compiler}-O3"] = ((path,), ("-O3", "-march=native"))
    return found


@pytest.mark.parametrize("name", builds())
def test_every_build_gives_the_same_bits(name: str, library: ct.CDLL, tmp_path: Any) -> None:
    compiler, options = builds()[name]
    other = build(tmp_path, *options, **({"compiler": compiler} if compiler else {}))
    for op in REGISTRY.values():
        for sample in samples(op)[::2]:
            if op.own_update:
                continue
            here, there = run(library, op, sample), run(other, op, sample)
            for slot, found in here.outputs.items():
                np.testing.assert_array_equal(found, there.outputs[slot], f"{op.name} {slot} {name}")
