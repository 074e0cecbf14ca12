"""What `python -m algorithm analyze` computes: its options, torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from algorithm.schema import Section


class SpectrumConfig(Section):
    """Singular values of weight matrices: which matrices, how many values, how precisely."""

    targets: list[str] | None = Field(default=None, min_length=1, description="name endings (attn.qkv, mlp.fc1, pos_embed)"
                                      " or globs (blocks.1?.attn.*); null = every matrix")
    split_qkv: bool = Field(default=False, description="q, k and v of a fused qkv as three matrices")
    topk: int = Field(default=10, ge=1, description="values (and vectors) listed from each end")
    interval: int = Field(default=1, ge=1, description="steps between the listed ones: 1 = neighbours")
    full: bool = Field(default=False, description="list every value instead of topk")
    vectors: bool = Field(default=False, description="the singular vectors of the listed values, too")
    dtype: Literal["float32", "float64"] = Field(default="float32", description="of the computation")
    svd_on_cpu: bool = Field(default=False, description="move each matrix to the CPU first")

    @model_validator(mode="after")
    def _used(self) -> SpectrumConfig:
        if self.full and (vain := self.changed("topk", "interval")):
            raise ValueError(f"{vain[0]} has no effect where full lists every value: leave one of them out")
        return self


class ArtifactsConfig(Section):
    """High-norm tokens of the last layer (Darcet et al. 2024): what counts as one, and how many images are drawn."""

    sigmas: float = Field(default=3.0, gt=0, description="standard deviations above the mean where outliers begin")
    grid_images: int = Field(default=6, ge=1, le=64, description="images in the picture of CLS-to-patch attention")
    batch: int = Field(default=32, ge=1, description="images that pass the model at once")
