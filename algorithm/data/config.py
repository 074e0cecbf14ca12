"""Which data: the `data` section of a run's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from algorithm.schema import SEED_MAX, Section

Source = Literal["fashion-mnist", "digits", "imagefolder", "cifar10", "cifar100"]
CLASSES: dict[str, int] = {"fashion-mnist": 10, "digits": 10, "cifar10": 10, "cifar100": 100}  # where known beforehand

FROM_A_FOLDER = ("imagefolder", "cifar10", "cifar100")  # sources that need data_root


class DataConfig(Section):
    """A data set and its few-shot split. The image size is the model's."""

    name: Source = Field(default="fashion-mnist", description="fashion-mnist and digits come with the program")
    data_root: str | None = Field(default=None, description="folder of imagefolder, cifar10 or cifar100")
    download: bool = Field(default=False, description="let torchvision download CIFAR into data_root")
    images_per_class: int | None = Field(default=30, ge=1, description="training images a class; null = all")
    test_images: int | None = Field(default=300, ge=1, description="held-out images at most, balanced over classes and not "
                                    "fewer than them; null = all")
    seed: int = Field(default=0, ge=0, le=SEED_MAX, description="of the choice of training images")

    @model_validator(mode="after")
    def _used(self) -> DataConfig:
        if self.data_root is not None and self.name not in FROM_A_FOLDER:
            raise ValueError(f"data_root is given, but {self.name} comes with the program: leave data_root out, or set "
                             "data.name=imagefolder")
        if self.download and not self.name.startswith("cifar"):
            raise ValueError(f"download is for cifar10 and cifar100, not for {self.name}: leave it out")
        return self
