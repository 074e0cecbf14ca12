"""Checkpoints: any segment is made again, cuts of several tensors, legal for every order, weighed as it is emitted."""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compilation.capture import InputSpec
from compilation.interpret import Interpreter
from compilation.passes.checkpoints import Order
from compilation.passes.splits import Splits
from compilation.passes.training import parameter_values
from compilation.pipeline import Compiler
from compilation.program import Program, Role
from compilation.scheduling import Planner, first
from runtime.codegen.generate import generate
from runtime.simulator import Simulator

ROWS = 5


class Wired(nn.Module):
    """A random network on a (rows, width) input. streams: how many values are carried along; each layer replaces one of
    them. Layers are chains of several calls, with or without a residual, and may share the weights of an earlier one."""

    def __init__(self, seed: int, depth: int, streams: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        width = draw.choice([4, 6])
        self.stems = nn.ModuleList(nn.Linear(width, width) for _ in range(streams))
        self.layers = nn.ModuleList()
        self.plan = []          # of each layer: the stream that it reads, the one that it replaces, how
        for _ in range(depth):
            kind = draw.choice(["linear", "wide", "norm", "gelu", "shared"])
            wide = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.ReLU(), nn.Linear(3 * width, width))
            layer = {"linear": nn.Linear(width, width), "norm": nn.LayerNorm(width), "gelu": nn.GELU()}.get(kind, wide)
            if kind == "shared" and len(self.layers):
                layer = self.layers[draw.randrange(len(self.layers))]
            self.layers.append(layer)
            self.plan.append((draw.randrange(streams), draw.randrange(streams), draw.choice(["add", "put", "both"])))
        self.head = nn.Linear(width, 3)
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [stem(x) for stem in self.stems]
        for layer, (source, target, how) in zip(self.layers, self.plan, strict=True):
            made = layer(values[source])
            values[target] = made if how == "put" else made + values[target]
            if how == "both":
                values[source] = values[source] + values[target]
        return self.head(sum(values[1:], values[0]).mean(1))


@cache
def compiler(seed: int, depth: int, streams: int) -> Compiler:
    model = Wired(seed, depth, streams).eval()
    return Compiler(model, InputSpec((ROWS, model.width)))


def planner(seed: int, depth: int = 7, streams: int = 1, trained: str = "all") -> Planner:
    made = compiler(seed, depth, streams)
    names = sorted(made.shapes)
    used = [n for n in names if n in made.forward.tensors]
    chosen = used if trained == "all" else [n for n in used if n.endswith("bias")]
    return made.planner(dict.fromkeys(chosen, "all"))


def outcome(made: Compiler, program: Program) -> dict[str, np.ndarray]:
    """The loss and the trained parameters after a step in float64."""
    machine = Interpreter(program, parameter_values(program, made.exported.parameters))
    image = np.random.default_rng(3).standard_normal(program.tensors[program.image].shape)
    loss = machine.step(image, 1, 0.1)
    return {"loss": np.array(loss)} | {n: machine.memory[n] for n, t in program.tensors.items() if t.role is Role.TRAINED}


def orders(plan: Planner, whole: int) -> list[Order]:
    """Every order of a structure: all counts of cuts, starts, strides, and segments from which on all is kept."""
    structure = plan.structure(whole)
    chain = structure.chain
    count = len(chain.segments)
    return [Order(slots, source, kept, stride) for kept in range(min(chain.frozen, count - 1), count)
            for slots in range(structure.max_slots(kept) + 1) for source in structure.sources() for stride in (1, 2)]


@pytest.mark.parametrize("trained", ["all", "biases"])
@pytest.mark.parametrize("seed", range(8))
def test_every_order_of_a_random_network_trains_the_same(seed: int, trained: str) -> None:
    """Each is verified as it is made (`Structure.emit`), and weighed without being made to the same figures."""
    streams = 1 + seed % 3
    made, plan = compiler(seed, 7, streams), planner(seed, 7, streams, trained)
    draw = random.Random(seed)
    for whole in {0, plan.chains}:
        every = orders(plan, whole)
        expected = None
        for order in draw.sample(every, min(len(every), 40)):
            schedule = plan.at(whole, order.slots, order.source, None, order.stride, order.kept)
            found = outcome(made, schedule.program)
            expected = expected or found
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[n], expected[n]) for n in found), order
            for arena in (None, 0, schedule.peak * 3 // 4):
                tuned = plan.at(whole, order.slots, order.source, arena, order.stride, order.kept)
                assert plan.structure(whole).weigh(order, arena) == (tuned.peak, tuned.macs, tuned.time), order


def test_values_carried_side_by_side_are_cut_together() -> None:
    """Two streams from the first layer to the last: no single tensor carries everything, and yet there are checkpoints."""
    plan = planner(7, 16, 2)
    chain = plan.structure(plan.chains).chain
    assert sum(len(s.start) == 2 for s in chain.segments) >= 3
    assert plan.smallest().peak < 0.8 * plan.unconstrained().peak


def by_definition(work: list[int], frozen: int, stride: int, i: int, j: int, slots: int, first: bool) -> int:
    """Forward work done again from cut j back to cut i, straight from the recurrence."""
    @cache
    def best(i: int, j: int, slots: int, first: bool) -> int:
        if j <= max(frozen, i + 1):
            return 0
        low = max(i, frozen)
        plain = [sum(work[i:min(k + stride, j) - 1]) for k in range(low, j, stride)]
        found = [sum(plain[:-1] if first else plain)]
        for k in range(max(i + 1, frozen), j):
            if slots and (k - frozen) % stride == 0:
                found.append((0 if first else sum(work[i:k])) + best(k, j, slots - 1, first) + best(i, k, slots, False))
        return min(found)

    return best(i, j, slots, first)


@pytest.mark.parametrize("seed", range(12))
def test_the_table_of_splits_holds_the_optimum(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randrange(2, 10)
    costs = [3, 5] if seed % 2 else [draw.randrange(20) for _ in range(count)]      # equal ones share their answers
    work = [costs[n % len(costs)] for n in range(count)]
    frozen, stride = draw.randrange(count), draw.choice([1, 2])
    table = Splits(tuple(work), frozen, stride)
    for source in {0, frozen}:
        for top in range(max(source, frozen) + 1, count + 1):
            for slots in range(count):
                for fresh in (True, False):
                    cost, _ = table.best(source, top, slots, fresh)
                    assert cost == by_definition(work, frozen, stride, source, top, slots, fresh)


def test_the_first_that_holds() -> None:
    assert all(first(end, lambda n, at=at: n >= at, start) == min(max(at, start), end)  # type: ignore[misc]
               for end in range(9) for at in range(11) for start in range(end + 1))


class Inverted(nn.Module):
    """An inverted residual: 1x1 convolution, 3x3 one channel by channel, 1x1, and its input added."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        inner = width * factor
        self.body = nn.Sequential(nn.Conv2d(width, inner, 1), nn.ReLU6(), nn.Conv2d(inner, inner, 3, 1, 1, groups=inner),
                                  nn.ReLU6(), nn.Conv2d(inner, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Mobile(nn.Module):
    def __init__(self, blocks: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.Sequential(*[Inverted(width, 4) for _ in range(blocks)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def mobile() -> Compiler:
    torch.manual_seed(0)
    return Compiler(Mobile(6).eval(), InputSpec.image((3, 32, 32), (0.5,) * 3, (0.2,) * 3))


def test_six_inverted_residuals_fit_where_they_are_made_again(mobile: Compiler) -> None:
    """244,052 bytes instead of 777,556: before segments of several calls could be made again it was 775,412."""
    plan = mobile.planner(dict.fromkeys(mobile.shapes, "all"))
    most, least = plan.unconstrained(), plan.smallest()
    assert least.ram < most.ram / 3
    works = [schedule.macs for part in (0.4, 0.6, 0.8, 1.0) if (schedule := plan.fastest(int(part * most.ram)))]
    assert len(works) == 4 and works == sorted(works, reverse=True)
    assert works[0] < 1.2 * most.macs and works[-1] == most.macs


def test_the_long_tail_made_again_gives_the_same_bits(mobile: Compiler) -> None:
    """Convolutions, their biases trained: in C, with the fewest bytes and without a limit."""
    plan = dict.fromkeys(mobile.shapes, "all")
    outcomes = []
    for budget in (None, mobile.smallest_ram(plan)):
        compiled = mobile.compile(plan, budget)
        image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            generate(compiled.program, compiled.values, Path(folder))
            with Simulator(Path(folder), compiled.program) as simulator:
                losses = [simulator.train_step(image, 3, 0.01) for _ in range(3)]
                outcomes.append((losses, {n: w.copy() for n, w in simulator.trained().items()}))
                assert simulator.macs == compiled.macs
    (losses, weights), (again, weights_again) = outcomes
    assert losses == again and weights.keys() == weights_again.keys()
    assert all(np.array_equal(weights[n], weights_again[n]) for n in weights)


def test_a_bias_of_a_convolution_is_updated_after_its_last_use() -> None:
    """The gradient of such a bias reads no activation; the segment that reads the bias is made again before it."""
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)]
    made = Compiler(nn.Sequential(*layers).eval(), InputSpec.image((3, 16, 16), (0.5,) * 3, (0.2,) * 3))
    plan = made.planner(dict.fromkeys(made.shapes, "all"))
    for order in orders(plan, 0):
        assert plan.at(0, order.slots, order.source, 0, order.stride, order.kept).ram   # verified as it is made
