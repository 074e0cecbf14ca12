"""The C folder: its text, its values, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compilation.program import Call, Program, Role, Tensor
from runtime.codegen import Generated
from runtime.codegen.emit import c_float
from runtime.errors import CodegenError
from tests.runtime import toy

Write = Callable[[Program], Generated]


def test_generated_text_is_golden(toy_folder: Path, golden: Callable[[str, str], None]) -> None:
    for name in ("vit_train.h", "vit_train.c", "weights.S", "Makefile", "CMakeLists.txt"):
        golden(f"toy_c/{name}.txt", (toy_folder / name).read_text())


def test_only_what_is_needed_is_copied(toy_folder: Path) -> None:
    assert sorted(p.name for p in toy_folder.iterdir()) == [
        "CMakeLists.txt", "Makefile", "toy.c", "toy.h", "vit_train.c", "vit_train.h", "vt_kernels.h", "weights.S",
        "weights.bin"]


@pytest.mark.parametrize("axis", ["cols", "rows", None])
def test_weights_file_holds_the_parts_and_the_initial_values(write_toy: Write, axis: str | None) -> None:
    program = toy.program(axis)
    generated = write_toy(program)
    words = np.fromfile(generated.folder / "weights.bin", "<f4")
    whole, bias = toy.values()["fc.weight"], toy.values()["fc.bias"]
    frozen, trained = toy.part(program, whole, rest=True).ravel(), toy.part(program, whole).ravel()
    start = generated.layout.initial_offset // 4
    np.testing.assert_array_equal(words[:frozen.size], frozen)
    np.testing.assert_array_equal(words[start:], np.concatenate([trained, bias]))
    assert generated.layout.initial_offset % 16 == 0


def test_figures_follow_from_the_program(write_toy: Write) -> None:
    program = toy.program("cols", momentum=0.5)
    generated = write_toy(program)
    trained, outputs = 4 * (8 + 4), 4 * 5
    assert program.arena_bytes == 52
    assert generated.ram_bytes == 52 + trained + trained + outputs + 4096
    assert generated.constant_bytes == 4 * 16 + trained + 2 * 6


@pytest.mark.parametrize("value", [0.0, 1.0, -1e-7, 3.4e38, 1 / 3, 1e10])
def test_float_literals_read_back(value: float) -> None:
    text = c_float(value)
    assert text.endswith("f") and ("." in text or "e" in text)
    assert np.float32(text[:-1]) == np.float32(value)


def refuse(program: Program, tmp_path: Path, *words: str, values: dict[str, np.ndarray] | None = None) -> None:
    with pytest.raises(CodegenError) as error:
        toy.write(program, tmp_path / "c", tmp_path / "kernels", values)
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "c").exists(), "something half-written was left behind"


def test_refuses_an_unplaced_tensor(tmp_path: Path) -> None:
    program = toy.program()
    program.put("d_logits", offset=None)
    refuse(program, tmp_path, "d_logits", "placement")


def test_refuses_an_unknown_operation_with_its_module(tmp_path: Path) -> None:
    program = toy.program()
    program.calls[0] = replace(program.calls[0], op="toy_unknown")
    refuse(program, tmp_path, "toy_unknown", "fc", "compilation/ops")


def test_refuses_a_missing_value(tmp_path: Path) -> None:
    refuse(toy.program(), tmp_path, "fc.bias", values={"fc.weight": toy.values()["fc.weight"]})


def test_refuses_a_wrong_shape(tmp_path: Path) -> None:
    refuse(toy.program(), tmp_path, "fc.bias", "(5,)", values={**toy.values(), "fc.bias": np.zeros(5)})


def test_refuses_nan_weights(tmp_path: Path) -> None:
    weight = toy.values()["fc.weight"]
    weight[0, 0] = np.nan
    refuse(toy.program(), tmp_path, "fc.weight", "NaN", values={**toy.values(), "fc.weight": weight})


def test_refuses_an_update_of_a_frozen_weight(tmp_path: Path) -> None:
    program = toy.program("cols")
    program.weights["fc.weight"] = replace(program.weights["fc.weight"], trained=None)
    refuse(program, tmp_path, "call 2", "fc.weight", "no trained part")


def test_tir_functions_are_emitted_once_and_called(write_toy: Write, tmp_path: Path) -> None:
    source = ("void halve(const float *in0, float *out0, const vt_step *step) "
              "{ (void)step; for (int i = 0; i < 4; i++) out0[i] = 0.5f * in0[i]; }")
    program = toy.program()
    program.add(Tensor("halved", (1, toy.O), "f32", Role.GRADIENT, offset=64))
    half = Call("tir:halve", {"0": "d_logits"}, {"0": "halved"}, {"symbol": "halve", "c_source": source})
    again = Call("tir:halve", {"0": "halved"}, {"0": "d_logits"}, {"symbol": "halve", "c_source": source})
    program.calls[2:2] = [half, again]
    generated = write_toy(program)
    assert (generated.folder / "vit_tir.c").read_text().count("out0[i] = 0.5f") == 1
    text = (generated.folder / "vit_train.c").read_text()
    assert "halve(ARENA(32), ARENA(64), step);" in text and "halve(ARENA(64), ARENA(32), step);" in text
    program.calls[3] = replace(again, attrs={"symbol": "halve", "c_source": source + " "})
    refuse(program, tmp_path, "halve", "two different")
