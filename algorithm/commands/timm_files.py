"""What timm's own argument files (`args.yaml` of a run of timm's train.py) hold beyond the flags that mean something here.

Such a file lists every argument of timm. One that asks for nothing is passed over: at timm's default, where it has no
meaning here, or (only where the file is known for timm's by its many arguments without a meaning here) where the argument
that it belongs to is off. Everything else is translated or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Args = Mapping[str, Any]
OF_TIMM = 10        # arguments without a meaning here that only a file of timm's would list

# arguments without a meaning here, and the values that ask for nothing
NOT_HERE: dict[str, tuple[Any, ...]] = {
    "train_split": ("train",), "val_split": ("validation", "val", "valid"), "train_num_samples": (), "val_num_samples": (),
    "class_map": (), "input_img_mode": (), "input_key": (), "target_key": (), "dataset_trust_remote_code": (False,),
    "no_resume_opt": (False,), "in_chans": (3,), "mean": (), "std": (), "interpolation": (), "channels_last": (False, True),
    "fuser": (), "grad_checkpointing": (False,), "fast_norm": (False,), "head_init_scale": (), "head_init_bias": (),
    "torchcompile_mode": (), "torchscript": (False,), "model_dtype": ("float32",), "no_ddp_bb": (False, True),
    "synchronize_step": (False, True), "local_rank": (0,), "device_modules": (), "layer_decay_min_scale": (0,),
    "layer_decay_no_opt_scale": (), "sched_on_updates": (False, True), "lr_noise": (), "lr_noise_pct": (0.67,),
    "lr_noise_std": (1.0,), "lr_cycle_mul": (1.0,), "lr_cycle_decay": (0.5, 0.1), "lr_cycle_limit": (1,),
    "lr_k_decay": (1.0,), "epoch_repeats": (0,), "start_epoch": (), "warmup_prefix": (False,), "patience_epochs": (10,),
    "train_crop_mode": ("rrc",), "color_jitter_prob": (), "grayscale_prob": (), "gaussian_blur_prob": (),
    "aug_repeats": (0,), "aug_splits": (0,), "jsd_loss": (False,), "bce_sum": (False,), "bce_target_thresh": (),
    "bce_pos_weight": (), "resplit": (False,), "cutmix_minmax": (), "mixup_off_epoch": (0,), "drop": (0,),
    "drop_connect": (), "drop_block": (), "bn_momentum": (), "bn_eps": (), "sync_bn": (False,),
    "dist_bn": ("reduce", "broadcast"), "split_bn": (False,), "model_ema_force_cpu": (False,), "worker_seeding": ("all",),
    "val_interval": (1,), "recovery_interval": (0,), "save_images": (False,), "no_prefetcher": (False, True),
    "eval_metric": ("top1",), "tta": (0,), "use_multi_epochs_loader": (False, True), "wandb_tags": (),
    "wandb_resume_id": (), "distributed": (False, True), "world_size": (1,), "rank": (0,), "prefetcher": (False, True),
    "kd_distill_type": ("logit",), "kd_loss_type": ("kl",), "kd_token_distill_type": ("soft",), "distill_loss_weight": (),
    "kd_student_feature_dim": (), "kd_teacher_feature_dim": (), "train_img_sizes": (), "train_batch_sizes": (),
    "train_size_probs": (), "train_size_schedule": ("constant",), "train_size_schedule_spread": (0.65,),
    "train_size_random_mix": (0.1,), "train_batches_per_epoch": (), "variable_batch_loss_scale": ("none",),
    "naflex_loader": (False,), "naflex_train_seq_lens": ([128, 256, 576, 784, 1024],), "naflex_max_seq_len": (576,),
    "naflex_patch_sizes": (), "naflex_patch_size_probs": (), "naflex_loss_scale": ("linear",),
    "naflex_patchify_channels_first": (False,),
}


def _sched(*names: str) -> Callable[[Args], bool]:
    return lambda args: args.get("sched", "cosine") in names


def _on(*names: str) -> Callable[[Args], bool]:
    return lambda args: any(args.get(n) for n in names)


# arguments that belong to others: timm's default, and whether the file asks for what they belong to
WITH: dict[str, tuple[Any, Callable[[Args], bool]]] = {
    "decay_epochs": (90, _sched("step")), "decay_milestones": ([90, 180, 270], _sched("multistep")),
    "decay_rate": (0.1, _sched("step", "multistep", "plateau", "poly")), "model_ema_decay": (0.9998, _on("model_ema")),
    "model_ema_warmup": (False, _on("model_ema")), "color_jitter": (0.4, lambda a: not a.get("aa")),
    "remode": ("pixel", _on("reprob")), "recount": (1, _on("reprob")), "mixup_prob": (1.0, _on("mixup", "cutmix")),
    "mixup_switch_prob": (0.5, lambda a: bool(a.get("mixup") and a.get("cutmix"))),
    "mixup_mode": ("batch", _on("mixup", "cutmix")), "clip_mode": ("norm", _on("clip_grad")),
    "amp_dtype": ("float16", _on("amp")), "lr_base": (0.1, lambda a: not a.get("lr")),
    "lr_base_size": (256, lambda a: not a.get("lr")), "lr_base_scale": ("", lambda a: not a.get("lr")),
    "kd_temperature": (4.0, _on("kd_model_name")), "warmup_lr": (1e-5, _on("warmup_epochs")),
}


def asks_nothing(name: str, value: Any, args: Args) -> bool:
    """Whether an argument of a file can be passed over. args: all of that file, by names with underscores."""
    if value is None or value == "" or value == [] or value == {}:
        return True
    if name in NOT_HERE:
        return value in NOT_HERE[name]
    default, asked = WITH.get(name, (None, lambda a: True))
    return value == default and not asked(args) and sum(a in NOT_HERE for a in args) >= OF_TIMM
