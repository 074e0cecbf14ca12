"""Which data: the `data` section of a run's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from algorithm.schema import Section

Source = Literal["fashion-mnist", "digits", "imagefolder", "cifar10", "cifar100"]


class DataConfig(Section):
    """A data set and its few-shot split. The image size is the model's."""

    name: Source = "fashion-mnist"
    data_root: str | None = Field(default=None, description="folder of imagefolder, cifar10 or cifar100")
    download: bool = Field(default=False, description="let torchvision download CIFAR into data_root")
    images_per_class: int | None = Field(default=30, ge=1, description="training images a class; None = all")
    test_images: int | None = Field(default=300, ge=1, description="held-out images, balanced over classes; None = all")
    seed: int = 0
