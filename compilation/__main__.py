"""python -m compilation MODEL: compile a training step without training it.

MODEL is a timm name (vit_small_patch16_224), or a factory `module:function` that returns a torch.nn.Module (or a tuple
of the module and its input shape without batch, channels first).
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file
from torch import nn

from compilation.capture import InputSpec
from compilation.errors import CaptureError, CompilationError
from compilation.passes.training import Selection
from compilation.pipeline import Compiled, Compiler

EPILOG = """\
what to train (--train, may be repeated; the default trains biases, norms and the head):
  --train '*.bias' --train '*norm*' --train 'head.*'     whole parameters, by pattern
  --train 'blocks.11.attn.qkv.weight=cols:0-95'          columns (input features) of a matrix; rows: output features
  --plan plan.yaml                                       an update plan as run_vit_training.py writes it

examples
  python -m compilation vit_small_patch16_224 --budget 2mb --img_size 224 --classes 10 --output build/vit
  python -m compilation my_models:make_mixer --input 3,32,32 --train '*' --output build/mixer

then: python -m runtime build/vit        emits the C code, builds it, runs and measures it

exit status: 0 written, 1 refused, 2 the budget cannot be met
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m compilation", description=__doc__, epilog=EPILOG,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="timm name, or module:function")
    p.add_argument("--budget", help="RAM of a training step (2mb, 512kb, ...); none: the fastest step of all")
    p.add_argument("--img_size", type=int, help="input size in pixels (timm models; default: the model's own)")
    p.add_argument("--classes", type=int, default=10, help="classes to predict (timm models; default 10)")
    p.add_argument("--input", help="input shape without batch, for example 3,32,32 (factories)")
    p.add_argument("--float-input", action="store_true", help="the input is float32 as it is, not a uint8 image")
    p.add_argument("--train", action="append", metavar="PATTERN[=cols:A-B|rows:A-B]",
                   help="what to train; may be repeated")
    p.add_argument("--plan", type=Path, help="update plan file (YAML or JSON)")
    p.add_argument("--momentum", type=float, default=0.0, help="of SGD; doubles the RAM of trained weights when not 0")
    p.add_argument("--output", type=Path, default=Path("build/step"),
                   help="folder for program.txt, program.json and values.safetensors")
    return p


def load_model(args: argparse.Namespace) -> tuple[nn.Module, InputSpec]:
    """The module and its input. Raises CaptureError when it cannot be made."""
    mean: Any = (0.5, 0.5, 0.5)
    std: Any = (0.5, 0.5, 0.5)
    if ":" in args.model:
        module, _, function = args.model.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        try:
            made = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise CaptureError(f"cannot call {args.model}: {error}") from None
        model, shape = made if isinstance(made, tuple) else (made, None)
        if args.input:
            shape = tuple(int(v) for v in args.input.split(","))
        if shape is None:
            raise CaptureError(f"{args.model} returns no input shape: give one with --input, as in --input 3,32,32")
    else:
        from algorithm.models import ModelConfig, build_model
        from algorithm.models.vit import input_scale_shift
        config: dict[str, Any] = {"name": args.model, "num_classes": args.classes, "weights": "none",
                                  "gram": {"enabled": False}}
        if args.img_size:
            config["img_size"] = args.img_size
        model = build_model(ModelConfig(**config))
        size = int(model.patch_embed.img_size[0])  # type: ignore[union-attr,index]
        scale, shift = input_scale_shift(model)
        return model, InputSpec((3, size, size), scale, shift)
    model.eval()
    if args.float_input or len(shape) != 3:
        return model, InputSpec(tuple(shape))
    return model, InputSpec.image(tuple(shape), mean[:shape[0]], std[:shape[0]])


def read_plan(args: argparse.Namespace, shapes: dict[str, tuple[int, ...]]) -> dict[str, Selection]:
    """The plan of --plan or --train. Raises CompilationError for a pattern that fits nothing."""
    if args.plan:
        try:
            raw = yaml.safe_load(args.plan.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise CompilationError(f"cannot read the plan {args.plan}: {error}") from None
        return dict(raw.get("parameters", raw))
    plan: dict[str, Selection] = {}
    for text in args.train or ["*.bias", "*norm*", "head.*"]:
        pattern, _, part = text.partition("=")
        names = fnmatch.filter(shapes, pattern)
        if not names and args.train:
            raise CompilationError(f"--train {pattern!r} fits no parameter of the model")
        selection: Selection = "all"
        if part:
            axis, _, span = part.partition(":")
            low, _, high = span.partition("-")
            if axis not in ("cols", "rows") or not (low + high).isdigit() or not high:
                raise CompilationError(f"--train {text!r}: write =cols:A-B or =rows:A-B")
            selection = {axis: list(range(int(low), int(high) + 1))}
        plan |= dict.fromkeys(names, selection)
    return plan


def compile_to(args: argparse.Namespace) -> Compiled:
    from algorithm.sparse.budgets import parse_budget
    model, spec = load_model(args)
    compiler = Compiler(model, spec, args.model.split(":")[-1])
    plan = {n: s for n, s in read_plan(args, compiler.shapes).items() if n in compiler.forward.tensors}
    compiled = compiler.compile(plan, parse_budget(args.budget) if args.budget else None, args.momentum)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "program.txt").write_text(compiled.program.text())
    (args.output / "program.json").write_text(compiled.program.to_json())
    save_file({n: np.ascontiguousarray(v) for n, v in compiled.values.items()}, args.output / "values.safetensors")
    return compiled


def main(argv: list[str] | None = None) -> int:
    """Compile, print the figures, write the Program."""
    from algorithm.errors import AlgorithmError
    from compilation.errors import BudgetError
    args = parser().parse_args(argv)
    try:
        compiled = compile_to(args)
    except BudgetError as error:
        print(f"over budget: {error}", file=sys.stderr)
        return 2
    except (AlgorithmError, CompilationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    m = compiled.memory
    print(f"RAM {m.total:,} bytes: arena {m.arena:,} (lower bound {compiled.bound:,}), trained {m.trained:,}, "
          f"state {m.state:,}, outputs {m.outputs:,}, stack {m.stack:,}\n"
          f"flash {m.flash:,} bytes of constants\n"
          f"multiply-accumulates {compiled.macs:,} a step "
          f"({compiled.macs / max(compiled.macs_without_recompute, 1):.2f} x without recomputation)\n"
          f"trained parameters {compiled.trained_parameters:,}\nschedule: {compiled.schedule}\n"
          f"written: {args.output} (python -m runtime {args.output} emits and runs the C code)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
