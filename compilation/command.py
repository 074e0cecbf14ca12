"""python -m compilation, behind its arguments: the model is made, planned, compiled and written."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save
from torch import nn

from compilation.capture import InputSpec
from compilation.errors import CaptureError, RequestError
from compilation.request import DEFAULT_TRAIN, FILES, Request, Rule, check_output

if TYPE_CHECKING:       # TVM: only once there is a model to compile
    from compilation.passes.training import Selection
    from compilation.pipeline import Compiled


def run(request: Request) -> Compiled:
    """Compile and write. Raises what the stages raise, CompilationError and AlgorithmError, and OSError."""
    model, spec, name = load_model(request)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    if request.plan is not None:
        from algorithm.sparse.plan import UpdatePlan

        UpdatePlan.from_dict({"version": 1, "parameters": dict(request.plan)}).check(shapes)
        plan, by_pattern = dict(request.plan), set[str]()
    else:
        plan, by_pattern = choose(request.rules, shapes)
    from compilation.pipeline import Compiler

    compiler = Compiler(model, spec, name)
    idle = [n for n in plan if n in by_pattern and (n not in compiler.forward.tensors or n in compiler.exported.stopped)]
    plan = {n: s for n, s in plan.items() if n not in idle}
    if idle:
        print(f"not trained, because the result does not depend on them: {', '.join(idle)}", file=sys.stderr)
    if not plan:
        raise RequestError("nothing is left to train: name other parameters with --train")
    compiled = compiler.compile(plan, request.budget, request.momentum)
    write(request.output, compiled)
    return compiled


# -- the model ------------------------------------------------------------------------------------------------
def load_model(request: Request) -> tuple[nn.Module, InputSpec, str]:
    """The module in evaluation mode, its input, and a name for the Program."""
    if request.factory is None:
        return (*timm_model(request), request.model)
    made = call_factory(*request.factory)
    model, shape = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise CaptureError(f"{request.model} returns {_kind(made)}: a torch.nn.Module is expected, or a tuple of a module "
                           "and its input shape")
    shape = request.shape or shape
    if shape is None:
        raise CaptureError(f"{request.model} returns no input shape: give one with --input, as in --input 3,32,32")
    if not isinstance(shape, tuple | list) or not shape or not all(type(n) is int and n > 0 for n in shape):
        raise CaptureError(f"{request.model} returns the input shape {shape!r}: whole numbers above 0 are expected, "
                           "without batch")
    model.eval()
    if request.float_input or len(shape) != 3:
        return model, InputSpec(tuple(shape)), request.factory[1]
    half = (0.5,) * shape[0]
    return model, InputSpec.image((shape[0], shape[1], shape[2]), half, half), request.factory[1]


def timm_model(request: Request) -> tuple[nn.Module, InputSpec]:
    """A timm vision transformer with random weights, at its own input size unless another is asked for."""
    from algorithm.models import ModelConfig, build_model
    from algorithm.models.vit import input_scale_shift
    config: dict[str, Any] = {"name": request.model, "num_classes": request.classes, "weights": "none",
                              "gram": {"enabled": False}}
    if size := request.img_size or own_size(request.model):
        config["img_size"] = size
    model = build_model(ModelConfig(**config))
    scale, shift = input_scale_shift(model)
    height, width = (int(n) for n in model.patch_embed.img_size)  # type: ignore[union-attr]
    return model, InputSpec((len(scale), height, width), scale, shift)


def own_size(name: str) -> int | None:
    """The input size in pixels that timm gives a model; None for a name that it does not know."""
    import timm

    from algorithm.models.sources import SHORT_NAMES
    name = SHORT_NAMES[name].timm if name in SHORT_NAMES else name.split("/")[-1]
    known = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    return int(known.input_size[-1]) if known is not None else None


def call_factory(module: str, function: str) -> Any:
    """What module:function returns; what it prints goes to stderr. Raises CaptureError for whatever goes wrong in it."""
    name = f"{module}:{function}"
    sys.path.insert(0, os.getcwd())
    with contextlib.redirect_stdout(sys.stderr):
        with _blamed(f"{module} cannot be imported"):
            made = importlib.import_module(module)
        factory = getattr(made, function, None)
        if not callable(factory):
            raise CaptureError(f"{module} has no function {function}" if factory is None else
                               f"{name} is {_kind(factory)}, not a function that returns a module")
        try:
            inspect.signature(factory).bind()
        except TypeError as error:
            raise CaptureError(f"{name} cannot be called without arguments ({error}): give one that needs none") from None
        except ValueError:      # a callable without a signature: calling it will tell
            pass
        with _blamed(f"{name} fails"):
            return factory()


@contextlib.contextmanager
def _blamed(what: str) -> Any:
    """Whatever another's code raises, an exit included, in one line with the place it comes from."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        lines = str(error).strip().splitlines()
        trace = inspect.trace()[-1]
        at = f" ({Path(trace.filename).name}, line {trace.lineno})" if not isinstance(error, SyntaxError) else ""
        raise CaptureError(f"{what}: {type(error).__name__}{': ' + lines[0] if lines else ''}{at}") from None


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "nothing"


# -- the plan -------------------------------------------------------------------------------------------------
def choose(rules: tuple[Rule, ...], shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Selection], set[str]]:
    """The plan of the --train rules (of the default ones, where there are none), and the names that only patterns chose.

    Raises RequestError for a rule that fits nothing, and for two that differ about one parameter.
    """
    plan: dict[str, Selection] = {}
    author: dict[str, Rule] = {}
    for rule in rules or tuple(Rule(p, p) for p in DEFAULT_TRAIN):
        names = rule.names(shapes)
        if not names and rules:
            raise RequestError(f"--train {rule.pattern!r} fits no parameter of the model (such as "
                               f"{next(iter(shapes), 'none')})")
        for n in names:
            if plan.get(n, rule.selection) != rule.selection:
                raise RequestError(f"--train {author[n].text!r} and --train {rule.text!r} choose differently for {n}: "
                                   "leave one out")
            plan[n] = rule.selection
            if author.get(n, rule).pattern != n:
                author[n] = rule
            else:
                author.setdefault(n, rule)
    if not plan:
        raise RequestError(f"the model has no parameter that fits {', '.join(DEFAULT_TRAIN)}: say what to train with --train"
                           if shapes else "the model has no parameters: there is nothing to train")
    return plan, {n for n in plan if author[n].pattern != n}


# -- the folder -----------------------------------------------------------------------------------------------
def write(folder: Path, compiled: Compiled) -> None:
    """Write the files beside the folder, then move them into place; nothing else in it is touched.

    Raises RequestError when the folder has become somebody else's since the start, and OSError.
    """
    check_output(folder)
    program = compiled.program
    contents = (program.text().encode(), program.to_json().encode(),
                save({n: np.ascontiguousarray(v) for n, v in compiled.values.items()}))
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in zip(FILES, contents, strict=True):
            (aside / name).write_bytes(content)
        if folder.exists():
            for name in FILES:
                os.replace(aside / name, folder / name)
        else:
            aside.chmod(0o777 & ~_umask())
            os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
