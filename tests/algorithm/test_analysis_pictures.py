"""Pictures are drawn, not blank, the same each time, and whole or not at all; tables and files hold what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from algorithm.analysis import charts, pictures
from algorithm.analysis.analyze import analyze_artifacts, analyze_spectrum
from algorithm.analysis.artifacts import norm_statistics
from algorithm.analysis.comparisons import (
    Result,
    Trial,
    ablation_plot,
    ablation_table,
    levels,
    results_plot,
    results_table,
    trials_from,
)
from algorithm.analysis.config import ArtifactsConfig, SpectrumConfig
from algorithm.analysis.records import latest, read_records, series
from algorithm.analysis.spectrum import measure
from algorithm.analysis.spectrum_charts import spectra, spectra_over_steps
from algorithm.analysis.tables import Table
from algorithm.analysis.training_charts import (
    activations_over_steps,
    by_block,
    curves,
    gram_over_steps,
    histograms_over_steps,
    quantiles,
    smooth,
)
from algorithm.errors import AnalysisError, ConfigError
from algorithm.schema import parse
from tests.algorithm.conftest import small_model

RNG = np.random.default_rng(0)
IMAGES = RNG.random((2, 8, 8, 3))
TRIALS = [Trial("last", rank, seed, 0.5 + 0.01 * (rank or 0) + 0.1 * seed)
          for rank in (8, None, 4) for seed in (0, 1)] + [Trial("all", None, 0, 0.4), Trial("all", 8, 0, 0.3)]
RESULTS = [Result(task, method, seed, 0.5 + 0.1 * seed, ram, 10**8) for task in ("a", "b")
           for method, ram in (("head", 400_000), ("full", 1_900_000)) for seed in (0, 1)]
RECORDS: dict[str, list[tuple[int, Any]]] = {
    "Train/loss": [(i, 2.0 - i / 100) for i in range(60)], "Train/learning_rate": [(0, 0.1), (10, 0.2)],
    "Val/top1_accuracy": [(0, 0.1), (10, 0.5)], "Optim/grad_global_norm": [(0, 1.0), (10, 3.0)],
    "GramLowRank/block_10/T_over_Z_norm": [(0, 0.0), (10, 0.1)], "GramLowRank/block_2/T_over_Z_norm": [(0, 0.0), (10, 0.2)],
    "Activations/block_0/mlp_out_std": [(0, 1.0), (10, 2.0)],
    "spec/blocks.0.attn.qkv/sigma_max": [(0, 1.0), (10, 2.0)], "spec/blocks.1.attn.qkv/sigma_max": [(0, 2.0), (10, 3.0)],
    "Params/head.weight": [(0, {"counts": [1, 2, 1], "edges": [-1.0, 0.0, 1.0, 2.0]})]}

DRAWN: dict[str, Callable[[Path], object]] = {
    "overlays": lambda p: pictures.overlays(p, IMAGES, RNG_MAPS, "Attention", ["a", "b"], ["1", "2", "3"]),
    "one map": lambda p: pictures.overlays(p, IMAGES, RNG_MAPS[:, 0], "Rollout"),
    "heat grid": lambda p: pictures.heat_grid(p, IMAGES, torch.as_tensor(RNG_MAPS), "Layers"),
    "saliency": lambda p: pictures.saliency_rows(p, IMAGES, {"grad": RNG_MAPS[:, 0], "signed": RNG_MAPS[:, 1] - .5}, "s"),
    "positions": lambda p: pictures.position_grid(p, np.full((3, 4, 3, 4), 0.5)),
    "many positions": lambda p: pictures.position_grid(p, np.zeros((17, 17, 17, 17))),
    "norms": lambda p: charts.norm_histogram(p, norm_statistics(RNG_MAPS.reshape(2, -1))),
    "equal norms": lambda p: charts.norm_histogram(p, norm_statistics(np.ones((2, 3)))),
    "confusion": lambda p: charts.confusion(p, [[3, 1], [0, 0]], ["cat", "dog"]),
    "large confusion": lambda p: charts.confusion(p, np.eye(60), [str(i) for i in range(60)]),
    "curves": lambda p: curves(p, RECORDS),
    "gram": lambda p: gram_over_steps(p, RECORDS),
    "activations": lambda p: activations_over_steps(p, RECORDS),
    "spectra over steps": lambda p: spectra_over_steps(p, RECORDS),
    "histograms": lambda p: histograms_over_steps(p, RECORDS, "Params", "Distribution of weights"),
    "spectra": lambda p: spectra(p, [measure(n, torch.eye(4)) for n in ("blocks.0.w", "blocks.1.w", "head")]),
    "ablation": lambda p: ablation_plot(p, TRIALS),
    "results": lambda p: results_plot(p, RESULTS),
}
RNG_MAPS = RNG.random((2, 3, 4, 4))


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_drawn(name: str, tmp_path: Path) -> None:
    DRAWN[name](tmp_path / "new folder" / "p.png")
    (path,) = (tmp_path / "new folder").iterdir()
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float64)
    assert path.name == "p.png" and min(pixels.shape[:2]) > 200
    assert pixels[60:].std() > 5 and (pixels < 250).any(axis=-1).mean() > 0.01     # below the title


def test_what_is_shown_is_in_the_picture(tmp_path: Path) -> None:
    """A map that differs in its lower right cell differs in one square, below the image."""
    drawn = []
    for cell in (0.0, 1.0):
        maps = np.array([[[1.0, 0.0], [0.0, cell]]])
        pictures.heat_grid(tmp_path / "p.png", IMAGES[:1], maps, "Map")
        drawn.append(np.asarray(Image.open(tmp_path / "p.png").convert("RGB"), int))
    rows, columns = np.nonzero(np.abs(drawn[0] - drawn[1]).sum(axis=-1))
    assert rows.min() > 0.7 * len(drawn[0])
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(height - width) <= 2 and len(rows) > 0.95 * height * width and height > 50


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_same_picture_is_the_same_file(ending: str, tmp_path: Path) -> None:
    import matplotlib

    written = []
    for k, (size, colour) in enumerate(((10, "white"), (30, "red"))):
        with matplotlib.rc_context({"font.size": size, "axes.facecolor": colour}):  # a user's matplotlibrc changes nothing
            curves(tmp_path / f"{k}{ending}", RECORDS)
        written.append((tmp_path / f"{k}{ending}").read_bytes())
    assert written[0] == written[1]


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_text("before")
    with pytest.raises(AnalysisError, match="expected"):
        pictures.overlays(tmp_path / "p.png", IMAGES, RNG_MAPS[:1], "Attention")
    with pytest.raises(AnalysisError, match=r"\.png or \.svg"):
        curves(tmp_path / "p.jpg", RECORDS)
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match="cannot write"):
        curves(tmp_path / "file" / "p.png", RECORDS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "p.png"] and (tmp_path / "p.png").read_text() == "before"


def test_shown_undoes_the_normalisation() -> None:
    pixels = torch.rand(2, 3, 4, 5)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    x = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert np.allclose(pictures.shown(x, mean, std), pixels.permute(0, 2, 3, 1), atol=1e-6)
    assert pictures.shown(x + 9, mean, std).max() == 1


def test_nothing_to_draw_is_said() -> None:
    for draw in (curves, gram_over_steps, activations_over_steps, spectra_over_steps):
        with pytest.raises(AnalysisError, match="nothing to draw"):
            draw("x.png", {"other": [(0, 1.0)]})
    for wrong in (lambda: charts.confusion("x.png", [[1, 2]], ["a"]),
                  lambda: pictures.position_grid("x.png", np.ones((2, 2))),
                  lambda: ablation_plot("x.png", [Trial("p", None, 0, 0.5)])):
        with pytest.raises(AnalysisError):
            wrong()


def test_records_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "a": 3.0}\n{"step": 0, "a": 1, "b": "nan"}\n{"step": 5, "a": 4.0, "c": {"x": 1}}\n'
                    '{"step": 6, "a"')
    records = read_records(path)
    assert series(records, "a") == ([0.0, 5.0], [1.0, 4.0])
    assert series(records, "b") == series(records, "none") == ([], [])
    assert latest(records, "c") == {"x": 1} and latest(records, "none") is None
    for text in ("[1]\n", "no json\n", '{"a": 1}\n'):
        path.write_text('{"step": 0}\n' + text)
        with pytest.raises(AnalysisError, match="line 2"):
            read_records(path)
    with pytest.raises(AnalysisError, match="cannot read"):
        read_records(tmp_path / "none")


def test_series_by_block_smoothing_and_quantiles() -> None:
    assert list(by_block(RECORDS, "GramLowRank/", "T_over_Z_norm")) == ["block 2", "block 10"]
    assert smooth([1.0, 2, 3, 4], 2) == [1.0, 1.5, 2.5, 3.5]
    assert quantiles([1, 2, 1], [-1.0, 0.0, 1.0, 2.0], (0, 0.25, 0.5, 1)) == [-1.0, 0.0, 0.5, 2.0]


def test_the_baseline_is_paired_by_seed() -> None:
    found = {(lv.plan, lv.rank): lv for lv in levels(TRIALS)}
    assert list(found) == [("last", None), ("last", 4), ("last", 8), ("all", None), ("all", 8)]
    assert found["last", 8].gains == pytest.approx((0.08, 0.08)) and found["last", 8].gain_error == pytest.approx(0)
    assert found["last", 8].mean == pytest.approx(0.63) and found["last", 8].std == pytest.approx(0.1 / 2 ** 0.5)
    assert (found["all", 8].gain, found["all", 8].gain_error) == (pytest.approx(-0.1), None)
    unequal = levels([*TRIALS[2:4], Trial("last", 8, 0, 0.6), Trial("last", 8, 1, 0.9)])[1]
    assert unequal.gains == pytest.approx((0.1, 0.3)) and unequal.gain_error == pytest.approx(0.1)
    rows = {(r[0], r[1]): r[2:] for r in ablation_table(TRIALS).rows}
    assert rows["last", "4"] == ["2", "59.0 % ± 7.1", "+4.0 ± 0.0", "2 of 2"]
    assert rows["last", "off"] == ["2", "55.0 % ± 7.1", "–", "–"] and rows["all", "8"] == ["1", "30.0 %", "-10.0", "0 of 1"]
    assert trials_from([{"plan": "p", "rank": None, "seed": 1, "accuracy": 0.5, "more": ""}]) == [Trial("p", None, 1, 0.5)]
    for wrong in ([TRIALS[0], TRIALS[0]], [Trial("p", 8, 0, 50.0)], []):
        with pytest.raises(AnalysisError):
            levels(wrong)


def test_results_side_by_side() -> None:
    assert [r[:5] for r in results_table(RESULTS).rows][:2] == [["a", "head", "2", "55.0 % ± 7.1", "400,000"],
                                                               ["a", "full", "2", "55.0 % ± 7.1", "1,900,000"]]
    with pytest.raises(AnalysisError, match="RAM"):
        results_table([*RESULTS, Result("a", "head", 2, 0.5, 1)])


def test_tables_for_terminal_and_markdown() -> None:
    table = Table("T", ["name", "value"], [["a|b", "1"], ["[red]c", "2"]])
    assert table.markdown() == "| name | value |\n| --- | ---: |\n| a\\|b | 1 |\n| [red]c | 2 |\n"
    assert table.rich().row_count == 2


def test_analyze_spectrum_measures_saves_and_draws(tmp_path: Path) -> None:
    model = small_model()
    config = SpectrumConfig(targets=["attn.qkv", "head"], split_qkv=True, topk=2, vectors=True, dtype="float64")
    result = analyze_spectrum(model, config)
    assert [s.name for s in result.found] == [*(f"blocks.{i}.attn.qkv.{p}" for i in range(3) for p in "qkv"), "head"]
    result.save(tmp_path / "s.json", tmp_path / "s.npz")
    saved = json.loads((tmp_path / "s.json").read_text())["matrices"]
    q = model.blocks[1].attn.qkv.weight.detach()[:16].double()
    values = torch.linalg.svdvals(q).numpy()
    assert np.allclose(saved["blocks.1.attn.qkv.q"]["first"]["values"], values[:2])
    assert np.allclose(saved["blocks.1.attn.qkv.q"]["last"]["values"], values[[15, 14]])
    with np.load(tmp_path / "s.npz") as arrays:
        name = "blocks.1.attn.qkv.q"
        assert arrays[f"{name}/index"].tolist() == [0, 1, 15, 14] and np.allclose(arrays[f"{name}/values"], values)
        for k, i in enumerate((0, 1, 15, 14)):
            assert np.allclose(q.numpy() @ arrays[f"{name}/v"][:, k], values[i] * arrays[f"{name}/u"][:, k])
        result.save(tmp_path / "s.json", tmp_path / "s.pt")
        loaded = torch.load(tmp_path / "s.pt", weights_only=True)
        assert set(loaded) == set(arrays.files) and np.array_equal(loaded[f"{name}/u"], arrays[f"{name}/u"])
    assert [r[0] for r in result.table().rows] == [s.name for s in result.found]
    assert [r[:2] for r in result.type_table().rows] == [*([f"attn.qkv.{p}", "3"] for p in "qkv"), ["head", "1"]]
    assert [p.name for p in result.draw(tmp_path)] == ["spectrum.png", "spectrum_by_layer.png"]
    with pytest.raises(AnalysisError, match=r"\.npz or \.pt"):
        result.save(tmp_path / "t.json", tmp_path / "s.bin")
    assert not (tmp_path / "t.json").exists()
    whole = analyze_spectrum(model, SpectrumConfig(targets=["head"], full=True)).as_json()["matrices"]["head"]
    assert len(whole["values"]) == 3 and whole["rank"] == 3


def test_a_singular_matrix_is_valid_json(tmp_path: Path) -> None:
    model = small_model()
    model.head.weight.data.zero_()
    result = analyze_spectrum(model, SpectrumConfig(targets=["head"]))
    result.save(tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail)
    assert found["matrices"]["head"]["condition"] is None


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="interval"):
        parse(SpectrumConfig, {"full": True, "interval": 2})
    with pytest.raises(AnalysisError, match="split_qkv"):
        analyze_spectrum(small_model(), SpectrumConfig(targets=["mlp.fc1"], split_qkv=True))


def test_analyze_artifacts_measures_saves_and_draws(tmp_path: Path) -> None:
    model, x = small_model(), torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    result = analyze_artifacts(model, x, ArtifactsConfig(grid_images=3, batch=2))
    assert result.statistics.norms.shape == (5, 4) and result.attention.shape == (3, 3, 2, 2)
    whole = analyze_artifacts(model, x)
    assert np.allclose(result.statistics.norms, whole.statistics.norms, rtol=1e-5) and len(whole.attention) == 5
    result.save(tmp_path / "a.json", tmp_path / "a.npz")
    saved = json.loads((tmp_path / "a.json").read_text())
    assert (saved["images"], saved["tokens"], saved["l2_norm_mean"]) == (5, 20, result.statistics.mean)
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["norms"], result.statistics.norms)
    drawn = result.draw(tmp_path, pictures.shown(x, (0.5,) * 3, (0.5,) * 3), [str(i) for i in range(5)])
    assert [p.name for p in drawn] == ["norm_histogram.png", "cls_attention_by_layer.png"] and all(p.exists() for p in drawn)
    assert ["images", "5"] in result.table().rows
    for wrong in (lambda: analyze_artifacts(model, x[:0]), lambda: result.save(tmp_path / "a.json", tmp_path / "a.pt")):
        with pytest.raises(AnalysisError):
            wrong()
