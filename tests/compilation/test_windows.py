"""Leaves on windows: tiled along every index that may be tiled is the same as whole, whatever the layout."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from compilation.ops import REGISTRY, Op, Sample
from tests.compilation.kernel_library import In, Memory, Out, Sink, Step, build, matrix, site_of, structures, trained_part
from tests.compilation.windows import Home, Leaf, layouts, tilings, whole_site

BLOCK = 256                 # VT_BLOCK: a sum is added up in blocks of so many terms
TOLERANCE = 3e-6            # float32 against float64, relative to the largest value
CUT = 1e-5                  # the same sum cut elsewhere


def samples(op: Op) -> list[Sample]:
    return list(op.samples(np.random.default_rng(7)))


def leaves(choose: Callable[[Op], bool] = lambda op: True) -> pytest.MarkDecorator:
    chosen = [op for op in REGISTRY.values() if op.leaf and op.own_update is None and choose(op)]
    return pytest.mark.parametrize("op", chosen, ids=lambda op: op.name)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ct.CDLL:
    return build(tmp_path_factory.mktemp("leaves"), "-O3", "-march=native")


@leaves()
def test_line_declares_what_the_kernel_takes(op: Op) -> None:
    assert [*op.line.axes] == [s.name for s in (*op.inputs, *op.outputs)]
    assert all(len(op.axes(s.name)) == 2 for s in op.slots.values() if s.kind in ("tile", "matrix"))
    named = {*op.adds, *op.layout, *op.linear, *op.shift_free, *(s for slots in op.carried.values() for s in slots)}
    assert named <= op.slots.keys()
    assert {*op.limit, *op.carried, *op.sized} <= {n for axes in op.line.axes.values() for a in axes for n in a.indices}


@leaves()
def test_windows_that_are_everything(op: Op, library: ct.CDLL) -> None:
    """Within larger buffers, in every layout: against the reference, multiply-adds counted, nothing written beside."""
    rng = np.random.default_rng(11)
    for sample in samples(op):
        site = whole_site(op, sample)
        expected = op.reference(sample.inputs, site_of(op, sample).attrs)
        for _ in range(3):
            leaf = Leaf(library, op, sample, layouts(op, rng))
            made = leaf.run({})
            where = f"{op.name} {sample.wants} {sample.parts} {sample.attrs} {leaf.layouts}"
            assert made.intact, where
            assert made.macs == op.macs(site), where
            for slot, found in made.outputs.items():
                want = trained_part(sample, slot.removeprefix("d_"), expected[slot])
                np.testing.assert_allclose(found, want.reshape(found.shape), rtol=0,
                                           atol=TOLERANCE * max(1.0, np.abs(want).max()), err_msg=f"{where} {slot}")


@leaves()
def test_tiled_is_whole(op: Op, library: ct.CDLL) -> None:
    """To the bit where a tile of the index is a tile of the output; where it is summed, as close as rounding allows."""
    rng = np.random.default_rng(13)
    for sample in samples(op):
        for index, step in tilings(op, sample, rng):
            leaf = Leaf(library, op, sample, layouts(op, rng))
            whole, tiled = leaf.run({}), leaf.run({index: step})
            where = f"{op.name} {index} by {step} {sample.wants} {sample.parts} {sample.attrs} {leaf.layouts}"
            assert tiled.intact, where
            for slot, found in tiled.outputs.items():
                want = whole.outputs[slot]
                if index in op.summed(slot) or index in op.carried:
                    np.testing.assert_allclose(found, want, rtol=0, atol=CUT * max(1.0, np.abs(want).max()),
                                               err_msg=f"{where} {slot}")
                else:
                    np.testing.assert_array_equal(found, want, f"{where} {slot}")


@leaves(lambda op: bool(op.inplace) or type(op).may_alias is not Op.may_alias)
def test_tiles_in_place(op: Op, library: ct.CDLL) -> None:
    """An output that takes over an input's storage, tile by tile, along the indices of which both have a tile."""
    rng = np.random.default_rng(17)
    for sample in samples(op):
        for out, into in op.may_alias(site_of(op, sample)).items():
            if into not in sample.inputs or (out.startswith("d_") and out not in sample.wants):
                continue
            for index, step in tilings(op, sample, rng):
                if op.axes(out) != op.axes(into) or index not in op.free(out):
                    continue
                chosen = layouts(op, rng)
                chosen[out] = chosen[into] = op.layout.get(out) or op.layout.get(into) or chosen[out]
                apart = Leaf(library, op, sample, chosen).run({})
                placed = Leaf(library, op, sample, chosen, {out: into}).run({index: step})
                where = f"{op.name} {index} by {step} {sample.wants} {chosen}"
                assert placed.intact, where
                for slot, found in placed.outputs.items():
                    if index not in op.summed(slot):
                        np.testing.assert_array_equal(found, apart.outputs[slot], f"{where} {slot}")


@leaves(lambda op: op.joint and len(op.adds) > 1)
def test_what_is_made_jointly_adds_up_in_one_place(op: Op, library: ct.CDLL) -> None:
    rng = np.random.default_rng(23)
    pairs = 0
    for sample in samples(op):
        leaf = Leaf(library, op, sample, layouts(op, rng))
        apart = leaf.run({}).outputs
        for a, b in combinations([s for s in op.adds if s in apart and s in sample.wants], 2):
            if op.axes(a)[0] == op.axes(b)[0] and apart[a].shape == apart[b].shape:
                for steps in ({}, {"n": 3}, {"m": 4}):
                    summed = Leaf(library, op, sample, leaf.layouts, {b: a}).run(steps)
                    assert summed.intact
                    np.testing.assert_allclose(summed.outputs[a], apart[a] + apart[b], rtol=0,
                                               atol=CUT * max(np.abs(apart[s]).max() for s in (a, b)),
                                               err_msg=f"{a} {b} {sample.wants} {steps}")
                pairs += 1
    assert pairs


def random(**shapes: tuple[int, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(19)
    return {s: rng.normal(size=shape) for s, shape in shapes.items()}


@pytest.mark.parametrize(("name", "sample", "index", "step"), [
    ("linear", Sample(random(x=(5, 700), w=(9, 700))), "c", 2 * BLOCK),
    ("linear_grad", Sample(random(w=(700, 9), dy=(5, 700)), wants=("d_x",)), "o", 2 * BLOCK),
    ("linear_grad", Sample(random(x=(700, 9), w=(6, 9), dy=(700, 6)), wants=("d_w",)), "n", BLOCK),
], ids=["y", "d_x", "d_w"])
def test_sums_cut_where_they_are_added_up_keep_their_bits(name: str, sample: Sample, index: str, step: int,
                                                          library: ct.CDLL) -> None:
    op = REGISTRY[name]
    leaf = Leaf(library, op, sample, layouts(op, np.random.default_rng(0)))
    whole, tiled = leaf.run({}), leaf.run({index: step})
    assert tiled.calls > 1
    for slot, found in tiled.outputs.items():
        np.testing.assert_array_equal(found, whole.outputs[slot])


@pytest.mark.parametrize("layout", ["rows", "panel", "spread"])
def test_sgd_on_windows_of_rows(layout: str, library: ct.CDLL) -> None:
    p, g = (v.astype(np.float32) for v in random(p=(9, 21), g=(9, 21)).values())
    home, expected = Home(g.shape, layout, np.float32(np.nan)), p - np.float32(0.05) * g
    home.array[...] = g
    for t0, n in ((0, 4), (4, 5)):
        args = structures()["vt_sgd_args"]()
        args.p, args.g, args.n, args.c = Sink(None, p[t0:].ctypes.data, None, 0), home.window(In, t0, 0), n, 21
        args.ld = 21
        library.vt_sgd(ct.byref(args), ct.byref(Step(0.05, 0.0, None)))
    np.testing.assert_allclose(p, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["rows", "panel", "spread"])
def test_fill_clears_a_window(layout: str, library: ct.CDLL) -> None:
    home = Home((9, 21), layout, np.float32(3.0))
    home.array[...] = 3.0
    args = structures()["vt_fill_zero_args"]()
    args.y, args.n, args.c = home.window(Out, 2, 5), 4, 11
    library.vt_fill_zero(ct.byref(args), ct.byref(Step(0.05, 0.0, None)))
    expected = np.full((9, 21), 3.0)
    expected[2:6, 5:16] = 0.0
    np.testing.assert_array_equal(home.array, expected)
    assert home.intact()


@pytest.mark.parametrize("sample", samples(REGISTRY["apply"]), ids=["whole", "columns", "rows"])
def test_apply_takes_the_trained_part_of_a_window(sample: Sample, library: ct.CDLL) -> None:
    memory, (axis, index) = Memory(), sample.parts.get("w", ("rows", list(range(7))))
    args = structures()["vt_apply_weight_args"]()
    args.w, w = matrix(memory, sample, "w", True)
    g = np.zeros((7, 9))
    g[(slice(None), index) if axis == "cols" else (index,)] = sample.inputs["d_w"]
    expected = sample.inputs["w"] - 0.05 * g
    for o, c in ((slice(0, 3), slice(0, 5)), (slice(3, 7), slice(0, 5)), (slice(0, 7), slice(5, 9))):
        rows = [i for i in range(*o.indices(7)) if axis == "cols" or i in index]
        cols = [i for i in range(*c.indices(9)) if axis == "rows" or i in index]
        part = memory.array(g[np.ix_(rows, cols)])
        args.w_sink, args.d_w = Sink(None, w.ctypes.data, None, 0), In(part.ctypes.data, len(cols), 1)
        args.o, args.c, args.o_at, args.c_at = o.stop - o.start, c.stop - c.start, o.start, c.start
        library.vt_apply_weight(ct.byref(args), ct.byref(Step(0.05, 0.0, None)))
    np.testing.assert_allclose(w, trained_part(sample, "w", expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sample", [s for s in samples(REGISTRY["linear_grad"]) if "d_w" in s.wants],
                         ids=lambda s: " ".join([str(s.inputs["dy"].shape), *s.inputs, *(a for a, _ in s.parts.values())]))
def test_weight_gradient_summed_in_a_buffer_of_the_window(sample: Sample, library: ct.CDLL) -> None:
    """The buffer has the window's trained rows and columns alone, and takes the tiles of tokens one after another."""
    memory, (n, o), c = Memory(), sample.inputs["dy"].shape, sample.inputs["w"].shape[1]
    axis, index = sample.parts.get("w", ("rows", list(range(o))))
    args = structures()["vt_linear_grad_args"]()
    args.w, _ = matrix(memory, sample, "w", True)
    given = {s: memory.array(sample.inputs[s]) for s in ("x", "x_part", "dy") if s in sample.inputs}
    whole = sample.inputs["dy"].T @ sample.inputs["x"] if "x" in given else np.zeros((o, c))
    if "x" not in given:
        whole[:, index] = sample.inputs["dy"].T @ sample.inputs["x_part"]
    for o0, o1, c0, c1 in ((0, o // 3, 0, c // 2), (o // 3, o, 0, c // 2), (0, o, c // 2, c)):
        rows = [i for i in range(o0, o1) if axis == "cols" or i in index]
        cols = [i for i in range(c0, c1) if axis == "rows" or i in index]
        made = memory.output((len(rows), len(cols)))
        for t0 in range(0, n, 4):
            args.dy = In(given["dy"][t0:, o0:].ctypes.data, o, 1)
            if "x" in given:
                args.x = In(given["x"][t0:, c0:].ctypes.data, c, 1)
            else:
                args.x_part = In(given["x_part"][t0:].ctypes.data, len(index), 1)
            args.d_w = Sink(made.ctypes.data, None, None, int(t0 > 0), 1)
            args.n, args.o, args.c, args.o_at, args.c_at, args.k = min(4, n - t0), o1 - o0, c1 - c0, o0, c0, len(index)
            library.vt_linear_grad(ct.byref(args), ct.byref(Step(0.05, 0.0, None)))
        np.testing.assert_allclose(made, whole[np.ix_(rows, cols)], rtol=0, atol=TOLERANCE * np.abs(whole).max())
    assert memory.intact()
