"""Variants, Gram forms and short names: by their formulas, no-ops at the start, checkpoints there and back, plain timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from algorithm.config import make_run_config
from algorithm.errors import CheckpointError, ConfigError, ModelError, PlanError, WeightsError
from algorithm.models import GramConfig, LoraConfig, ModelConfig, build_model, token_count
from algorithm.models.additions import idle_additions
from algorithm.models.sources import SHORT_NAMES
from algorithm.models.torchvision_shim import timm
from algorithm.schema import parse
from algorithm.sparse import PlanConfig, candidate_plans, resolve_plan
from algorithm.training import export_timm, save_model
from tests.algorithm.conftest import SMALL, small_model

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TIMM = {"img_size": 16, "patch_size": 8, "num_classes": 3, "depth": 3, "embed_dim": 16, "num_heads": 2}
HEAD_GRAM = {"enabled": True, "form": "head", "rank": 2}
EVERYTHING: dict[str, dict[str, Any]] = {
    "vanilla": {}, "register": {"variant": "register"}, "gated": {"variant": "gated"},
    "Gram": {"gram": {"enabled": True, "rank": 2}}, "Gram by head": {"gram": HEAD_GRAM},
    "all at once": {"variant": "gated", "gram": {**HEAD_GRAM, "blocks": [1, 2]}, "lora": {"enabled": True, "rank": 2}},
    "registers with both": {"variant": "register", "registers": 2, "gram": {"enabled": True, "rank": 2},
                            "lora": {"enabled": True, "rank": 2}}}


def parent_forward(attention: nn.Module, x: Tensor) -> Tensor:
    """What timm's own class computes."""
    return next(c for c in type(attention).__mro__ if c.__module__.startswith("timm")).forward(attention, x)  # type: ignore[no-any-return]


# -- short names and the names of the guides ---------------------------------------------------------------------
@pytest.mark.parametrize("short", SHORT_NAMES)
def test_a_short_name_is_a_vit_of_timm_with_the_sizes_of_the_table(short: str) -> None:
    vit = SHORT_NAMES[short]
    assert ModelConfig(name=short, weights="none").img_size == vit.img_size
    assert ModelConfig(name=short, img_size=32).img_size == 32
    with torch.device("meta"):
        model = timm.create_model(vit.timm)
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == vit[3:]
    assert model.patch_embed.patch_size == (vit.patch_size, vit.patch_size)
    assert model.default_cfg["input_size"] == (3, vit.img_size, vit.img_size)


def test_a_short_name_builds_the_same_model() -> None:
    extra = {"depth": 1}
    assert isinstance(build_model(ModelConfig(name="testing", weights="none", extra=extra)), timm.models.VisionTransformer)
    by_short, by_name = (build_model(ModelConfig(name=n, img_size=32, weights="none", extra=extra, head_init="timm"))
                         for n in ("ti16", "vit_tiny_patch16_224"))
    assert all(torch.equal(a, b) for a, b in zip(by_short.state_dict().values(), by_name.state_dict().values(), strict=True))


def test_the_guides_names_of_gram_are_read_and_contradictions_refused() -> None:
    model = make_run_config(overrides=["model.use_gram_lowrank_mhsa=true", "model.gram_lowrank_rank=8",
                                       "model.gram_lowrank_a_init_std=0.5"]).model
    assert (model.gram.enabled, model.gram.rank, model.gram.std) == (True, 8, 0.5)
    assert "use_gram_lowrank_mhsa" not in model.model_dump()
    assert GramConfig().rank == 64 and GramConfig().std == 1e-2
    assert ModelConfig(gram={"rank": 4}, gram_lowrank_rank=4).gram.rank == 4
    with pytest.raises(ConfigError, match=r"model.gram_lowrank_rank=8 is another name of model.gram.rank, .* given as 4"):
        make_run_config(overrides=["model.gram_lowrank_rank=8", "model.gram.rank=4"])
    with pytest.raises(ConfigError, match=r"gram_lowrank_rank=8 is another name of gram.rank"):
        parse(ModelConfig, {"gram": GramConfig(rank=4), "gram_lowrank_rank": 8})
    with pytest.raises(ConfigError, match="nearest known: 'gram_lowrank_rank'"):
        make_run_config(overrides=["model.gram_lowrank_rang=8"])
    with pytest.raises(ConfigError, match="the Gram residual is off"):
        make_run_config(overrides=["model.use_gram_lowrank_mhsa=false", "model.gram_lowrank_rank=8"])


def test_a_later_layer_wins_under_either_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: {use_gram_lowrank_mhsa: true, gram_lowrank_rank: 8}")
    assert make_run_config([tmp_path / "a.yaml"], ["model.gram.rank=4"]).model.gram.rank == 4
    assert not make_run_config([tmp_path / "a.yaml"], ["model.use_gram_lowrank_mhsa=false"]).model.gram.enabled


# -- the formulas ------------------------------------------------------------------------------------------------
def test_the_head_form_equals_the_explicit_n_by_n_formula() -> None:
    attention = small_model(gram=GramConfig(**HEAD_GRAM)).double().blocks[1].attn
    assert attention.gram_a.shape == (2, 5, 2) and attention.gram_b.shape == (2, 2, 8)
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    heads = []
    for h in range(2):
        part = x[..., 8 * h:8 * h + 8]
        heads.append(part @ part.transpose(1, 2) / 8 @ (attention.gram_a[h] @ attention.gram_b[h]))
    torch.testing.assert_close(attention(x), parent_forward(attention, x) + torch.cat(heads, -1), rtol=1e-12, atol=1e-14)


def test_one_head_is_the_token_form() -> None:
    extra = {**SMALL["extra"], "num_heads": 1}
    token, head = (small_model(extra=extra, gram=GramConfig(enabled=True, form=f, rank=2)) for f in ("token", "head"))
    state = {k: v[0] if "gram" in k else v for k, v in head.state_dict().items()}
    token.load_state_dict(state)
    torch.testing.assert_close(token(X), head(X))


@pytest.mark.parametrize("fused", [True, False])
def test_the_gate_has_its_formula_before_the_projection(fused: bool) -> None:
    model = small_model(variant="gated").double()
    attention = model.blocks[1].attn
    attention.fused_attn = fused
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k, v = attention.qkv(x).reshape(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    heads = (torch.softmax(q @ k.transpose(-2, -1) / 8 ** 0.5, -1) @ v).transpose(1, 2).reshape(2, 5, 16)
    gate = 2 / (1 + torch.exp(-(x @ attention.gate_w.T + attention.gate_b)))
    torch.testing.assert_close(attention(x), attention.proj(heads * gate), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["gated", "Gram by head", "all at once"])
def test_additions_start_as_no_ops_and_learn(name: str) -> None:
    plain, model = build_model(ModelConfig(**SMALL)), build_model(ModelConfig(**{**SMALL, **EVERYTHING[name]}))
    assert torch.equal(plain(X), model(X))
    assert set(dict(plain.named_parameters())) < set(dict(model.named_parameters()))
    model(X).square().sum().backward()
    for parameter, value in model.named_parameters():
        if parameter.endswith(("gram_b", "gate_w", "gate_b", "lora_b")):
            assert not value.any() and value.grad is not None and value.grad.any(), parameter


def test_the_gate_fits_a_rotary_vit() -> None:
    small = {"name": "vit_small_patch16_dinov3", "img_size": 32, "weights": "none", "num_classes": 3, "head_init": "timm",
             "gram": {"enabled": False}, "extra": {"depth": 1, "embed_dim": 16, "num_heads": 2}}
    plain, gated = build_model(ModelConfig(**small)), build_model(ModelConfig(**small, variant="gated"))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(plain(x), gated(x))
    with torch.no_grad():
        plain.blocks[0].attn.proj.weight.mul_(2 / (1 + torch.exp(torch.tensor(-0.3))))
        gated.blocks[0].attn.gate_b.fill_(0.3)
        for model in (plain, gated):
            model.blocks[0].gamma_1.fill_(1.0)
    torch.testing.assert_close(plain(x), gated(x))
    assert not torch.equal(plain(x), build_model(ModelConfig(**small))(x))


def test_registers_are_timms() -> None:
    model = small_model(variant="register")
    assert model.reg_token.shape == (1, 4, 16) and token_count(model) == 9 and model.num_prefix_tokens == 5
    reference = timm.create_model("vit_tiny_patch16_224", reg_tokens=4, **TIMM).eval()
    reference.load_state_dict(model.state_dict())
    assert torch.equal(model(X), reference(X))
    eva = build_model(ModelConfig(name="eva02_tiny_patch14_224", img_size=28, weights="none", variant="register",
                                  registers=2, gram={"enabled": False},
                                  extra={"depth": 1, "embed_dim": 16, "num_heads": 2}))
    assert eva.reg_token.shape == (1, 2, 16)


def test_frozen_no_ops_are_skipped_and_come_back() -> None:
    model = build_model(ModelConfig(**{**SMALL, **EVERYTHING["all at once"]}))
    attention = model.blocks[2].attn
    with idle_additions(model) as names:
        assert {"blocks.0.attn.gate", "blocks.2.attn.gate", "blocks.2.attn.gram", "blocks.2.attn.qkv.lora"} <= set(names)
        assert attention.gate is None and isinstance(attention.norm, nn.Identity)
        assert set(model.state_dict()) == set(build_model(model.vit_config).state_dict())
    assert attention.gate is not None
    with idle_additions(model, ["blocks.2.attn.gate_w", "blocks.2.attn.gram_a"]) as names:
        assert "blocks.1.attn.gate" in names and not {"blocks.2.attn.gate", "blocks.2.attn.gram"} & set(names)
    with torch.no_grad():
        attention.gate_b[3] = 1e-3
    with idle_additions(model) as names:
        assert "blocks.2.attn.gate" not in names and "blocks.1.attn.gate" in names


# -- refusals ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("changes", "match"), [
    ({"registers": 2}, "registers=2 has no effect in the variant vanilla: set variant=register"),
    ({"variant": "register", "extra": {"reg_tokens": 2}}, "extra.reg_tokens and variant=register both give register tokens"),
    ({"variant": "gate"}, "'vanilla', 'register' or 'gated'"),
    ({"gram": {"enabled": False, "form": "head"}}, "gram.form is given, but the Gram residual is off"),
])
def test_what_has_no_effect_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse(ModelConfig, changes)


@pytest.mark.parametrize(("changes", "match"), [
    ({"name": "vit_relpos_small_patch16_224", "variant": "gated"}, "takes no output gate: its RelPosAttention"),
    ({"name": "vit_relpos_small_patch16_224", "variant": "register"}, "takes no register tokens: set model.variant=vanilla"),
    ({"name": "deit_tiny_distilled_patch16_224", "variant": "register"}, "takes no register tokens"),
    ({"name": "vit_small_patch16_18x2_224", "variant": "gated"}, "blocks.0 of the model, a ParallelThingsBlock, has no one"),
    ({"name": "vit_small_patch16_18x2_224", "gram": {"enabled": True}}, r"for the Gram residual: set .*--no-gram"),
    ({"extra": {"depth": 1, "embed_dim": 20, "num_heads": 4, "attn_layer": "diff"}, "variant": "gated"}, "no output gate"),
])
def test_a_model_without_the_place_is_refused_by_name(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        build_model(ModelConfig(**{**SMALL, **changes}))
    assert "\n" not in str(caught.value)


# -- checkpoints ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", EVERYTHING)
def test_a_checkpoint_comes_back_whole(name: str, tmp_path: Path) -> None:
    model = small_model(**EVERYTHING[name])
    save_model(model, tmp_path / "w.safetensors")
    again = build_model(ModelConfig(**{**SMALL, **EVERYTHING[name], "weights": str(tmp_path / "w.safetensors")}))
    assert torch.equal(model(X), again(X)) and not torch.equal(model(X), build_model(model.vit_config)(X))


@pytest.mark.parametrize("name", EVERYTHING)
def test_plain_timm_loads_an_export_and_computes_the_same(name: str, tmp_path: Path) -> None:
    model = build_model(ModelConfig(**{**SMALL, **EVERYTHING[name]}))
    export_timm(model, tmp_path / "t.safetensors")
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        arguments = json.loads(file.metadata()["timm"])
    reference = timm.create_model(**arguments).eval()
    reference.load_state_dict(load_file(tmp_path / "t.safetensors"), strict=True)
    assert torch.equal(model(X), reference(X))


@pytest.mark.parametrize("part", ["gram_b", "lora_b", "gate_w", "gate_b"])
def test_an_addition_that_does_something_is_not_lost_in_silence(part: str, tmp_path: Path) -> None:
    model = build_model(ModelConfig(**{**SMALL, **EVERYTHING["all at once"]}))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith(part)).view(-1)[3] = 0.5
    with pytest.raises(CheckpointError, match=rf"timm has no place for blocks\.\d\.attn\..*{part}, which is trained"):
        export_timm(model, tmp_path / "t.safetensors")
    assert not (tmp_path / "t.safetensors").exists()
    save_model(model, tmp_path / "w.safetensors")
    option = {"gram_b": "model.gram.form=head model.gram.rank=2", "lora_b": "model.lora.rank=2"}
    with pytest.raises(WeightsError, match=option.get(part, "set model.variant=gated")):
        build_model(ModelConfig(**{**SMALL, "weights": str(tmp_path / "w.safetensors")}))


@pytest.mark.parametrize("name", [n for n in EVERYTHING if "register" not in n])
def test_plain_weights_load_into_every_variant_and_mean_the_same(name: str, tmp_path: Path) -> None:
    plain = small_model()
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    model = build_model(ModelConfig(**{**SMALL, **EVERYTHING[name], "weights": str(tmp_path / "w.safetensors")}))
    assert torch.equal(plain(X), model(X))


@pytest.mark.parametrize("size", [16, 32])
def test_plain_weights_load_into_a_model_with_registers(size: int, tmp_path: Path) -> None:
    plain = small_model()
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    changes = {"img_size": size, "weights": str(tmp_path / "w.safetensors")}
    larger = build_model(ModelConfig(**{**SMALL, **changes}))
    model = build_model(ModelConfig(**{**SMALL, **changes, "variant": "register", "registers": 3}))
    assert torch.equal(model.pos_embed[:, :1], larger.pos_embed[:, :1]) and not model.pos_embed[:, 1:4].any()
    assert torch.equal(model.pos_embed[:, 4:], larger.pos_embed[:, 1:])
    fresh = build_model(ModelConfig(**{**SMALL, "img_size": size, "variant": "register", "registers": 3}))
    assert torch.equal(model.reg_token, fresh.reg_token)
    with torch.no_grad():       # where registers cannot be attended to, nothing has changed: keys of minus infinity
        x = torch.randn(1, 3, size, size)
        hidden = model._pos_embed(model.patch_embed(x))
        mask = torch.zeros(1, 1, 1, hidden.shape[1])
        mask[..., 1:4] = float("-inf")
        for block in model.blocks:
            hidden = block(hidden, attn_mask=mask)
        torch.testing.assert_close(model.forward_head(model.norm(hidden)), larger(x))


@pytest.mark.parametrize(("there", "here", "found"), [(4, None, "the model has none"), (2, 4, "the model has 4")])
def test_other_registers_are_refused_with_the_option(there: int, here: int | None, found: str, tmp_path: Path) -> None:
    save_model(small_model(variant="register", registers=there), tmp_path / "w.safetensors")
    changes = {} if here is None else {"variant": "register", "registers": here}
    with pytest.raises(WeightsError, match=f"{there} register tokens, {found}: set .* model.registers={there}"):
        build_model(ModelConfig(**{**SMALL, **changes, "weights": str(tmp_path / "w.safetensors")}))


# -- drop path -----------------------------------------------------------------------------------------------------
def test_drop_path_grows_with_depth_and_does_nothing_in_evaluation() -> None:
    model = build_model(ModelConfig(**SMALL), drop_path=0.2)
    assert [getattr(b.drop_path1, "drop_prob", 0.0) for b in model.blocks] == pytest.approx([0.0, 0.1, 0.2])
    assert torch.equal(model(X), build_model(ModelConfig(**SMALL))(X))
    with pytest.raises(ModelError, match=r"drop_path=1.0 is not a share"):
        build_model(ModelConfig(**SMALL), drop_path=1.0)


def test_lora_config_is_untouched_by_the_variant() -> None:
    model = small_model(variant="gated", lora=LoraConfig(enabled=True, rank=2, targets=["attn.proj"]))
    assert [n for n, _ in model.named_parameters() if "lora" in n][:2] == [
        "blocks.0.attn.proj.lora_a", "blocks.0.attn.proj.lora_b"]


def test_a_model_for_any_image_size_is_made_for_its_one() -> None:
    config = {"name": "testing", "img_size": 32, "weights": "none", "head_init": "timm", "extra": {"depth": 1}}
    fixed = build_model(ModelConfig(**config))
    dynamic = build_model(ModelConfig(**{**config, "extra": {"depth": 1, "dynamic_img_size": True}}))
    assert (fixed.dynamic_img_size, dynamic.dynamic_img_size) == (False, True)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(fixed(x), dynamic(x))


def test_a_rule_trains_the_gates_of_the_last_blocks() -> None:
    model = small_model(variant="gated")
    plan = resolve_plan(PlanConfig(n_bias_update=0, n_gate_update=2), model)
    assert [n for n in plan.parameters if "head" not in n] == [f"blocks.{i}.attn.gate_{p}" for i in (1, 2) for p in "wb"]
    assert plan.name == "gate of the last 2 blocks, head"
    assert not any("gate" in n for n in resolve_plan(PlanConfig(), model).parameters)
    with pytest.raises(PlanError, match="n_gate_update=4, but the model has 3 blocks"):
        resolve_plan(PlanConfig(n_gate_update=4), model)
    with pytest.raises(PlanError, match=r"set model.variant=gated"):
        resolve_plan(PlanConfig(n_gate_update=1), small_model())
    assert len(candidate_plans(small_model(), [{"n_gate_update": "1..all"}, {"n_bias_update": 1}])) == 1
