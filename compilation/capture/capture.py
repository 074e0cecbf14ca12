"""What the compiler is given: a PyTorch module and its input. Captured as one graph, or refused by name."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from compilation.capture.expand import expand
from compilation.capture.regions import STOP_GRADIENT, functional, inline_regions, operation, path_of
from compilation.capture.witness import check_capture
from compilation.errors import CaptureError, UnsupportedOperationError


@dataclass
class InputSpec:
    """The model's input. An image arrives on the device as uint8 (H, W, C); the model sees
    u8 * scale[c] + shift[c] as float (1, C, H, W). Any other input is float32 of the given shape."""

    shape: tuple[int, ...]                      # without batch: (C, H, W) for images
    scale: np.ndarray | None = None             # (C,)
    shift: np.ndarray | None = None             # (C,)

    @property
    def is_image(self) -> bool:
        return self.scale is not None

    @staticmethod
    def image(shape: tuple[int, int, int], mean: Any, std: Any) -> InputSpec:
        mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        return InputSpec(shape, (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32))


@dataclass
class Exported:
    """A captured model: the exported program, and its parameters and buffers by their PyTorch names.

    argument_names: graph argument -> parameter or buffer. buffers: which of them no training changes.
    stopped: the parameters that no gradient reaches, because each way to the result is detached.
    """

    program: Any                                 # torch.export.ExportedProgram
    parameters: dict[str, np.ndarray]
    spec: InputSpec
    argument_names: dict[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    stopped: frozenset[str] = frozenset()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of everything that can be trained."""
        return {n: v.shape for n, v in self.parameters.items() if n not in self.buffers}


def capture(model: nn.Module, spec: InputSpec, importable: Collection[str] = ()) -> Exported:
    """Export `model` (evaluation mode, batch 1) with torch.export as one graph of plain operations.

    importable: the operations that the importer knows; others are decomposed where PyTorch can. Raises CaptureError
    when the model cannot be exported as one graph, or when its training in PyTorch would be something else than the
    gradient of that graph (dropout, batch statistics, random numbers, writes to buffers).
    """
    _refuse_training_mode(model)
    _refuse_other_inputs(model)
    _refuse_other_values(model)
    exported = _export(model, torch.zeros(1, *spec.shape))
    if not exported.call_spec.out_spec.is_leaf():
        raise CaptureError(f"{type(model).__name__} returns several values or a container: a single tensor of logits is "
                           "expected; wrap the model in one that returns only that")
    inline_regions(exported)
    for node in list(exported.graph.nodes):
        _refuse_randomness(node)
        if node.op == "call_function" and operation(node) in DROPOUTS:      # not active: an identity
            node.replace_all_uses_with(node.args[0])
            exported.graph.erase_node(node)
    expand(exported)                                # before in-place operations go, which breaks normalisations up
    exported = functional(exported)
    expand(exported, importable)
    for node in exported.graph.nodes:
        _refuse_types(node)
    parameters, arguments = _parameters(exported, model)
    check_capture(model, exported, arguments, (1, *spec.shape))
    reached, read = _reached(exported), {n.name for n in exported.graph.find_nodes(op="placeholder") if n.users}
    for name in (name for n, name in arguments.items() if n in read and not parameters[name].size):
        raise CaptureError(f"parameter {name} has no elements (its shape is {parameters[name].shape}): take it out of "
                           "the model")
    trainable = {arguments[n] for n in exported.graph_signature.inputs_to_parameters if n in arguments}
    return Exported(exported, parameters, spec, arguments, frozenset(parameters) - trainable,
                    frozenset(name for n, name in arguments.items() if n in read)
                    - {name for n, name in arguments.items() if n in reached})


def _reached(exported: Any) -> set[str]:
    """The nodes that a gradient of the result reaches: on some way to them nothing stops it."""
    todo, seen = [n for n in exported.graph.nodes if n.op == "output"], set()
    while todo:
        node = todo.pop()
        if node.name not in seen and node.target is not STOP_GRADIENT:
            seen.add(node.name)
            todo += node.all_input_nodes
    return seen


# -- what is refused before the export ------------------------------------------------------------------------
def _refuse_training_mode(model: nn.Module) -> None:
    training = [n or type(model).__name__ for n, m in model.named_modules() if m.training]
    if model.training:
        raise CaptureError("the model is in training mode: call model.eval() first (the device has no dropout)")
    if training:
        more = f" and {len(training) - 1} more" if len(training) > 1 else ""
        raise CaptureError(f"module {training[0]}{more} is in training mode inside a model in evaluation mode: call "
                           "model.eval() last, so that PyTorch trains what the device computes")


def _refuse_other_inputs(model: nn.Module) -> None:
    try:
        inspect.signature(model.forward).bind(None)
    except TypeError as error:
        raise CaptureError(f"{type(model).__name__}.forward cannot be called with one input ({error}): the device has one "
                           "input tensor; wrap the model in one that takes it and makes the others") from None
    except ValueError:                       # a forward without a signature: torch.export will tell
        return


def _refuse_other_values(model: nn.Module) -> None:
    for kind, items in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, value in items:
            if value.is_meta:
                raise CaptureError(f"{kind} {name} holds no values (it is on the meta device): load the model's weights "
                                   "first")
            if kind == "parameter" and value.dtype is not torch.float32:
                raise CaptureError(f"{kind} {name} is {str(value.dtype).removeprefix('torch.')}: the device computes in "
                                   "float32; use model.float()")


def _export(model: nn.Module, example: torch.Tensor) -> Any:
    try:
        with torch.enable_grad(), _all_trainable(model), _no_log():
            return torch.export.export(model, (example,))
    except Exception as error:  # torch.export raises many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        told, hint = f"{type(error).__name__} {first}".lower(), ""
        if "fake tensor in the exported program" in told:
            first = "a value is taken out of the graph"
            hint = ": write x.detach() for x.data, and use no tensor kept from outside"
        elif any(word in told for word in ("datadependent", "data-dependent", "dynamic control flow")):
            hint = ": the graph may not depend on values; no if, while or item() on tensors"
        elif "expected more than 1 value per channel" in told:
            hint = ": it normalises by the statistics of its batch, and the device trains one image at a time; use " \
                   "running statistics in evaluation mode, or another normalisation"
        raise CaptureError(f"torch.export cannot capture {type(model).__name__} as one graph: {first}{hint}") from error


@contextmanager
def _no_log() -> Iterator[None]:
    """What torch.export logs of a failure (a whole graph) is told by its error as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    """PyTorch takes other, fused ways where nothing asks for a gradient; the graph is to hold the ones it trains."""
    frozen = [p for p in model.parameters() if not p.requires_grad and (p.is_floating_point() or p.is_complex())]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


# -- what is refused in the graph -----------------------------------------------------------------------------
DROPOUTS = {f"aten::{kind}dropout{end}" for kind in ("", "alpha_", "feature_", "feature_alpha_") for end in ("", "_")} \
    | {"aten::native_dropout"}


def _argument(node: fx.Node, name: str) -> Any:
    """An argument by its name in the operation's schema, or its default."""
    for i, a in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if a.name == name:
            return node.args[i] if i < len(node.args) else node.kwargs.get(name, a.default_value)
    return None


def _refuse_randomness(node: fx.Node) -> None:
    """What makes a training step of PyTorch another one each time, or depend on more than one image."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return
    name, where = operation(node), path_of(node)
    if name in DROPOUTS:
        if _argument(node, "p") > 0 and _argument(node, "train"):
            raise CaptureError(f"{name} in {where} is active (p={_argument(node, 'p')}, training): the device has no "
                               "dropout; pass training=self.training and call model.eval(), or set p to 0")
    elif name == "aten::batch_norm":
        if _argument(node, "training") or _argument(node, "running_mean") is None:
            raise CaptureError(f"{name} in {where} uses the statistics of its batch: the device trains one image at a "
                               "time; use "
                               "running statistics (track_running_stats=True) in evaluation mode, or another normalisation")
    elif name == "aten::scaled_dot_product_attention":
        if _argument(node, "dropout_p") > 0:
            raise CaptureError(f"{name} in {where} has dropout_p={_argument(node, 'dropout_p')}: the device has no "
                               "dropout; pass 0 in evaluation mode")
    elif torch.Tag.nondeterministic_seeded in node.target.tags and _argument(node, "training") is not False \
            and _argument(node, "train") is not False:
        raise CaptureError(f"{name} in {where} draws random numbers: every step on the device computes the same function; "
                           "remove it, or switch it off in evaluation mode")


def _refuse_types(node: fx.Node) -> None:
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        raise CaptureError(f"{operation(node)} in {path_of(node)} takes a number out of a tensor: the device runs one "
                           "fixed list of operations on tensors; keep it a tensor (of one element)")
    if not node.users or not isinstance(value, torch.Tensor):
        return
    if value.is_complex() or (value.is_floating_point() and value.dtype is not torch.float32):
        kind = str(value.dtype).removeprefix("torch.")
        what = f"{node.name}" if node.op == "placeholder" else f"{operation(node)} in {path_of(node)}"
        raise UnsupportedOperationError(f"{what} is {kind}: the device computes in float32; use model.float() and no casts")


def _parameters(exported: Any, model: nn.Module) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Values of all parameters and buffers by name, and graph argument -> name. A tensor that has two names in the
    model (tied weights) goes by the first, as in named_parameters()."""
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
             **signature.inputs_to_lifted_tensor_constants}
    first = {id(v): n for kind in (model.named_buffers(), model.named_parameters()) for n, v in kind}
    known = {n: first[id(v)] for kind in (model.named_buffers, model.named_parameters)
             for n, v in kind(remove_duplicate=False)}
    arguments = {n.name: known.get(names[n.name], names[n.name]) for n in exported.graph.nodes
                 if n.op == "placeholder" and n.name in names}
    parameters = {}
    for name in arguments.values():
        value = exported.state_dict[name] if name in exported.state_dict else exported.constants[name]
        parameters[name] = value.detach().cpu().numpy()
        if not np.isfinite(parameters[name]).all():
            raise CaptureError(f"parameter {name} holds NaN or infinite values: load sound weights before compiling")
    return parameters, arguments
