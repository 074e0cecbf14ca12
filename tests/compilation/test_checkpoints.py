"""Checkpoints: any segment is made again, cuts of several tensors, legal for every order, weighed as it is emitted."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise, product

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
from compilation.program import Call, Program, Role
from compilation.scheduling import Planner

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
            layer: nn.Module = {"linear": nn.Linear(width, width), "norm": nn.LayerNorm(width), "gelu": nn.GELU()}.get(
                kind, nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.ReLU(), nn.Linear(3 * width, width)))
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
    return [Order(slots, source, kept, stride) for kept in range(min(chain.frozen, len(chain.segments) - 1), len(chain.segments))
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
                assert plan.structure(whole).weigh(order, arena) == (tuned.peak, tuned.macs), order
