"""The C folder: its text, its values, and what is refused."""

from __future__ import annotations

import errno
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compilation.cost import memory
from compilation.program import Call, Program, Role, Tensor
from compilation.types import I32, U8, Type
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
        "CMakeLists.txt", "Makefile", "toy.c", "toy.h", "vit_train.c", "vit_train.h", "vt_augment.h", "vt_kernels.h",
        "vt_support.c", "weights.S", "weights.bin"]


@pytest.mark.parametrize("axis", ["cols", "rows", None])
def test_weights_file_holds_the_parts_and_the_initial_values(write_toy: Write, axis: str | None) -> None:
    program = toy.program(axis)
    generated = write_toy(program)
    words = np.fromfile(generated.folder / "weights.bin", "<f4")
    whole, bias = toy.values()["fc.weight"], toy.values()["fc.bias"]
    frozen, trained = toy.part(program, whole, rest=True).ravel(), toy.part(program, whole).ravel()
    start = generated.layout.initial_offset // 4
    np.testing.assert_array_equal(words[:frozen.size], frozen)
    np.testing.assert_array_equal(words[start:-2], np.concatenate([trained, bias]))
    data = (generated.folder / "weights.bin").read_bytes()
    assert data[-8:-4] == b"VTW1" and int.from_bytes(data[-4:], "little") == zlib.crc32(data[:-8])
    assert generated.layout.initial_offset % 16 == 0


def test_constants_of_any_element_are_stored_and_addressed(write_toy: Callable[..., Generated]) -> None:
    program = toy.program(None)
    for name, kind in (("pad", Type((3,), U8)), ("classes", Type((1,), I32))):
        program.add(Tensor(name, kind, Role.CONSTANT))
    at = program.calls[1]
    program.replace_call(at, replace(at, inputs={**at.inputs, "label": "classes"}))
    program.replace_call(program.calls[0], replace(program.calls[0], inputs={**program.calls[0].inputs, "image": "pad"}))
    generated = write_toy(program, parameters={**toy.values(), "pad": np.array([1, 2, 3]), "classes": np.array([4])})
    data = (generated.folder / "weights.bin").read_bytes()
    assert data[:3] == bytes([1, 2, 3]) and data[16:20] == (4).to_bytes(4, "little")
    text = (generated.folder / "vit_train.c").read_text()
    assert "WEIGHTS(0)" in text and "WEIGHTS(16)" in text


def test_figures_follow_from_the_program(write_toy: Write) -> None:
    program = toy.program("cols", momentum=0.5)
    generated = write_toy(program)
    trained, outputs = 4 * (8 + 4), 4 * 5
    assert program.arena_bytes == 52
    assert generated.ram_bytes == 52 + trained + trained + outputs + 4096
    assert generated.constant_bytes == 4 * 16 + trained + 8 + 2 * 6
    assert memory(program).flash == (generated.folder / "weights.bin").stat().st_size == generated.constant_bytes - 2 * 6


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


def test_generated_code_is_replaced_with_what_make_left_in_it(tmp_path: Path) -> None:
    for value in (0.5, 0.25):
        generated = toy.write(toy.program(momentum=value), tmp_path / "c", tmp_path / "kernels")
        (generated.folder / "toy.o").touch()
        (generated.folder / "libvit_train.a").touch()
    generated = toy.write(toy.program(momentum=0.75), tmp_path / "c", tmp_path / "kernels")
    assert "#define VT_MOMENTUM 0.75f" in (generated.folder / "vit_train.c").read_text()
    assert not (generated.folder / "toy.o").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "kernels"]


@pytest.mark.parametrize("what", ["a file", "a thesis", "a file beside the code", "a folder beside the code", "a dead link"])
def test_what_was_not_generated_is_never_replaced(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "c"
    if what == "a file":
        folder.write_text("mine")
    elif what == "a dead link":
        folder.symlink_to(tmp_path / "nowhere")
    elif what == "a thesis":
        folder.mkdir()
        (folder / "thesis.tex").write_text("mine")
    else:
        toy.write(toy.program(), folder, tmp_path / "kernels")
        if what == "a file beside the code":
            (folder / "main.c").write_text("mine")
        else:
            (folder / "toy.o").mkdir()      # the name of an object, but not one

    def state() -> list[tuple[str, bytes]]:
        return [(str(p), p.read_bytes() if p.is_file() else b"") for p in sorted(tmp_path.rglob("*"))]

    before = state()
    with pytest.raises(CodegenError, match=re.escape(str(folder)) + r" .*not replaced"):
        toy.write(toy.program(momentum=0.5), folder, tmp_path / "kernels")
    kernels = tmp_path / "kernels"
    assert [s for s in state() if not s[0].startswith(str(kernels))] == \
        [s for s in before if not s[0].startswith(str(kernels))]


def test_an_interrupted_generation_leaves_the_old_code_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                        ) -> None:
    folder = toy.write(toy.program(), tmp_path / "c", tmp_path / "kernels").folder
    before = (folder / "vit_train.c").read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_bytes", stop)
        toy.write(toy.program(momentum=0.5), folder, tmp_path / "kernels")
    with monkeypatch.context() as patch, pytest.raises(CodegenError, match="No space left"):
        patch.setattr(Path, "write_bytes", full_disk)
        toy.write(toy.program(momentum=0.5), folder, tmp_path / "kernels")
    assert (folder / "vit_train.c").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "kernels"]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_tir_functions_are_emitted_once_and_called(write_toy: Write, tmp_path: Path) -> None:
    source = ("void halve(const float *in0, float *out0, const vt_step *step) "
              "{ (void)step; for (int i = 0; i < 4; i++) out0[i] = 0.5f * in0[i]; }")
    program = toy.program()
    program.add(Tensor("halved", Type((1, toy.O)), Role.GRADIENT, offset=64))
    half = Call("tir:halve", {"0": "d_logits"}, {"0": "halved"}, {"symbol": "halve", "c_source": source})
    again = Call("tir:halve", {"0": "halved"}, {"0": "d_logits"}, {"symbol": "halve", "c_source": source})
    program.calls[2:2] = [half, again]
    generated = write_toy(program)
    assert (generated.folder / "vit_tir.c").read_text().count("out0[i] = 0.5f") == 1
    text = (generated.folder / "vit_train.c").read_text()
    assert "halve(ARENA(32), ARENA(64), step);" in text and "halve(ARENA(64), ARENA(32), step);" in text
    program.calls[3] = replace(again, attrs={"symbol": "halve", "c_source": source + " "})
    refuse(program, tmp_path, "halve", "two different")
