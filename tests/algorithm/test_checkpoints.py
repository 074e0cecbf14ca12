"""What a run writes, a run reads: checkpoints with additions, plans; and what does not fit is refused with the remedy."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from algorithm.errors import CheckpointError, ModelError, WeightsError
from algorithm.models import GramConfig, LoraConfig, ModelConfig, build_model
from algorithm.sparse import PlanConfig, resolve_plan
from algorithm.training import TrainConfig, finetune, read_safetensors, save_model, write_safetensors
from tests.algorithm.conftest import SMALL, small_data, small_model

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
GRAM = GramConfig(rank=2)
LORA = LoraConfig(enabled=True, rank=2, alpha=6.0, targets=["attn.qkv", "mlp.fc1", "head"])


def built(path: Path | str, **changes: Any) -> nn.Module:
    return build_model(ModelConfig(**{**SMALL, "head_init": "zeros", **changes, "weights": str(path)}))


def trained(path: Path, rule: dict[str, Any], **changes: Any) -> nn.Module:
    """A model of these changes, some steps of training, its checkpoint as a run writes it."""
    model = build_model(ModelConfig(**{**SMALL, **changes}))
    finetune(model, resolve_plan(PlanConfig(**rule), model), small_data(), TrainConfig(lr=0.05, epochs=2))
    save_model(model, path, accuracy=0.5)
    return model


@pytest.mark.parametrize(("changes", "rule"), [
    ({"gram": GRAM}, {"n_gram_update": "all"}), ({"lora": LORA}, {"n_lora_update": "all"}),
    ({"gram": GRAM, "lora": LORA}, {"enable_backward_config": False}), ({"gram": GramConfig(rank=2, blocks=[1])}, {
        "n_gram_update": "all"}), ({"pool": "avg"}, {})])
def test_a_checkpoint_of_a_run_is_weights_of_the_next(tmp_path: Path, changes: dict[str, Any], rule: dict[str, Any]) -> None:
    model = trained(tmp_path / "w.safetensors", rule, **changes)
    again = built(tmp_path / "w.safetensors", **changes)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert torch.equal(model(X), again(X))
    if rule:
        assert any(bool(v.any()) for k, v in again.state_dict().items() if k.endswith(("gram_b", "lora_b")))


def test_trained_additions_without_a_place_are_refused_with_the_options_to_set(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(WeightsError, match=match) as caught:
            built(path, **changes)
        assert "\n" not in str(caught.value)

    trained(path, {"n_gram_update": "all"}, gram=GRAM)
    refused(r"blocks\.\d\.attn\.gram_b .*set model.gram.enabled=true model.gram.rank=2")
    refused(r"set model.gram.enabled=true model.gram.rank=2", gram=GramConfig(rank=3))
    refused(r"set model.gram.enabled=true model.gram.rank=2", gram=GramConfig(rank=2, blocks=[0]))
    refused(r"trained on 5 tokens, the model has 17", gram=GRAM, img_size=32)
    trained(path, {"n_lora_update": "all"}, lora=LORA)
    refused(r"set model.lora.enabled=true model.lora.rank=2 model.lora.targets=\[attn.qkv,head,mlp.fc1\]")
    refused(r"trained with model.lora.alpha=6: set it", lora=LORA.model_copy(update={"alpha": None}))
    state = load_file(path)
    del state["blocks.0.attn.qkv.lora_a"]
    save_file(state, path)
    refused(r"blocks.0.attn.qkv.lora_a is missing beside blocks.0.attn.qkv.lora_b", lora=LORA)


def test_additions_that_do_nothing_are_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    model = trained(path, {"n_bias_update": "all"}, gram=GRAM, lora=LORA)
    for changes in ({}, {"gram": GramConfig(rank=3)}, {"lora": LoraConfig(enabled=True, rank=1)}, {"gram": GRAM}):
        again = built(path, **changes)
        assert torch.equal(again(X), model(X))
    assert built(path, gram=GRAM, img_size=32).pos_embed.shape == (1, 17, 16)


def test_additions_that_the_checkpoint_lacks_start_as_no_ops(tmp_path: Path) -> None:
    model = trained(tmp_path / "w.safetensors", {"n_bias_update": "all"})
    again = built(tmp_path / "w.safetensors", gram=GRAM, lora=LORA)
    assert torch.equal(again(X), model(X)) and bool(again.blocks[0].attn.gram_a.any())


def test_another_class_count_keeps_all_but_the_head(tmp_path: Path) -> None:
    model = trained(tmp_path / "w.safetensors", {"enable_backward_config": False}, gram=GRAM, lora=LORA)
    again = built(tmp_path / "w.safetensors", gram=GRAM, lora=LORA, num_classes=4)
    ours, theirs = again.state_dict(), model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if not k.startswith("head."))
    assert ours["head.weight"].shape == (4, 16) and not ours["head.weight"].any() and not ours["head.lora_b"].any()


class _Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def test_code_inside_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": small_model().state_dict(), "x": _Evil(mark)}, tmp_path / "a.pth")
    (tmp_path / "b.bin").write_bytes(pickle.dumps(_Evil(mark)))
    torch.save([1, 2], tmp_path / "c.pth")
    for name in ("a.pth", "b.bin", "c.pth"):
        with pytest.raises(WeightsError, match=name) as caught:
            built(tmp_path / name)
        assert "\n" not in str(caught.value) and not mark.exists()


def test_sizes_that_patches_do_not_fill(tmp_path: Path) -> None:
    model = small_model(img_size=20)  # 2 x 2 patches of 8: the last 4 pixels are not seen
    x = torch.randn(1, 3, 20, 20)
    assert torch.equal(model(x), model(torch.nn.functional.pad(x[..., :16, :16], (0, 4, 0, 4))))
    with pytest.raises(ModelError, match=r"model.img_size=7 is smaller than one patch"):
        small_model(img_size=7)
    with pytest.raises(ModelError, match=r"model.lora.rank=4 is more than the smaller side of 'head', 3"):
        small_model(lora=LoraConfig(enabled=True, rank=4, targets=["head"]))
    with pytest.raises(ModelError, match="which another target names already"):
        small_model(lora=LoraConfig(enabled=True, rank=2, targets=["attn.qkv", "qkv"]))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
                                   SafetensorError('Error while serializing: I/O error: No space left on device')])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    error: Exception) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr("algorithm.training.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*x.safetensors: .*No space left on device"):
        write_safetensors(tmp_path / "x.safetensors", {"w": torch.zeros(3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_truncated_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"w": torch.zeros(100)}, {"a": 1})
    whole = path.read_bytes()
    for cut in (0, 3, 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="cannot read") as caught:
            read_safetensors(path)
        assert "\n" not in str(caught.value)
