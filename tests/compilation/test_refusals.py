"""What would make PyTorch's training differ, and what cannot be compiled, is refused by name before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compilation.capture import InputSpec
from compilation.capture.expansion import EXPANSIONS
from compilation.errors import CaptureError, CompilationError, GradientError, PlanError, UnsupportedOperationError
from compilation.pipeline import Compiler

SPEC = InputSpec((6,))
Body = Callable[[Any, torch.Tensor], torch.Tensor]


class Block(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.lin, self.body = nn.Linear(6, 6), body
        self.register_buffer("count", torch.zeros(6))
        self.p = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self, self.lin(x))


class Net(nn.Module):
    """The operation at fault sits in module `mid.block`."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mid = nn.ModuleDict({"block": Block(body)})
        self.head = nn.Linear(6, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mid["block"](x))


def counted(block: Any, h: torch.Tensor) -> torch.Tensor:
    block.count.mul_(0.9)
    return h * block.count


def unused_count(block: Any, h: torch.Tensor) -> torch.Tensor:
    block.count += 1
    return h


def decayed(block: Any, h: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        block.p.mul_(0.9)
    return h * block.p


def cast(block: Any, h: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        h = block.lin(h)
    return h.float()


DIFFERENT: dict[str, tuple[Body, str]] = {
    "dropout": (lambda b, h: F.dropout(h, 0.5), r"aten::dropout in mid\.block is active \(p=0\.5, "
                                                r"training\).*model\.eval\(\)"),
    "alpha": (lambda b, h: F.alpha_dropout(h, 0.2, True), r"aten::alpha_dropout in mid\.block is active"),
    "feature alpha": (lambda b, h: F.feature_alpha_dropout(h, 0.2, True), r"aten::feature_alpha_dropout in mid\.block"),
    "channels": (lambda b, h: F.dropout1d(h[None], 0.5)[0], r"aten::feature_dropout in mid\.block"),
    "in place": (lambda b, h: F.dropout(h * 1.5, 0.5, inplace=True), r"aten::dropout_ in mid\.block"),
    "attention": (lambda b, h: F.scaled_dot_product_attention(h[None, None], h[None, None], h[None, None], dropout_p=0.1)[0,
                                                                                                                          0],
                  r"scaled_dot_product_attention in mid\.block has dropout_p=0\.1"),
    "rand": (lambda b, h: h + torch.rand_like(h), r"aten::rand_like in mid\.block draws random numbers"),
    "randn": (lambda b, h: h + torch.randn(1, 6), r"aten::randn in mid\.block draws random numbers"),
    "bernoulli": (lambda b, h: h * torch.bernoulli(torch.full_like(h, 0.5)), r"aten::bernoulli in mid\.block draws"),
    "normal": (lambda b, h: h + torch.empty_like(h).normal_(), r"aten::normal_ in mid\.block draws random numbers"),
    "rrelu": (lambda b, h: F.rrelu(h, training=True), r"aten::rrelu\w* in mid\.block draws random numbers"),
    "statistics": (lambda b, h: F.batch_norm(h.repeat(2, 1), None, None, training=True)[:1],
                   r"aten::batch_norm in mid\.block uses the statistics of its batch"),
    "one value": (lambda b, h: F.batch_norm(h, None, None, training=True), r"normalises by the statistics of its batch"),
    "no statistics": (lambda b, h: F.batch_norm(h.repeat(2, 1), b.count.clone(), b.count.clone(), training=True)[:1],
                      r"aten::batch_norm in mid\.block uses the statistics of its batch"),
    "buffer": (counted, r"the model writes to its buffer mid\.block\.count"),
    "unread buffer": (unused_count, r"the model writes to its buffer mid\.block\.count"),
    "parameter": (decayed, r"the model writes to its parameter mid\.block\.p"),
    "autocast": (cast, r"autocast in mid\.block computes in another precision"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_would_train_otherwise_in_pytorch_is_refused(name: str) -> None:
    body, text = DIFFERENT[name]
    with pytest.raises(CaptureError, match=text):
        Compiler(Net(body), SPEC)


class Clipped(torch.autograd.Function):
    """Its backward is the forward's own until a gradient is large."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].clamp(-20.0, 20.0)


def hooked(block: Any, h: torch.Tensor) -> torch.Tensor:
    h = h * 1.0
    h.register_hook(lambda g: g * (g.abs() > 1e-3))
    return h


@pytest.mark.parametrize("body", [lambda b, h: Clipped.apply(h), hooked], ids=["clipped", "small ones dropped"])
def test_a_gradient_that_is_changed_only_when_large_or_small_is_refused(body: Body) -> None:
    with pytest.raises(CaptureError, match=r"the gradient of mid\.block\.lin\.weight that the captured graph has"):
        Compiler(Net(body), SPEC)


def test_a_shape_that_does_not_fit_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match=r"cannot capture Net as one graph: .*dim") as caught:
        Compiler(Net(lambda b, h: h), InputSpec((7,)))
    assert "\n" not in str(caught.value) and "RuntimeError" not in capfd.readouterr().err


class Empty(nn.Module):
    def __init__(self, body: Body, read: bool) -> None:
        super().__init__()
        self.net, self.read = Net(body), read
        self.none = nn.Parameter(torch.zeros(0, 4))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + self.none.sum() if self.read else self.net(x)


def test_tensors_without_elements_are_named() -> None:
    with pytest.raises(CaptureError, match=r"parameter none has no elements \(its shape is \(0, 4\)\)"):
        Compiler(Empty(lambda b, h: h, True), SPEC)
    with pytest.raises(UnsupportedOperationError, match=r"an operation in net\.mid\.block makes a tensor without elements"):
        Compiler(Empty(lambda b, h: h + (h[:, :0] * 2).sum(), False), SPEC)
    Compiler(Empty(lambda b, h: torch.cat([h[:, :0], h, h.new_zeros(1, 0)], 1), False), SPEC)


@pytest.mark.parametrize("body", [lambda b, h: F.dropout(h, 0.0), lambda b, h: F.dropout(h, 0.5, training=False),
                                  lambda b, h: F.dropout(h, 0.5, training=b.training),
                                  lambda b, h: F.alpha_dropout(h, 0.5, False)])
def test_dropout_that_is_off_is_an_identity(body: Body) -> None:
    plain = Compiler(Net(lambda b, h: h), SPEC).forward
    assert [c.op for c in Compiler(Net(body), SPEC).forward.calls] == [c.op for c in plain.calls]


def test_a_module_left_in_training_mode_is_named() -> None:
    model = Net(lambda b, h: h)
    model.mid["block"].lin.train()
    with pytest.raises(CaptureError, match=r"module mid\.block\.lin is in training mode inside a model in evaluation mode"):
        Compiler(model, SPEC)
    with pytest.raises(CaptureError, match=r"the model is in training mode: call model\.eval\(\) first"):
        Compiler(model.train(), SPEC)


UNSUPPORTED: dict[str, tuple[Body, str]] = {
    "no importer": (lambda b, h: h - h.amax(-1, keepdim=True), r"operation aten::amax in mid\.block has no importer"),
    "half": (lambda b, h: h.half().float(), r"aten::to in mid\.block is float16: the device computes in float32"),
    "double": (lambda b, h: (h.double() * 2).float(), r"aten::to in mid\.block is float64"),
    "complex": (lambda b, h: torch.fft.fft(h).real, r"aten::fft_fft in mid\.block is complex64"),
    "number": (lambda b, h: h * h.sum().item(), r"aten::item in mid\.block takes a number out of a tensor"),
    "branch": (lambda b, h: h if h.sum() > 0 else -h, r"data-dependent.*no if, while or item\(\) on tensors"),
    "cond": (lambda b, h: torch.cond(h.sum() > 0, lambda x: x * 2, lambda x: x * 3, (h,)),
             r"operation cond in mid\.block is control flow that depends on values"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_compiled_is_named_with_its_layer(name: str) -> None:
    body, text = UNSUPPORTED[name]
    with pytest.raises(CaptureError, match=text) as caught:
        Compiler(Net(body), SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("body", "kind", "text"), [
    (lambda b, h: torch.sin(h), UnsupportedOperationError, r"operation sin in mid\.block has no kernel and cannot be "
                                                           r"compiled \(TIR"),
    (lambda b, h: torch.atan(h), GradientError, r"operation atan in mid\.block has no gradient: train only what lies above "
                                                r"it"),
    (lambda b, h: h.sort(-1)[0], CompilationError, r"operation \w*sort in mid\.block has no gradient"),
], ids=["no C form", "no gradient", "several results"])
def test_what_cannot_be_trained_through_is_named_with_its_layer(body: Body, kind: type[Exception], text: str) -> None:
    compiler = Compiler(Net(body), SPEC)
    with pytest.raises(kind, match=text):
        compiler.compile({"mid.block.lin.bias": "all"})


def test_what_tvm_raises_leaves_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails in TVM, in import, differentiation or lowering, names the operation and its layer."""
    from compilation.tvm_adapter import adjoint, recognise, tail

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("Check failed: (n > 0) is false")

    model, plan = Net(lambda b, h: torch.exp(h)), {"mid.block.lin.bias": "all"}
    for owner, name, kind, text in [
            (recognise.Recogniser, "matmul", UnsupportedOperationError,
             r"an operation in mid\.block\.lin cannot be compiled"),
            (adjoint.relax.transform, "Gradient", GradientError,
             r"cannot be compiled \(Check failed: \(n > 0\) is false\)"),
            (tail._Writer, "_statement", UnsupportedOperationError, r"operation exp in mid\.block has no kernel")]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(kind, match=text):
                Compiler(model, SPEC).compile(dict(plan))


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Result(nn.Module):
    """head(x), returned in some way."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any], width: int = 4) -> None:
        super().__init__()
        self.head, self.wrap = nn.Linear(6, width), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.head(x))


@pytest.mark.parametrize(("model", "text"), [
    (Two(), r"Two\.forward cannot be called with one input \(missing a required argument: 'y'\)"),
    (Result(lambda y: {"logits": y}), "Result returns several values or a container"),
    (Result(lambda y: (y, y)), "Result returns several values or a container"),
    (Result(lambda y: torch.ones(1, 4)), "returns its input, a parameter or a constant"),
    (nn.Flatten(), "returns its input, a parameter or a constant"),
    (nn.Sequential(nn.Embedding(10, 4), nn.Flatten()), "torch.export cannot capture Sequential as one graph: .*indices"),
    (Result(lambda y: y).double(),
     r"parameter head\.weight is float64: the device computes in float32; use model\.float\(\)"),
    (Result(lambda y: y).half(), r"parameter head\.weight is float16"),
    (Result(lambda y: y).to("meta"), r"parameter head\.weight holds no values"),
], ids=["two inputs", "dict", "tuple", "constant", "its input", "integers", "double", "half",
        "meta"])
def test_a_model_of_another_kind_is_refused_in_one_line(model: nn.Module, text: str) -> None:
    with pytest.raises(CaptureError, match=text) as caught:
        Compiler(model.eval(), SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("model", "text"), [(Result(lambda y: y[0]), r"\(4,\), not \(1, classes\)"),
                                             (Result(lambda y: y, 1), r"\(1, 1\): a classifier needs at least 2 classes"),
                                             (Result(lambda y: y[None]), r"\(1, 1, 4\), not \(1, classes\)")])
def test_a_result_that_is_no_classifiers_is_refused(model: nn.Module, text: str) -> None:
    with pytest.raises((CaptureError, PlanError), match=text):
        Compiler(model.eval(), SPEC).compile({"head.bias": "all"})


def test_a_constant_of_the_input_is_refused() -> None:
    class Aside(Result):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head.bias[None] * 2.0

    with pytest.raises(CaptureError, match="does not depend on its input"):
        Compiler(Aside(lambda y: y).eval(), SPEC)


def test_damaged_weights_and_unknown_names() -> None:
    model = Net(lambda b, h: h * b.count)
    for name in ("mid.block.count", "mid.block.lin.biases"):
        with pytest.raises(PlanError, match=name):
            Compiler(model, SPEC).compile({name: "all"})
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(CaptureError, match=r"parameter head\.weight holds NaN"):
        Compiler(model, SPEC)


def test_an_argument_that_the_importer_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relax ignores what it does not know; every operation without a proof of its own is tried on numbers."""
    monkeypatch.delitem(EXPANSIONS, "add")
    with pytest.raises(UnsupportedOperationError, match=r"aten::add in mid\.block is imported as something else.*alpha=3"):
        Compiler(Net(lambda b, h: torch.add(h, h * h, alpha=3)), SPEC)


def test_index_lists_have_a_limit() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(70_000, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x)

    compiler = Compiler(Wide().eval(), InputSpec((70_000,)))
    with pytest.raises(PlanError, match="70,000 cols, and the device lists at most 65,536"):
        compiler.compile({"head.weight": {"cols": list(range(10))}})
    assert compiler.compile({"head.weight": {"rows": [1]}}).trained_parameters == 70_000
    assert np.isfinite(compiler.compile({"head.weight": "all"}).memory.total)
