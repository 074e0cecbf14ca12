"""The simulator: right numbers, measured memory, and every misdeed caught."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from compilation.program import Call, Program
from runtime.codegen import Generated
from runtime.errors import SimulationError
from runtime.simulator import Simulator
from runtime.toolchain import Build, available_builds, build_firmware
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
    program.put_shape("sum", (12,))             # 8 bytes that nobody writes
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


    for rate in (-0.1, float("nan"), float("inf"), 1e39):
        with pytest.raises(SimulationError, match=r"learning rate .* is out of range"):
            toy_simulator.train_step(image, 0, rate)


def kept(simulator: Simulator) -> dict[str, bytes]:
    """What outlives a step."""
    return {block: simulator._view(block).tobytes() for block in ("trained", "state")}


@pytest.mark.parametrize(("label", "rate", "code"), [
    (-1, 0.1, -1), (toy.O, 0.1, -1), (2**31 - 1, 0.1, -1), (0, np.nan, -2), (0, np.inf, -2), (0, -np.inf, -2), (0, -0.1, -2),
    (0, -1e-45, -2), (-1, np.nan, -1)])
def test_the_c_code_itself_refuses_bad_arguments_and_changes_nothing(toy_simulator: Simulator, label: int, rate: float,
                                                                     code: int) -> None:
    image = data(1)[0][0]
    toy_simulator.reset()
    toy_simulator.train_step(image, 1, 0.1)
    before = kept(toy_simulator)
    loss, _ = toy_simulator._run(False, image, label, rate, 0x7F)
    assert loss == code
    assert kept(toy_simulator) == before
    assert set(toy_simulator._view("output").tobytes()) == {0x7F}, "loss or logits were written"
    assert toy_simulator._view("arena")[:toy.K].tobytes() == image.tobytes(), "the image was overwritten"


@pytest.mark.parametrize("rate", [0.0, -0.0, 1e-45, 1.0])
def test_every_legal_learning_rate_is_taken(toy_simulator: Simulator, rate: float) -> None:
    toy_simulator.reset()
    before = toy_simulator.trained()["fc.bias"]
    assert toy_simulator.train_step(data(1)[0][0], 0, rate) > 0
    assert np.isfinite(toy_simulator.trained()["fc.bias"]).all()
    assert (toy_simulator.trained()["fc.bias"] == before).all() == (rate < 1e-30)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_told_and_stay(toy_simulator: Simulator, value: float) -> None:
    image = data(1)[0][0]
    toy_simulator.load_trained({**toy.values(), "fc.bias": np.array([0, 0, value, 0], np.float32)})
    before = kept(toy_simulator)
    assert toy_simulator._run(False, image, 0, 0.1, 0xFF)[0] == -4
    assert toy_simulator._run(True, image, 0, 0.1, 0xFF)[1] == -4
    assert kept(toy_simulator) == before
    with pytest.raises(SimulationError, match="logits are not finite"):
        toy_simulator.predict(image)
    toy_simulator.reset()
    assert toy_simulator.predict(image) >= 0


def test_constants_at_a_wrong_address_or_damaged_are_refused(write_toy: Write) -> None:
    """The constants stand in memory of ours, as in external flash; what happens to them there is always told."""
    program = toy.program("cols", 0.5)
    folder = write_toy(program).folder
    whole = np.fromfile(folder / "weights.bin", np.uint8)
    memory = np.zeros(whole.size + 64, np.uint8)
    start = -memory.ctypes.data % 16
    flash = memory[start:start + whole.size]
    flash[:] = whole
    image = data(1)[0][0]
    with Simulator(folder, program, Build(defines=(f"VT_WEIGHTS_ADDRESS={flash.ctypes.data:#x}ul",))) as simulator:
        loss = simulator.train_step(image, 0, 0.1)
        after = kept(simulator)
        memory[start + 16:start + 16 + whole.size] = whole      # everything 16 bytes further on
        memory[start:start + 16] = 0xFF
        check_refused(simulator, image, after, every_call=True)
        for bit in range(0, 8 * whole.size, 5):                 # every byte, and each of its bits in turn
            flash[:] = whole
            flash[bit // 8] ^= 1 << bit % 8
            check_refused(simulator, image, after, every_call=bit // 8 >= whole.size - 8)
        flash[:] = whole
        flash[whole.size // 2:] = 0xFF                          # flashing was cut short
        check_refused(simulator, image, after, every_call=True)
        flash[:] = whole
        simulator.reset()
        assert simulator.train_step(image, 0, 0.1) == loss


def check_refused(simulator: Simulator, image: np.ndarray, before: dict[str, bytes], every_call: bool) -> None:
    """vt_init refuses and changes nothing; so does every step where the end of the constants is not in its place."""
    assert simulator.library.vt_init() == -3
    if every_call:
        assert simulator._run(False, image, 0, 0.1, 0xFF)[0] == -3
        assert simulator._run(True, image, 0, 0.1, 0xFF)[1] == -3
    assert kept(simulator) == before


@pytest.mark.parametrize(("damage", "text"), [
    ("cut", r"weights\.bin is truncated: 60 bytes of 120"), ("empty", r"weights\.bin is truncated: 0 bytes of 120"),
    ("longer", r"weights\.bin is damaged: 121 bytes of 120"),
    ("edited", r"weights\.bin is damaged: its sha256 is [0-9a-f]{12}"),
    ("gone", r"weights\.bin is missing"), ("no header", r"vit_train\.h is missing"), ("no text", "cannot be read")])
def test_a_damaged_folder_is_told_before_anything_is_built(write_toy: Write, damage: str, text: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    program = toy.program()
    folder = write_toy(program).folder
    weights = folder / "weights.bin"
    whole = weights.read_bytes()
    if damage == "gone":
        weights.unlink()
    elif damage == "no header":
        (folder / "vit_train.h").unlink()
    elif damage == "no text":
        (folder / "vit_train.h").write_bytes(b"\xff\xfe\x00")
    else:
        weights.write_bytes({"cut": whole[:60], "empty": b"", "longer": whole + b"\0", "edited": b"\1" + whole[1:]}[damage])
    monkeypatch.setattr("runtime.simulator.simulator.build_shared", lambda *_: pytest.fail("something was built"))
    with pytest.raises(SimulationError, match=text):
        Simulator(folder, program)


@pytest.mark.parametrize(("fault", "what"), [
    (1, "wrote .* bytes past the end of the output block"),
    (2, "logits are not finite.*memory that it never wrote|memory that was never written"),
    (3, "logits are not finite"),
    (4, "logits are not finite.*memory that it never wrote|memory that was never written"),
    (5, "logits are not finite.*memory that it never wrote|memory that was never written"),
    (6, "wrote .* bytes before the start of the output block"),
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
