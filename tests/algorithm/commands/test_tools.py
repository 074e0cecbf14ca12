"""infer, analyze, validate on files of timm: what they say is what timm's model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from algorithm.__main__ import main
from algorithm.models.torchvision_shim import timm

TINY = ["--model", "testing", "--img-size", "32", "--threads", "1"]


@pytest.fixture(scope="module")
def timm_model() -> Any:
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=3, img_size=32).eval()


@pytest.fixture(scope="module")
def files(timm_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints as timm and torch write them, and images: val/{a,b,c}/*.png, one of them broken."""
    folder = tmp_path_factory.mktemp("files")
    torch.save(timm_model.state_dict(), folder / "plain.pth")
    torch.save({"state_dict": timm_model.state_dict(), "epoch": 3}, folder / "nested.pth.tar")
    save_file(timm_model.state_dict(), folder / "m.safetensors")
    parts = [(part, label, count) for part in ("train", "val") for label, count in zip("abc", (3, 2, 4), strict=True)]
    for k, (part, label, count) in enumerate(parts):
        (folder / "data" / part / label).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([k, i]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / part / label / f"{i}.png")
    (folder / "data/val/c/9.jpg").write_text("no image")
    return folder


def probabilities(model: Any, path: Path) -> list[float]:
    """By timm's own transform."""
    cfg = timm.data.resolve_data_config({}, model=model)
    transform = timm.data.create_transform((3, 32, 32), mean=cfg["mean"], std=cfg["std"], crop_pct=cfg["crop_pct"],
                                           interpolation=cfg["interpolation"])
    with torch.no_grad():
        return list(model(transform(Image.open(path).convert("RGB"))[None]).softmax(1)[0].tolist())


@pytest.mark.parametrize("name", ["plain.pth", "nested.pth.tar", "m.safetensors"])
def test_infer_says_what_timms_model_says(name: str, files: Path, timm_model: Any,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "--checkpoint", str(files / name), *TINY, "--input", str(files / "data/val"), "--top-k", "2",
                 "--json", "-", "--batch-size", "3"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [r["image"] for r in found] == sorted(map(str, (files / "data/val").rglob("*.png")))
    for result in found:
        expected = probabilities(timm_model, Path(result["image"]))
        best = sorted(range(3), key=lambda i: -expected[i])[:2]
        assert [c["class"] for c in result["classes"]] == [str(i) for i in best]
        assert [c["probability"] for c in result["classes"]] == pytest.approx([expected[i] for i in best], abs=1e-5)
    assert "9.jpg is corrupt" in err and "left out" in err


def test_infer_shows_a_table_of_one_image(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = files / "data/val/a/0.png"
    assert main(["infer", "--checkpoint", str(files / "plain.pth"), *TINY, "--input", str(image)]) == 0
    out = capsys.readouterr().out
    assert "0.png" in out.replace("\n", "") and out.count("%") == 3


@pytest.mark.parametrize(("argv", "text"), [
    (["--checkpoint", "plain.pth"], "--model"), (["--checkpoint", "data/val/c/9.jpg", *TINY], "not a readable checkpoint"),
    (["--checkpoint", "plain.pth", "--model", "ti16", "--img-size", "32"], "the model needs"),
    (["--checkpoint", "plain.pth", *TINY, "--num-classes", "5"], "leave --num-classes out"),
    (["--checkpoint", "plain.pth", *TINY, "--ema"], "no moving average"),
    (["--checkpoint", "plain.pth", *TINY, "--top-k", "0"], "1"),
    (["--checkpoint", "plain.pth", *TINY, "--input", "data/val/c/9.jpg"], "can be read")])
def test_infer_refuses_in_one_line(argv: list[str], text: str, files: Path, capsys: pytest.CaptureFixture[str],
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    assert main(["infer", *([] if "--input" in argv else ["--input", "data/val/a"]), *argv]) == 1
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_analyze_spectrum_lists_numpys_values(files: Path, timm_model: Any, tmp_path: Path) -> None:
    arrays = tmp_path / "s.npz"
    assert main(["analyze", "spectrum", "--checkpoint", str(files / "m.safetensors"), *TINY, "--targets", "attn.qkv",
                 "--split-qkv", "--full", "--dtype", "float64", "--vectors", str(arrays),
                 "--json", str(tmp_path / "s.json")]) == 0
    said = json.loads((tmp_path / "s.json").read_text())
    weight = timm_model.blocks[0].attn.qkv.weight.detach().double().numpy()
    values = np.linalg.svd(weight[:64], compute_uv=False)
    assert said["matrices"]["blocks.0.attn.qkv.q"]["values"] == pytest.approx(values, abs=1e-12)
    with np.load(arrays) as saved:
        assert saved["blocks.0.attn.qkv.q/u"].shape == (64, 64)


def test_analyze_artifacts_looks_at_held_out_images(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "artifacts", "--checkpoint", str(files / "m.safetensors"), *TINY, "--data-dir",
                 str(files / "data"), "--images", "5", "--json", "-", "--pictures", str(tmp_path / "p"),
                 "data.max_broken=1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == 5 and said["tokens"] == 5 * 4 and said["l2_norm_mean"] > 0
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["cls_attention_by_layer.png", "norm_histogram.png"]


def test_validate_gives_the_figures_by_class_and_the_confusion(files: Path, tmp_path: Path, timm_model: Any,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    (files / "data/val/c/9.jpg").rename(tmp_path / "9.jpg")
    try:
        argv = ["validate", "--checkpoint", str(files / "m.safetensors"), *TINY, "--data-dir", str(files / "data")]
        assert main([*argv, "--json", "-"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert main([*argv, "--confusion", "--json", str(tmp_path / "v.json")]) == 0
    finally:
        (tmp_path / "9.jpg").rename(files / "data/val/c/9.jpg")
    assert json.loads((tmp_path / "v.json").read_text()) == said
    right = {c: [int(np.argmax(probabilities(timm_model, p))) == i for p in (files / "data/val" / c).glob("*.png")]
             for i, c in enumerate("abc")}
    assert said["images"] == 9 and said["top1"] == pytest.approx(sum(map(sum, right.values())) / 9)
    assert said["per_class"] == pytest.approx({c: sum(r) / len(r) for c, r in right.items()})
    assert [sum(row) for row in said["confusion"]] == [3, 2, 4]
    text = capsys.readouterr().out
    assert all(word in text for word in ("top-1", "top-5", "by class", "confusion", "taken for"))
