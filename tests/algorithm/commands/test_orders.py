"""What `train` and `ablate` order of the engine, and what they make of its outcome; the engine is played here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from algorithm.__main__ import main
from algorithm.experiment import Experiment

DRY = ["--config", "training/dry_run.yaml", "--epochs", "2"]


@dataclass
class Engine:
    """Makes four updates of any training; accuracy 0.5, and a hundredth more a rank of the residual."""

    orders: list[tuple[Experiment, Path]] = field(default_factory=list)
    at_update: Callable[[int], None] = lambda update: None

    def train(self, experiment: Experiment, folder: Path, *, console: Any, stop: Callable[[], None]) -> Any:
        self.orders.append((experiment, folder))
        if console:
            console.begin(4, 0, experiment.recipe.batch)
        for update in range(4):
            self.at_update(update)
            stop()
            if console:
                console.update(update + 1, 1e-3, loss=1.0 / (update + 1), accuracy=0.25)
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps({"step": update, "Train/loss": 1.0 / (update + 1)}) + "\n")
        gram = experiment.model.gram
        top1 = 0.5 + (gram.rank / 100 if gram.enabled else 0)
        return SimpleNamespace(updates=4, evaluation=SimpleNamespace(top1=top1), ema_evaluation=None, best=0.75)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    played = Engine()
    module = ModuleType("algorithm.recipes.engine")
    module.train = played.train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "algorithm.recipes.engine", module)
    monkeypatch.chdir(tmp_path)
    return played


def test_a_training_leaves_a_summary_a_log_and_a_report(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *DRY, "--experiment", "x"]) == 0
    said = capsys.readouterr().err
    ((order, folder),) = engine.orders
    assert folder == Path("work/x") and order.recipe.schedule.epochs == 2 and order.model.num_classes == 4
    summary = json.loads(Path("work/x/summary.json").read_text())
    assert (summary["updates"], summary["accuracy"], summary["best_accuracy"]) == (4, 0.5, 0.75)
    assert "step 4/4 (100 %)" in said and "lr 1.0e-03" in said and "loss 0.25" in said and "accuracy 25.0 %" in said
    assert "report.html" in said and "report.html" in Path("work/x/log.txt").read_text()
    assert "Training loss" in Path("work/x/report.html").read_text()


def test_what_is_finished_is_not_trained_again_unless_asked(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", *DRY, "--experiment", "x"]
    assert main(argv) == 0 and main(argv) == 0
    assert len(engine.orders) == 1 and "work/x is finished" in capsys.readouterr().err
    assert main([*argv, "--lr", "0.5"]) == 1
    assert "recipe.optim.lr: 0.001 there, 0.5 here" in capsys.readouterr().err
    assert main([*argv, "--lr", "0.5", "--fresh"]) == 0 and len(engine.orders) == 2
    assert len(Path("work/x/metrics.jsonl").read_text().splitlines()) == 4


def test_a_stop_leaves_the_folder_to_go_on_with(engine: Engine, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(update: int) -> None:
        if update == 2:
            raise KeyboardInterrupt
    engine.at_update = interrupt
    assert main(["train", *DRY, "--experiment", "x"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped: the same command goes on with what had begun"
    assert not Path("work/x/summary.json").exists() and "KeyboardInterrupt" in Path("work/x/log.txt").read_text()
    engine.at_update = lambda update: None
    assert main(["train", *DRY, "--experiment", "x"]) == 0
    assert not list(Path("work").glob(".*"))


def test_a_second_training_of_one_folder_is_refused_while_the_first_works(engine: Engine,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    engine.at_update = lambda update: seen.append(main(["train", *DRY, "--experiment", "x"])) if update == 1 else None
    assert main(["train", *DRY, "--experiment", "x"]) == 0
    assert seen == [1] and "work/x is in use by process" in capsys.readouterr().err


def test_further_processes_train_without_a_word_and_without_a_folder(engine: Engine, capsys: pytest.CaptureFixture[str],
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", *DRY, "--experiment", "x"]) == 0
    assert len(engine.orders) == 1 and capsys.readouterr() == ("", "") and not Path("work").exists()
    assert main(["ablate", *DRY]) == 1 and "without torchrun" in capsys.readouterr().err


def test_ablate_trains_each_cell_once_against_the_same_without_the_residual(engine: Engine,
                                                                          capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["ablate", *DRY, "--experiment", "grid", "--plans", "full", "training/with_plan.yaml", "--ranks", "2", "4"]
    assert main([*argv, "--seeds", "0"]) == 0
    assert len(engine.orders) == 6
    assert main([*argv, "--seeds", "0", "1"]) == 0
    said = capsys.readouterr()
    assert len(engine.orders) == 12 and said.err.count("is finished") == 6
    cells = json.loads(Path("work/grid/ablation.json").read_text())
    assert {(c["plan"], c["rank"], c["seed"]) for c in cells} == {
        (p, r, s) for p in ("full", "with_plan") for r in (None, 2, 4) for s in (0, 1)}
    assert {c["rank"]: c["accuracy"] for c in cells} == {None: 0.5, 2: 0.52, 4: 0.54}
    table = Path("work/grid/ablation.md").read_text()
    assert "+4.0" in table and "2 of 2" in table and Path("work/grid/ablation.png").stat().st_size > 0
    for plan in ("full", "with_plan"):
        on, off = (yaml.safe_load(Path(f"work/grid/{plan}-{rank}-seed1/experiment.yaml").read_text())
                   for rank in ("rank4", "off"))
        assert (on["model"]["gram"]["rank"], on["model"]["gram"]["enabled"]) == (4, True)
        assert off["model"]["gram"]["enabled"] is False
        assert on["recipe"] == off["recipe"] and on["recipe"]["seed"] == on["model"]["seed"] == on["data"]["seed"] == 1
        assert on["plan"]["enable_backward_config"] == (plan == "with_plan")
        assert (on["plan"]["n_gram_update"], off["plan"]["n_gram_update"]) == (("all", 0) if plan == "with_plan" else (0, 0))


@pytest.mark.parametrize(("argv", "text"), [
    (["--plans", "training/steps.yaml"], "nothing else"), (["plan.n_bias_update=2"], "named by --plans"),
    (["--experiment", "a/b"], "--experiment"), (["--ranks", "0"], "1 or more"), (["--opt", "adamv"], "no optimiser")])
def test_ablate_refuses_before_any_cell_is_trained(argv: list[str], text: str, engine: Engine,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", *DRY, *argv]) == 1
    assert text in capsys.readouterr().err and engine.orders == [] and not Path("work").exists()


def test_a_trace_of_the_devices_steps_is_what_the_c_code_computes(engine: Engine, monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    """`--record_trace`: from the trained weights, by the plan of the training; replayed in C it is proven."""
    from algorithm.models import build_model, input_scale_shift
    from algorithm.sparse import resolve_plan
    from algorithm.sparse.plan import UpdatePlan
    from algorithm.training import save_model
    from algorithm.training.trace import Trace
    from compilation.capture import InputSpec
    from compilation.pipeline import Compiler
    from runtime.codegen.generate import generate
    from runtime.simulator import Simulator
    from runtime.toolchain import Build
    from runtime.validate import replay

    file = Path("work/x/checkpoint.safetensors")
    module = ModuleType("algorithm.recipes.checkpoint")
    module.newest = lambda folder: file  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "algorithm.recipes.checkpoint", module)

    plans: list[UpdatePlan] = []

    def trained(update: int) -> None:
        if update == 3:
            order = engine.orders[0][0]
            plans.append(resolve_plan(order.plan, build_model(order.model)))    # of the start, as a training's is
            save_model(build_model(order.model.model_copy(update={"seed": 9})), file, plan=plans[0].to_dict())
    engine.at_update = trained
    assert main(["train", *DRY, "--config", "training/with_plan.yaml", "--experiment", "x", "--record_trace", "3",
                 "--threads", "1", "model.extra.depth=2", "plan.n_weight_update={attention: 1}"]) == 0
    assert "trace of 3 of the device's steps" in capsys.readouterr().err
    trace, plan = Trace.load(Path("work/x/trace.safetensors")), UpdatePlan.load("work/x/plan.yaml")
    model = build_model(engine.orders[0][0].model.model_copy(update={"weights": str(file)}))
    assert plan.parameters == plans[0].parameters != resolve_plan(engine.orders[0][0].plan, model).parameters
    assert len(trace.losses64) == 3 and trace.init.keys() == plan.parameters.keys()
    assert (trace.init["head.weight"] == model.state_dict()["head.weight"].numpy()).all()

    compiler = Compiler(model, InputSpec((3, 32, 32), *input_scale_shift(model)), "x")
    compiled = compiler.compile(plan.to_dict()["parameters"], None, 0.0)
    generate(compiled.program, compiled.values, Path("c"))
    with Simulator(Path("c"), compiled.program, Build(optimise="-O1")) as simulator:
        assert replay(simulator, trace).passed
