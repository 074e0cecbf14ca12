"""python -m compilation MODEL: compile a training step without training it.

MODEL is a timm name (vit_small_patch16_224), or a factory `module:function` that returns a torch.nn.Module (or a tuple
of the module and its input shape without batch, channels first).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from compilation.request import check, input_shape, momentum, train_rule, whole

EPILOG = """\
what to train (--train, may be repeated; the default trains biases, norms and the head):
  --train '*.bias' --train '*norm*' --train 'head.*'     whole parameters, by pattern
  --train 'blocks.11.attn.qkv.weight=cols:0-95'          columns (input features) of a matrix; rows: output features
  --plan plan.yaml                                       an update plan, as run_vit_training.py reads and writes it

examples
  python -m compilation vit_small_patch16_224 --budget 2mb --img_size 224 --classes 10 --output build/vit
  python -m compilation my_models:make_mixer --input 3,32,32 --train '*' --output build/mixer

then: python -m runtime build/vit        emits the C code, builds it, runs and measures it

exit status: 0 written, 1 refused, 2 the budget cannot be met, or mistyped arguments
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m compilation", description=__doc__, epilog=EPILOG,
                                allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="timm name, or module:function")
    p.add_argument("--budget", help="RAM of a training step (2mb, 512kb, ...); none: the fastest step of all")
    p.add_argument("--img_size", type=whole(1, "image size"), metavar="N",
                   help="input size in pixels (timm models; default: the model's own)")
    p.add_argument("--classes", type=whole(2, "number of classes"), metavar="N",
                   help="classes to predict (timm models; default 10)")
    p.add_argument("--input", type=input_shape, metavar="C,H,W",
                   help="input shape without batch, for example 3,32,32 (factories)")
    p.add_argument("--float-input", action="store_true", help="the input is float32 as it is, not a uint8 image (factories)")
    p.add_argument("--train", type=train_rule, action="append", metavar="PATTERN[=cols:A-B|rows:A-B]",
                   help="what to train; may be repeated")
    p.add_argument("--plan", type=Path, metavar="FILE", help="update plan (YAML or JSON)")
    p.add_argument("--momentum", type=momentum, default=0.0, metavar="M",
                   help="of SGD, from 0 to below 1; doubles the RAM of trained weights when not 0")
    p.add_argument("--output", type=Path, default=Path("build/step"), metavar="FOLDER",
                   help="for program.txt, program.json and values.safetensors: new, empty, or written by this command")
    return p


def main(argv: list[str] | None = None) -> int:
    """Compile, print the figures, write the Program. Nothing heavy is imported before the arguments are judged."""
    args = parser().parse_args(argv)
    from algorithm.errors import AlgorithmError
    from compilation.errors import BudgetError, CompilationError
    try:
        request = check(args)
        from compilation.command import run
        compiled = run(request)
    except BudgetError as error:
        print(f"over budget: {error}", file=sys.stderr)
        return 2
    except (AlgorithmError, CompilationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write {error.filename or args.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    m = compiled.memory
    print(f"RAM {m.total:,} bytes: arena {m.arena:,} (lower bound {compiled.bound:,}), trained {m.trained:,}, "
          f"state {m.state:,}, outputs {m.outputs:,}, stack {m.stack:,}\n"
          f"flash {m.flash:,} bytes of constants\n"
          f"multiply-accumulates {compiled.macs:,} a step "
          f"({compiled.macs / max(compiled.macs_without_recompute, 1):.2f} x without recomputation, "
          f"estimated time {compiled.slower:.2f} x)\n"
          f"trained parameters {compiled.trained_parameters:,}\nschedule: {compiled.schedule}\n"
          f"written: {args.output} (python -m runtime {args.output} emits and runs the C code)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
