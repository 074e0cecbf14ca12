"""Planted faults: the project with one line changed compiles, builds and replays a run that the sound project recorded.

    python -m benchmarks.verdict.planted CASE MOMENTUM WORK_FOLDER      (in a changed copy: prints what came of it)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.verdict.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("algorithm", "benchmarks", "compilation", "configs", "runtime", "tests", "pyproject.toml", "run_vit_training.py",
          "setup.cfg")
STEPS = 20
FINDERS = ("verdict", "simulator", "compiler")      # who may find a fault; a crash, or C that does not compile, is none


class MutationError(Exception):
    """A mutation does not apply to the project as it is."""


def copy_project(work: Path) -> Path:
    """A copy to be changed, made anew."""
    copy = work / "project"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignore)
        else:
            shutil.copyfile(source, copy / name)
    return copy


@contextmanager
def planted(copy: Path, mutation: Mutation) -> Iterator[None]:
    """The fault is in the copy meanwhile. Raises MutationError unless its text occurs exactly once."""
    path = copy / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise MutationError(f"{mutation.name}: {mutation.file} holds its text {text.count(mutation.old)} times, not once")
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        yield
    finally:
        path.write_text(text)


def record_cases(work: Path) -> None:
    """The recorded runs, by the sound project."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.verdict.cases import BY_NAME, make_model, record

    torch.set_num_threads(1)
    for name, momentum in sorted({(m.case, m.momentum) for m in MUTATIONS}):
        folder = case_folder(work, name, momentum)
        folder.mkdir(parents=True, exist_ok=True)
        model, plan = make_model(BY_NAME[name])
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "state.safetensors")
        record(model, plan, STEPS, momentum, 0).save(folder / "trace.safetensors")


def case_folder(work: Path, name: str, momentum: float) -> Path:
    return work / f"{name.replace(' ', '-').replace(',', '').replace('+', '-')}-{momentum:g}-recorded"


def outcome_in(copy: Path, case: str, momentum: float, work: Path) -> dict[str, Any]:
    """What the copy makes of a recorded run: {"by": "verdict" | "simulator" | "compiler" | "crash", "outcome", "text"}."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.verdict.planted", case, str(momentum), str(work)], cwd=copy,
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode or not done.stdout.strip():
        return {"by": "crash", "outcome": "crash", "text": done.stderr.strip().splitlines()[-1:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_all(work: Path, unit_tests: bool, only: str = "") -> list[dict[str, Any]]:
    """Each mutation in turn. A case whose sound copy is not proven would make its finds worthless: checked first."""
    record_cases(work)
    copy = copy_project(work)
    chosen = [m for m in MUTATIONS if only in m.name]
    for case, momentum in sorted({(m.case, m.momentum) for m in chosen}):
        found = outcome_in(copy, case, momentum, work)
        if found["outcome"] != "proven":
            raise MutationError(f"the sound project is not proven on {case}, momentum {momentum:g}: {found}")
    rows = []
    for mutation in chosen:
        print(f"planted: {mutation.name}", file=sys.stderr, flush=True)
        with planted(copy, mutation):
            found = once(work, "fault", mutation, partial(outcome_in, copy, mutation.case, mutation.momentum, work))
            row = {"name": mutation.name, "file": mutation.file, "case": mutation.case, **found,
                   "caught": found["by"] in FINDERS and found["outcome"] != "proven"}
            if unit_tests:
                seen = once(work, "test", mutation, partial(fails, copy, mutation.test))
                row |= {"test": mutation.test, "caught_by_test": seen}
        rows.append(row)
    return rows


def once(work: Path, kind: str, mutation: Mutation, find: Callable[[], Any]) -> Any:
    """What `find` gives; where an earlier call in this folder has asked for the very same, what it gave then."""
    done = work / f"{kind}-{hashlib.sha256(repr(mutation).encode()).hexdigest()[:12]}.json"
    if not done.is_file():
        done.write_text(json.dumps(find()))
    return json.loads(done.read_text())


def fails(copy: Path, arguments: str) -> bool:
    """Whether these tests of the copy find the fault (pytest's exit status 1: tests ran and failed); none never do."""
    if not arguments:
        return False
    done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments.split(" ")],
                          cwd=copy, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode == 1


def worker(case: str, momentum: float, work: Path) -> dict[str, Any]:
    import tempfile

    import torch
    from safetensors.torch import load_file

    from algorithm.training.trace import Trace
    from benchmarks.verdict.cases import BY_NAME, compile_case, make_model, replay_in
    from compilation.errors import CompilationError
    from runtime.errors import SimulationError

    torch.set_num_threads(1)
    folder = case_folder(work, case, momentum)
    model, plan = make_model(BY_NAME[case])
    model.load_state_dict(load_file(folder / "state.safetensors"))
    with tempfile.TemporaryDirectory(prefix="planted-") as room:
        try:
            compiled = compile_case(BY_NAME[case], model, plan, momentum, Path(room))
            v = replay_in(Path(room), compiled.program, Trace.load(folder / "trace.safetensors"))
        except CompilationError as error:
            return {"by": "compiler", "outcome": type(error).__name__, "text": [str(error)[:200]]}
        except SimulationError as error:
            return {"by": "simulator", "outcome": type(error).__name__, "text": [str(error)[:200]]}
    return {"by": "verdict", "outcome": v.outcome.value, "text": v.failures()[:2]}


if __name__ == "__main__":
    print(json.dumps(worker(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))))
