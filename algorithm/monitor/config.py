"""What is recorded where, and how often: the `monitor` section of a configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from algorithm.schema import Section

# what has an effect only where another option is on: the other option -> these
NEEDS: dict[str, tuple[str, ...]] = {
    "histograms_every": ("hist_params", "hist_activations", "hist_bins"),
    "vis_freq": ("vis_images", "vis_layers", "vis_heads"),
    "spec_monitor": ("spec_every", "spec_topk", "spec_interval", "spec_targets", "spec_on_cpu"),
}
FREQUENCIES = ("activations_every", "gram_every", "histograms_every", "classes_freq", "vis_freq", "analysis_freq")


class LogConfig(Section):
    """metrics.jsonl in the run folder, and Weights & Biases when asked."""

    jsonl: bool = Field(default=True, description="the loss of every step in metrics.jsonl")
    wandb: Literal["off", "offline", "online"] = Field(
        default="off", description="off | offline (files only) | online (needs a key: WANDB_API_KEY or `wandb login`)")
    project: str = Field(default="vit-training", min_length=1, description="of Weights & Biases")

    @field_validator("wandb", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads a bare off as false."""
        return "off" if value is False else value


class MonitorConfig(LogConfig):
    """What a training by recipe records, and how often.

    `..._every` counts updates, `..._freq` evaluations; the first of each is taken, too, and of evaluations the last; null
    or 0 = never. Loss, accuracy, learning rate and norms come each recipe.progress_every.
    """

    jsonl: bool = Field(default=True, description="everything in metrics.jsonl, pictures as files beside it")
    activations_every: int | None = Field(default=100, ge=0, description="mean and std of each block's attention and MLP "
                                          "output, in the training's own forward")
    gram_every: int | None = Field(default=100, ge=0, description="norms of the Gram residual, where the model has it")
    histograms_every: int | None = Field(default=1000, ge=0, description="histograms of weights, gradients, updates and "
                                         "activations")
    hist_params: list[str] = Field(default=["*.attn.qkv.weight", "*.mlp.fc2.weight", "head.weight"], description="which "
                                   "trained parameters: names, or patterns with *")
    hist_activations: list[str] = Field(default=["block_*/mlp_out"], description="which outputs, block_0/mhsa_out, "
                                        "block_0/mlp_out ...: names, or patterns with *")
    hist_bins: int = Field(default=64, ge=1, le=512, description="of each histogram")
    classes_freq: int | None = Field(default=1, ge=0, description="accuracy of each class, and the confusion matrix")
    samples: int = Field(default=16, ge=1, le=4096, description="the fixed held-out images that are looked at")
    vis_freq: int | None = Field(default=20, ge=0, description="pictures of attention, rollout, saliency and position "
                                 "embeddings")
    vis_images: int = Field(default=4, ge=1, le=64, description="of the samples, in each picture")
    vis_layers: list[int] = Field(default=[-1], min_length=1, description="blocks whose heads are drawn; -1 = the last")
    vis_heads: list[int] | None = Field(default=None, min_length=1, description="null = all")
    analysis_freq: int | None = Field(default=20, ge=0, description="high-norm tokens: statistics, histogram, and attention "
                                      "images x layers")
    spec_monitor: bool = Field(default=False, description="follow singular values and vectors of weight matrices")
    spec_every: int | None = Field(default=500, ge=0, description="updates between their measurements")
    spec_topk: int = Field(default=4, ge=1, description="how many are followed from either end")
    spec_interval: int = Field(default=1, ge=1, description="between the indices of those that are followed")
    spec_targets: list[str] = Field(default=["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], min_length=1,
                                    description="matrices by name ending or pattern")
    spec_on_cpu: bool = Field(default=False, description="decompose them on the CPU")

    @property
    def listens(self) -> bool:
        """Whether what is recorded goes anywhere."""
        return self.jsonl or self.wandb != "off"

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> MonitorConfig:
        for switch, options in NEEDS.items():
            vain = self.changed(*options)
            if vain and not getattr(self, switch):
                raise ValueError(f"{vain[0]} has no effect without {switch}: set it, or leave {vain[0]} out")
        if self.spec_monitor and not self.spec_every:
            raise ValueError("spec_monitor never measures with spec_every off: give spec_every, or leave spec_monitor out")
        looks = (self.vis_freq, self.analysis_freq, self.activations_every, self.gram_every)
        if self.changed("samples") and not any(looks):
            raise ValueError("samples has no effect where nothing looks at them: set vis_freq or analysis_freq")
        if self.changed("vis_images") and self.vis_images > self.samples:
            raise ValueError(f"vis_images={self.vis_images} is more than samples={self.samples}, of which they are: set "
                             f"samples={self.vis_images}")
        asked = [n for n in self.changed(*FREQUENCIES, "spec_monitor") if getattr(self, n)]
        if asked and not self.listens:
            raise ValueError(f"{asked[0]} has no effect where nothing is recorded: set jsonl=true, or wandb")
        return self
