"""The configuration of this project's ancestor (MIT's tiny-training, grown to a ViT), translated key by key. Torch-free.

Its files have the sections `data_provider`, `run_config`, `net_config` and `backward_config`. Each key that has a meaning
here becomes the key that means the same; a value that switches something off that is not here sets nothing; anything else
is refused by name with what to do instead. Two kinds of configuration are read so: the main job's (`RunConfig`, batch-1 SGD
as on the device) and `python -m algorithm train`'s (`Experiment`).

`backward_config` counts layers. Where the ancestor's own programs differ from each other, or from what they say, this is
what is read:

- A *layer* is a matrix layer of the types that `vit_layer_types` names (null: all three): the attention's qkv and proj, the
  MLP's fc1 and fc2, the head. `manual_weight_idx` numbers those layers from 0, in the model's order; with all types that is
  how the ancestor numbers its linears.
- `n_bias_update`: the biases of the *last* n of them (as in its convolutional nets; its ViT code compares with n from the
  front). `n_weight_update`: the matrices of the last n; null or all: as many as n_bias_update, never more. (Its ViT code
  takes every layer of the named types, and then drops those whose bias is not updated.)
- `weight_update_ratio`: the share of a matrix's input features, rounded down; one for all, or one a layer.
- LayerNorms, embeddings and the patch convolution are frozen: they are no layers. (Its ViT code leaves their gradients on,
  and its memory figures out.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from algorithm.errors import ConfigError
from algorithm.schema import Section, nearest
from algorithm.sparse.config import PlanConfig

Tree = dict[str, Any]
OFF = (None, 0)  # and false, which equals 0
FLOAT = "the trained weights are float32"
DEVICE = "the device takes one image a step, without decay or augmentation"
RECIPE = "python -m algorithm train has it"


@dataclass(frozen=True)
class Key:
    """What one key of the ancestor becomes.

    run, recipe: the keys here (comma separated), for the main job and for training by recipe; "" = it has no meaning there.
    off: values that set nothing, because nothing is what they ask for. instead: what to do for any other. value: to convert.
    """

    run: str = ""
    recipe: str = ""
    off: tuple[Any, ...] = (None,)
    instead: str = ""
    value: Callable[[Any], Any] = lambda v: v


def _only_recipe(recipe: str, off: tuple[Any, ...] = OFF, why: str = DEVICE) -> Key:
    return Key(recipe=recipe, off=off, instead=f"{why}: leave it out; {RECIPE}")


_DATASETS = {"image_folder": "imagefolder"}
_TOP = {
    "run_dir": Key("output.dir", "output.dir"),
    "manual_seed": Key("train.seed,data.seed,model.seed", "recipe.seed,data.seed,model.seed"),
    "evaluate": Key(off=OFF, instead="python -m algorithm validate evaluates a checkpoint"),
    "ray_tune": Key(off=OFF, instead="python -m algorithm ablate compares plans, ranks and seeds"),
    "resume": Key(off=(None, 0, 1), instead="0 or 1: the same command goes on by itself (--fresh starts again)"),
}
_SECTIONS: dict[str, dict[str, Key]] = {
    "data_provider": {
        "dataset": Key("data.name", "data.name", value=lambda v: _DATASETS.get(v, v)),
        "root": Key("data.data_root", "data.data_root"),
        "image_size": Key("model.img_size", "model.img_size"),
        "num_classes": Key("model.num_classes", "model.num_classes"),
        "base_batch_size": Key(recipe="recipe.batch", off=(None, 1),
                               instead=f"{DEVICE}: write 1, with a rate for it; {RECIPE}"),
        "n_worker": _only_recipe("recipe.workers", why="the few images of a run stand in memory"),
        "resize_scale": Key(recipe="recipe.augment.scale", off=(None, 1), value=lambda v: [v, 1.0],
                            instead=f"{DEVICE}: leave it out; {RECIPE}"),
        "color_aug": _only_recipe("recipe.augment.color_jitter"),
    },
    "run_config": {
        "n_epochs": Key("train.epochs", "recipe.schedule.epochs"),
        "warmup_lr": _only_recipe("recipe.schedule.warmup_lr", why="the warm-up begins near 0"),
        "final_lr": Key("train.min_lr", "recipe.schedule.min_lr"),
        "lr_step_size": _only_recipe("recipe.schedule.decay_epochs", (None,), "the learning rate falls in no steps"),
        "lr_step_gamma": _only_recipe("recipe.schedule.decay_rate", (None,), "the learning rate falls in no steps"),
        "weight_decay": _only_recipe("recipe.optim.weight_decay"),
        "bias_only": Key(off=OFF, instead="write backward_config with n_bias_update: all, n_weight_update: 0"),
        "fc_only": Key(off=OFF, instead="write backward_config with vit_layer_types: [head], n_bias_update: 1"),
        "fc_lr10": Key(off=OFF, instead="there is one learning rate for all: leave it out"),
        "eval_per_epochs": Key(off=(None,), instead="the main job evaluates before and after, a recipe every epoch or "
                               "recipe.eval_every updates: leave it out"),
        "grid_output": Key(instead="python -m algorithm ablate compares plans, ranks and seeds"),
        "grid_ckpt_path": Key(instead="name the checkpoint as model.weights (--weights)"),
        "n_block_update": Key(off=(None, -1), instead="count blocks with plan.rule.n_weight_update (count: blocks)"),
        "optimizer_params": Key(instead="set train.momentum, or recipe.optim"),
    },
    "net_config": {
        "net_name": Key("model.name", "model.name"),
        "model_type": Key(off=(None, "fp"), instead=f"{FLOAT}: write fp"),
        "pretrained": Key("model.weights", "model.weights", value=lambda v: "timm" if v else "none"),
        "cls_head": Key(off=(None, "linear"), instead="the head is linear"),
        "dropout": Key(off=OFF, instead="the device trains without dropout: write 0"),
        "mcu_head_type": Key(off=(None, "fp"), instead=f"{FLOAT}, the head's too: write fp"),
    },
    "backward_config": {
        "quantize_gradient": Key(off=OFF, instead="gradients are float32: write 0"),
        "freeze_fc": Key(off=OFF, instead="leave head out of vit_layer_types"),
        "train_scale": Key(off=OFF, instead="there are no scales, the weights are float32: write 0"),
        "pw1_weight_only": Key(off=OFF, instead="a ViT has no pointwise convolutions: name the layers by vit_layer_types or "
                               "manual_weight_idx"),
    },
}
_RULE = ("enable_backward_config", "n_bias_update", "n_weight_update", "manual_weight_idx", "vit_layer_types",
         "weight_update_ratio", "weight_select_criteria")
_RATE = ("base_lr", "bs256_lr", "warmup_epochs", "lr_schedule_name", "optimizer_name", "no_wd_keys")  # read together
_NO_DECAY = {"norm", "bias", "pos_embed", "cls_token"}
_SGD = {"sgd": 0.9, "sgd_nomom": 0.0}  # its momentum, without Nesterov's
NAMES = (*_TOP, *_SECTIONS)


def translate(raw: Tree, root: type[Section], where: str) -> Tree:
    """A configuration file that may have the ancestor's keys -> the same in the sections of `root`.

    What has none is returned as it is. Own sections may stand beside; they win over what the ancestor only implies (no
    pretrained weights, no Gram residual) and may not contradict what is written. Raises ConfigError.
    """
    old = {k: v for k, v in raw.items() if k in NAMES}
    if not old:
        return raw
    recipe = "recipe" in root.model_fields
    for section in _SECTIONS:
        if not isinstance(old.get(section, {}), dict):
            raise ConfigError(f"{section!r} is a section of keys, found {str(old[section])[:40]!r} in {where}")
    out, refused = _by_table(old, recipe, where)
    refused += _rates(old.get("run_config", {}), old.get("data_provider", {}), recipe, out)
    if refused:
        names = "".join(f"; nor has {r.partition(' ')[0]}" for r in refused[1:])
        raise ConfigError(f"{where}: {refused[0]}{names}")
    tree: Tree = {}
    if "net_config" in old:
        tree = {"model": {"weights": "none", "head_init": "timm", "gram": {"enabled": False}}}
    own = {k: v for k, v in raw.items() if k not in NAMES}
    tree = _merged(tree, own, None)
    for dotted, value in out.items():
        tree = _merged(tree, _nested(dotted, value), where if _has(own, dotted) else None)
    if "backward_config" in old:
        rule = _rule(old["backward_config"], where)
        plan = rule if recipe else {"choose": "rule", "rule": rule}
        if taken := [k for k in own.get("plan", {}) if k != "nearest"]:
            raise ConfigError(f"{where} has both backward_config and plan.{taken[0]}: give the plan in one of them")
        tree = _merged(tree, {"plan": plan}, None)
    return tree


def _by_table(old: Tree, recipe: bool, where: str) -> tuple[Tree, list[str]]:
    """(dotted key here -> value, what is refused and why) of all keys that stand for themselves."""
    out: Tree = {}
    refused: list[str] = []
    groups = [("", _TOP, {k: v for k, v in old.items() if k in _TOP}),
              *((f"{s}.", table, old.get(s) or {}) for s, table in _SECTIONS.items())]
    for prefix, table, values in groups:
        together = {"run_config.": _RATE, "backward_config.": _RULE}.get(prefix, ())
        for key, value in values.items():
            if key in together:
                continue
            if key not in table:
                raise ConfigError(f"unknown key {prefix + key!r}{nearest(key, [*table, *together])} in {where}")
            rule = table[key]
            here = rule.recipe if recipe else rule.run
            if here and value is not None:
                out |= dict.fromkeys(here.split(","), rule.value(value))
            elif not here and value not in rule.off:
                refused.append(f"{prefix}{key} has no meaning here with the value {str(value)[:40]!r} ({rule.instead})")
    return out, refused


def _rates(run: Tree, data: Tree, recipe: bool, out: Tree) -> list[str]:
    """Optimiser and learning rate: into `out`; returns what is refused.

    The ancestor's rate is base_lr on each process, or bs256_lr for 256 images; of a step of `base_batch_size` images (64).
    Its warm-up counts epochs, the main job's is a share of them.
    """
    refused = []
    schedule, warm = run.get("lr_schedule_name"), run.get("warmup_epochs")
    if recipe:
        out |= {k: v for k, v in (("recipe.schedule.sched", schedule), ("recipe.schedule.warmup_epochs", warm))
                if v is not None}
    else:
        if schedule == "cosine":
            out["train.schedule"] = schedule
        elif schedule is not None:
            refused.append(f"run_config.lr_schedule_name has no meaning here with the value {str(schedule)[:40]!r} (write "
                           f"cosine, or leave it out for a constant rate; {RECIPE})")
        if warm and isinstance(warm, (int, float)) and isinstance(run.get("n_epochs"), int):
            out["train.warmup"] = warm / max(1, run["n_epochs"])
        elif warm:
            refused.append("run_config.warmup_epochs has no meaning here without n_epochs beside it (write both)")
    base, by256, name = run.get("base_lr"), run.get("bs256_lr"), run.get("optimizer_name")
    images = data.get("base_batch_size") or (64 if recipe else 1)
    if recipe and (rate := by256 if by256 is not None else base) is not None:
        out |= {"recipe.optim.base_lr": rate, "recipe.optim.lr_base_size": 256 if by256 is not None else images}
    elif not recipe and by256 is not None:
        out["train.lr"] = by256 / 256 if isinstance(by256, (int, float)) else by256
    elif not recipe and base is not None:
        out["train.lr"] = base
    if name in _SGD:
        out |= {"recipe.optim.opt": "momentum", "recipe.optim.momentum": _SGD[name]} if recipe else {
            "train.momentum": _SGD[name]}
    elif name in ("adam", "adamw") and recipe:
        out["recipe.optim.opt"] = name
    elif name is not None:
        known = f"one of {', '.join(_SGD)}{', adam, adamw' if recipe else ''}"
        refused.append(f"run_config.optimizer_name has no meaning here with the value {str(name)[:40]!r} (write {known}"
                       f"{'' if recipe else f'; {RECIPE}' if name in ('adam', 'adamw') else ''})")
    if recipe and run.get("lr_schedule_name") == "step":  # the ancestor's own step where none is given
        out.setdefault("recipe.schedule.decay_epochs", 30)
        out.setdefault("recipe.schedule.decay_rate", 0.1)
    keys = run.get("no_wd_keys")
    if recipe and keys is not None and set(keys) != _NO_DECAY:
        refused.append("run_config.no_wd_keys has no meaning here with other keys than timm's own, which get no decay: "
                       f"{', '.join(sorted(_NO_DECAY))} (leave it out)")
    return refused


def _rule(given: Tree, where: str) -> Tree:
    """`backward_config` -> the fields of a PlanConfig that counts layers; all of them, so that no earlier layer's stay."""
    def wrong(text: str) -> ConfigError:
        return ConfigError(f"{where}: backward_config.{text}")
    rule = {k: PlanConfig.model_fields[k].default for k in (*_RULE, "count", "layer_norm")}
    given = {k: v for k, v in given.items() if k in _RULE and v is not None}
    enabled = given.pop("enable_backward_config", None)
    if enabled not in (0, 1):
        raise wrong("enable_backward_config must be 1 (the layers that follow) or 0 (every parameter, the full update)"
                    + (f", found {str(enabled)[:40]!r}" if enabled is not None else ""))
    if not enabled:
        if vain := [k for k, v in given.items() if (k, v) != ("weight_select_criteria", "magnitude+")]:
            raise wrong(f"{vain[0]} has no effect with enable_backward_config: 0, which trains everything: leave it out, or "
                        "write 1")
        return {**rule, "enable_backward_config": False}
    if "n_bias_update" not in given:
        raise wrong("n_bias_update is missing: the number of layers whose bias is trained, or all")
    biases, weights = given["n_bias_update"], given.get("n_weight_update")
    chosen = _listed(given.get("manual_weight_idx"))
    if chosen is not None and weights is not None and weights != len(chosen):
        raise wrong("manual_weight_idx takes the place of n_weight_update: give one of them")
    if weights in (None, "all"):
        weights = biases
    if chosen is None and isinstance(weights, int) and isinstance(biases, int) and weights > biases:
        raise wrong(f"n_weight_update is {weights}, but n_bias_update {biases}: a layer whose matrix is trained has its "
                    "bias trained too, so raise n_bias_update (plan.rule with count: layers has no such rule)")
    ratio = _listed(given.pop("weight_update_ratio", 1.0))
    return {**rule, **given, "enable_backward_config": True, "count": "layers", "layer_norm": False,
            "n_weight_update": 0 if chosen is not None else weights, "manual_weight_idx": chosen,
            "weight_update_ratio": ratio[0] if ratio is not None and len(ratio) == 1 else ratio}


def _listed(value: Any) -> Any:
    """The ancestor's lists: a number alone, "22-23-24", or a list. What is none of these is left to the section."""
    if isinstance(value, str):
        try:
            return [float(v) if "." in v else int(v) for v in value.split("-")]
        except ValueError:
            return value
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _nested(dotted: str, value: Any) -> Tree:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return dict(value)


def _has(tree: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _merged(base: Tree, layer: Tree, contradicts: str | None, prefix: str = "") -> Tree:
    """`layer` over `base`. contradicts: the file, where a value that is there and differs is an error."""
    out = dict(base)
    for key, value in layer.items():
        old = out.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            out[key] = _merged(old, value, contradicts, f"{prefix}{key}.")
        elif contradicts and old != value:
            raise ConfigError(f"{contradicts} says two things of {prefix}{key}: {old!r} there and {value!r} in the "
                              "ancestor's keys: leave one out")
        else:
            out[key] = value
    return out
