"""python -m benchmarks.kill_and_resume: trainings by recipe killed (SIGKILL) at five random moments end with the same bits.

Two settings on synthetic images: plain SGD; and AdamW on trained slices with moving average, accumulation, Mixup, drop-path.
Each is trained once undisturbed, and once killed a moment after the checkpoints of five random updates, each time started
again with the same command.
--json FILE writes what was found. Exit status 1 where any tensor of the last checkpoints differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# PyTorch is imported where it is used, so that `--help` comes at once.
EVERY = 7   # updates between checkpoints
COMMON = ["--config", "training/dry_run.yaml", "--threads", "1", "--workers", "0", "--no_wandb", "--epochs", "12",
          "--batch-size", "8", "monitor.vis_freq=null", "monitor.analysis_freq=null", f"recipe.checkpoint_every={EVERY}"]
SETTINGS: dict[str, list[str]] = {
    "plain": ["--opt", "sgd", "--lr", "0.01", "recipe.optim.weight_decay=0"],
    "EMA, accumulation, Mixup, slices": [
        "--accum-steps", "2", "--mixup", "0.8", "--cutmix", "1.0", "--model-ema-decay", "0.9", "--drop-path", "0.2",
        "plan.enable_backward_config=true", "plan.n_bias_update=all", "plan.n_weight_update=all",
        "plan.weight_update_ratio=0.25"]}


def start(folder: Path, name: str, options: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "algorithm", "train", *COMMON, *options, "--output", str(folder),
                             "--experiment", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def saved(folder: Path) -> int:
    """Updates that the newest checkpoint has behind it, by its name: it may be in the middle of being written."""
    names = sorted(p.stem for p in (folder / "checkpoints").glob("step-*.safetensors"))
    return int(names[-1].removeprefix("step-")) if names else 0


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    from algorithm.recipes.checkpoint import newest
    path = newest(folder)
    assert path is not None
    return load_file(path)


def trial(folder: Path, options: list[str], kills: int, rng: random.Random) -> dict[str, Any]:
    """Train undisturbed, then killed; compare every tensor of the last checkpoints."""
    assert start(folder, "whole", options).wait() == 0
    total = saved(folder / "whole")
    moments: list[int] = []
    for target in sorted(rng.sample(range(1, total - EVERY), kills)):
        process = start(folder, "killed", options)
        while process.poll() is None and saved(folder / "killed") < target:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        moments.append(saved(folder / "killed"))
    assert start(folder, "killed", options).wait() == 0
    import torch
    ours, theirs = tensors(folder / "killed"), tensors(folder / "whole")
    different = [n for n in theirs if n not in ours or not torch.equal(ours[n], theirs[n])]
    return {"saved_up_to_at_each_kill": moments, "tensors": len(theirs), "different": different}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.kill_and_resume", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    found = {}
    for name, options in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = trial(Path(folder), options, args.kills, random.Random(args.seed))
        print(f"{name}: killed {len(found[name]['saved_up_to_at_each_kill'])} times, saved up to "
              f"{found[name]['saved_up_to_at_each_kill']}; {len(found[name]['different'])} of {found[name]['tensors']} "
              "tensors differ", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(f["different"] for f in found.values()))


if __name__ == "__main__":
    sys.exit(main())
