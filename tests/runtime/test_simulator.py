"""The simulator: right numbers, measured memory, and every misdeed caught."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from compilation.program import Call, Program
from runtime.codegen import Generated
from runtime.errors import SimulationError
from runtime.simulator import Simulator
from runtime.toolchain import available_builds, build_firmware
from tests.runtime import toy

Write = Callable[[Program], Generated]


def data(steps: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (steps, toy.K), dtype=np.uint8), rng.integers(0, toy.O, steps)


@pytest.mark.parametrize(("axis", "momentum"), [("cols", 0.0), ("rows", 0.5), (None, 0.5)])
def test_training_matches_numpy(write_toy: Write, axis: str | None, momentum: float) -> None:
    program = toy.program(axis, momentum)
    images, labels = data()
    losses, final = toy.reference(program, images, labels, 0.1, momentum)
    with Simulator(write_toy(program).folder, program) as simulator:
        got = [simulator.train_step(i, int(y), 0.1) for i, y in zip(images, labels, strict=True)]
        trained = simulator.trained()
    np.testing.assert_allclose(got, losses, rtol=2e-6)
    part = toy.part(program, final["fc.weight"])
    np.testing.assert_allclose(trained["fc.weight.trained"], part, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(trained["fc.bias"], final["fc.bias"], rtol=1e-5, atol=1e-6)


def test_measured_memory_is_the_planned_memory(toy_simulator: Simulator) -> None:
    images, labels = data(1)
    measured = toy_simulator.measure(images[0], int(labels[0]))
    program = toy_simulator.program
    assert measured.arena_bytes == program.arena_bytes == 52
    assert (measured.trained_bytes, measured.state_bytes, measured.output_bytes) == (48, 48, 20)
    assert measured.other_bytes == 0 and not measured.undefined
    assert measured.ram_bytes == 52 + 48 + 48 + 20 + 4096
    assert 0 < measured.stack_bytes <= 4096 and 0 < measured.host_stack_bytes <= 4096
    assert measured.macs == toy.O * toy.K + 8 and measured.predict_macs == toy.O * toy.K
    assert measured.flash_bytes > (toy_simulator.folder / "weights.bin").stat().st_size


def test_an_arena_larger_than_what_is_used_is_noticed(write_toy: Write) -> None:
    program = toy.program()
    program.put("sum", shape=(12,))             # 8 bytes that nobody writes
    with Simulator(write_toy(program).folder, program) as simulator:
        assert simulator.measure(data(1)[0][0]).arena_bytes == program.arena_bytes - 8


def test_predict_and_load(toy_simulator: Simulator) -> None:
    images, _ = data(1)
    values = {k: v + 1 for k, v in toy.values().items()}
    before = toy_simulator.trained()
    toy_simulator.load_trained(values)
    whole = toy.values()["fc.weight"]
    whole[:, [1, 4]] += 1
    expected = whole @ (0.01 * images[0].astype(np.float64)) + values["fc.bias"]
    assert toy_simulator.predict(images[0]) == int(np.argmax(expected))
    np.testing.assert_allclose(toy_simulator.logits, expected, rtol=1e-5)
    toy_simulator.reset()
    for name, value in toy_simulator.trained().items():
        np.testing.assert_array_equal(value, before[name])


def test_bad_calls_are_refused(toy_simulator: Simulator) -> None:
    image = data(1)[0][0]
    with pytest.raises(SimulationError, match=r"label 4 is out of range: legal are 0\.\.3"):
        toy_simulator.train_step(image, toy.O, 0.1)
    with pytest.raises(SimulationError, match="image is"):
        toy_simulator.train_step(image[:-1], 0, 0.1)
    with pytest.raises(SimulationError, match="image is float64"):
        toy_simulator.train_step(image.astype(np.float64), 0, 0.1)


def test_the_c_code_itself_refuses_a_label_out_of_range(toy_simulator: Simulator) -> None:
    before = toy_simulator.trained()
    for label in (-1, toy.O):
        loss, _ = toy_simulator._run(False, data(1)[0][0], label, 0.1, 0xFF)
        assert loss == -1.0
    for name, value in toy_simulator.trained().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(("fault", "what"), [
    (1, "wrote .* bytes past the end of the output block"),
    (2, "the loss is nan|memory that was never written"),
    (3, "the loss is nan"),
])
def test_misdeeds_are_caught(write_toy: Write, fault: int, what: str) -> None:
    program = toy.program(fault=fault)
    with Simulator(write_toy(program).folder, program) as simulator, pytest.raises(SimulationError, match=what):
        simulator.measure(data(1)[0][0])


def test_a_deep_stack_is_caught(write_toy: Write) -> None:
    program = toy.program()
    program.calls.insert(1, Call("toy_deep", {"image": "image"}, {}))
    with Simulator(write_toy(program).folder, program) as simulator:
        with pytest.raises(SimulationError, match=r"needs 12\d\d\d bytes of stack.*reserve is 4096.*vt_toy_deep"):
            simulator.measure(data(1)[0][0])
        assert 12000 < simulator.host_stack_bytes < 13000


def test_another_program_is_refused(write_toy: Write) -> None:
    with pytest.raises(SimulationError, match="generated from another Program"):
        Simulator(write_toy(toy.program("cols")).folder, toy.program("rows"))


def test_every_build_gives_the_same_bits(write_toy: Write) -> None:
    program = toy.program("cols", 0.5)
    folder = write_toy(program).folder
    images, labels = data()
    results = {}
    for name, build in available_builds().items():
        with Simulator(folder, program, build) as simulator:
            losses = [simulator.train_step(i, int(y), 0.1) for i, y in zip(images, labels, strict=True)]
            results[name] = (np.array(losses).tobytes(), simulator.trained()["fc.weight.trained"].tobytes())
    assert len(results) >= 3
    assert len(set(results.values())) == 1, f"builds differ: {list(results)}"


def test_firmware_without_a_kernel_names_the_symbol(write_toy: Write) -> None:
    folder = write_toy(toy.program()).folder
    source = folder / "vit_train.c"
    source.write_text(source.read_text() + "\nvoid vt_missing(void);\nvoid vt_extra(void);\n"
                                           "void vt_extra(void) { vt_missing(); }\n")
    assert build_firmware(folder).undefined == {"vt_missing"}
