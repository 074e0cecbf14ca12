"""Parameters in pieces are one parameter to whoever uses the compiled step: table, bytes, values, verdict, report."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compilation.capture import InputSpec
from compilation.errors import PlanError, VerificationError
from compilation.passes.training import Selection
from compilation.pieces import pieces, trained_parts
from compilation.pipeline import Compiled, Compiler
from compilation.program_file import from_json
from compilation.verify import verify
from runtime.codegen import generate
from runtime.codegen.generate import trained_entries
from runtime.codegen.layout import lay_out, weights_image
from runtime.simulator import Simulator
from runtime.validate import compare, require_fit
from tests.compilation.in_c import trains_like_torch
from tests.compilation.test_leaves import WIDTH, Classifier, Gated, inputs, vit

QKV, BIAS = "blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.bias"
PLANS: dict[str, dict[str, Selection]] = {
    "all": {QKV: "all", BIAS: "all"}, "columns": {QKV: {"cols": [0, 7, 23]}, BIAS: "all", "head.bias": "all"},
    "rows everywhere": {QKV: {"rows": [1, 30, 31, 70]}, "head.bias": "all"},
    "one piece": {QKV: {"rows": [26, 40]}, BIAS: "all"},
    "a whole piece and some": {QKV: {"rows": [*range(24, 48), 71]}}, "the first alone": {QKV: {"rows": [*range(24)]}},
    "bias": {BIAS: "all"}}


def compiled(plan: dict[str, Selection], momentum: float = 0.0) -> Compiled:
    model = vit()
    return Compiler(model, inputs(model)[0]).compile(plan, momentum=momentum)


def stored(value: np.ndarray, selection: Selection) -> tuple[np.ndarray, str]:
    """What is trained of a parameter, as a matrix, and along which axis it is a part."""
    whole = np.atleast_2d(value)
    if selection == "all":
        return whole, ""
    (axis, index), = selection.items()  # type: ignore[union-attr]
    return np.take(whole, index, int(axis == "cols")), axis


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", PLANS)
def test_the_trained_block_is_that_of_the_parameters(name: str, momentum: float) -> None:
    """A row of the table for each parameter, cut or not, and its trained rows or columns as they are in it; so they are
    written, from pieces or from whole parameters; and the Program goes through a file."""
    made = compiled(PLANS[name], momentum)
    parameters = {n: p.detach().numpy() for n, p in vit().named_parameters()}
    layout = lay_out(made.program)
    table = {e.name: e for e in trained_entries(made.program, layout)}
    image = weights_image(made.program, layout, made.values)
    assert table.keys() == PLANS[name].keys()
    size = 0
    for n, selection in PLANS[name].items():
        want, axis = stored(parameters[n], selection)
        entry, begin = table[n], layout.initial_offset + 4 * table[n].offset
        assert (entry.count, entry.rows, entry.cols, entry.axis) == (want.size, *want.shape, axis)
        assert layout.tables.get(entry.index) == (list(*selection.values()) if isinstance(selection, dict) else None)
        assert image[begin:begin + 4 * entry.count] == np.ascontiguousarray(want).tobytes()
        size += 4 * want.size
    assert (layout.sizes["trained"], layout.sizes["state"]) == (size, size if momentum else 0)
    assert from_json(made.program.to_json()).digest() == made.program.digest()
    scaled = {"image.scale": made.values["image.scale"], "image.shift": made.values["image.shift"]}
    indices = {n: v for n, v in made.values.items() if v.dtype != np.float32}
    assert weights_image(made.program, layout, {**parameters, **scaled, **indices}) == image


def test_it_is_cut_where_it_should_be() -> None:
    for name, plan in PLANS.items():
        assert {t.first for t in pieces(compiled(plan).program)[QKV]} == {0, 24, 48}, name


@pytest.mark.parametrize("name", PLANS)
def test_verdicts_speak_of_the_parameter(name: str) -> None:
    program = compiled(PLANS[name]).program
    start = {n: p.detach().numpy() for n, p in vit().named_parameters() if n in PLANS[name]}
    rng = np.random.default_rng(0)
    final = {n: v + rng.normal(size=v.shape) for n, v in start.items()}
    one = np.ones((8, 3))
    trace: Any = SimpleNamespace(final64=final, final32=final, init=start, witness_distances=dict.fromkeys(start, one),
                                 losses64=np.ones(1), lrs=np.ones(1), metadata={})
    require_fit(program, lay_out(program).trained, trace)
    made = {part.name: part.of(final[part.parameter]).astype(np.float32) for part in trained_parts(program)}
    checks = compare(program, made, trace)
    assert {part.parameter for part in trained_parts(program)} == set(PLANS[name])
    assert len(checks) == len(PLANS[name]) and all(c.error.largest < 1e-6 and c.moved > 0.1 for c in checks)


@pytest.mark.parametrize("plan", [None, {"layers.0.layers.0.weight": {"cols": [0, 5]}, "layers.2.layers.0.bias": "all"},
                                  {"layers.0.layers.0.weight": {"rows": [3, 11, 12, 23]}, "head.weight": "all"}],
                         ids=["all", "columns", "rows"])
def test_a_packed_layer_trains_in_c(plan: dict[str, Selection] | None) -> None:
    """Its halves are made apart; everything that is compared goes by the parameter's name."""
    made = trains_like_torch(Classifier(lambda: Gated(True)), InputSpec((6, WIDTH)), plan)
    assert len(pieces(made.program)["layers.0.layers.0.weight"]) >= 2
    assert {op for c in made.program.calls for op in made.program.chain(c).split()} >= {"silu", "mul", "linear"}


def test_the_simulator_reads_and_writes_whole_parameters(tmp_path: Path) -> None:
    model = Classifier(lambda: Gated(True))
    plan: dict[str, Selection] = {"layers.0.layers.0.weight": {"rows": [3, 11, 12, 23]}, "layers.0.layers.0.bias": "all"}
    made = Compiler(model, InputSpec((6, WIDTH))).compile(plan)
    generate(made.program, made.values, tmp_path / "c")
    whole = {n: torch.randn_like(p).numpy() for n, p in model.named_parameters() if n in plan}
    with Simulator(tmp_path / "c", made.program) as simulator:
        simulator.load_trained(whole)
        found = simulator.trained()
    weight, bias = whole.values()
    np.testing.assert_array_equal(found["layers.0.layers.0.weight.trained"], weight[[3, 11, 12, 23]])
    np.testing.assert_array_equal(found["layers.0.layers.0.bias"].ravel(), bias)
    table = (tmp_path / "c" / "vit_train.c").read_text()
    assert table.count('"layers.0.layers.0.weight"') == table.count('"layers.0.layers.0.bias"') == 1


def test_wrong_selections_are_refused_by_the_parameter_s_name() -> None:
    for selection, text in (({"rows": [72]}, rf"{QKV}: rows must be .* within 0..71"), ({"cols": [24]}, "within 0..23"),
                            ({"rows": [5, 3]}, "ascending")):
        with pytest.raises(PlanError, match=text):
            compiled({QKV: selection})  # type: ignore[dict-item]


def test_pieces_that_do_not_fit_together_are_refused() -> None:
    program = compiled({QKV: "all"}).program
    part = trained_parts(program)[0]
    assert len(part.tensors) == 3 and astuple(part)[3:6] == ((72, 24), (72, 24), None)
    overlapping = program.copy()
    overlapping.put(part.tensors[1].name, first=23)
    with pytest.raises(VerificationError, match="overlap"):
        verify(overlapping)
    apart = program.copy()
    moved = apart.tensors.pop(part.tensors[1].name)
    apart.tensors = {**apart.tensors, "another": replace(moved, name="another", source="other"), moved.name: moved}
    with pytest.raises(VerificationError, match="does not stand next to"):
        verify(apart)
