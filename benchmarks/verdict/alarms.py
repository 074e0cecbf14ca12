"""False alarms: correct runs, recorded under differing arithmetic, that the verdict does not prove.

One process for each arithmetic of PyTorch (vector unit x threads), since neither can be changed in a running one:

    python -m benchmarks.verdict.alarms WORK_FOLDER RESULTS.jsonl THREADS SEEDS
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CAPABILITIES = ("default", "avx2", "own")   # of ATen: no vectors, AVX2, what the CPU has
THREADS = (1, 2)
MOMENTA = (0.0, 0.9)
STEPS = (5, 20)


def cells() -> Iterator[tuple[str, float]]:
    from benchmarks.verdict.cases import CASES

    for case in CASES:
        for momentum in MOMENTA:
            yield case.name, momentum


def folder_of(work: Path, name: str, momentum: float) -> Path:
    return work / f"{name.replace(' ', '-').replace(',', '').replace('+', '-')}-{momentum:g}"


def prepare(work: Path) -> None:
    """Compile every cell once; the runs differ in data and in the values of what is trained."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.verdict.cases import BY_NAME, compile_case, make_model

    torch.set_num_threads(1)
    for name, momentum in cells():
        folder = folder_of(work, name, momentum)
        if (folder / "state.safetensors").is_file():
            continue
        print(f"compiling {name}, momentum {momentum:g}", file=sys.stderr, flush=True)
        model, plan = make_model(BY_NAME[name])
        compiled = compile_case(BY_NAME[name], model, plan, momentum, folder)
        (folder / "program.json").write_text(compiled.program.to_json())
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "state.safetensors")


def run_all(work: Path, seeds: int) -> list[dict[str, Any]]:
    """Every arithmetic in turn; what an earlier call has finished is not run again."""
    prepare(work)
    rows: list[dict[str, Any]] = []
    for capability in CAPABILITIES:
        for threads in THREADS:
            out = work / f"runs-{capability}-{threads}-{seeds}.jsonl"
            if not out.is_file():
                environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
                environment |= {"OMP_NUM_THREADS": str(threads)}
                environment |= {} if capability == "own" else {"ATEN_CPU_CAPABILITY": capability}
                print(f"correct runs: vectors {capability}, {threads} threads", file=sys.stderr, flush=True)
                partial = out.with_suffix(".partial")
                subprocess.run([sys.executable, "-m", "benchmarks.verdict.alarms", str(work), str(partial), str(threads),
                                str(seeds)], env=environment, check=True)
                partial.rename(out)
            found = [json.loads(line) for line in out.read_text().splitlines()]
            rows += [{**r, "capability": capability, "threads": threads} for r in found]
    return rows


def ratios(v: Any) -> dict[str, float]:
    """The largest share of what is allowed that a run used, by kind of check."""
    losses = np.abs(v.losses - v.losses64) / v.allowed_losses
    kinds = ("largest", "rms", "along")
    return {"loss": float(losses.max())} | {
        k: max((getattr(t.error, k) / getattr(t.allowed, k) for t in v.tensors if getattr(t.allowed, k)), default=0.0)
        for k in kinds}


def worker(work: Path, out: Path, threads: int, seeds: int) -> None:
    import torch
    from safetensors.torch import load_file

    from benchmarks.verdict.cases import BY_NAME, make_model, record
    from compilation.program_file import read_program
    from runtime.simulator import Simulator
    from runtime.validate import replay

    torch.set_num_threads(threads)
    with out.open("w", buffering=1) as file:
        for name, momentum in cells():
            folder = folder_of(work, name, momentum)
            model, plan = make_model(BY_NAME[name])
            model.load_state_dict(load_file(folder / "state.safetensors"))
            program = read_program(folder / "program.json")
            with Simulator(folder / "c", program) as simulator:
                for steps in STEPS:
                    for seed in range(seeds):
                        v = replay(simulator, record(model, plan, steps, momentum, seed))
                        row = {"case": name, "momentum": momentum, "steps": steps, "seed": seed, "outcome": v.outcome.value,
                               "resolved": v.resolved, "tensors": len(v.tensors), "text": v.failures()[:2], **ratios(v)}
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
