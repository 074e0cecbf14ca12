"""Which data: the `data` section of a run's configuration."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from algorithm.schema import SEED_MAX, Section

Source = Literal["fashion-mnist", "digits", "synthetic", "imagefolder", "imagenet", "imagenet100", "cifar10", "cifar100"]
SOURCES: tuple[str, ...] = get_args(Source)
CLASSES: dict[str, int] = {"fashion-mnist": 10, "digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000,
                           "imagenet100": 100}  # where known beforehand

OF_IMAGE_FILES = ("imagefolder", "imagenet", "imagenet100")  # sources that are folders of image files, one a class
CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # the folder that torchvision unpacks each to
EACH = {"fashion-mnist": 500, "cifar10": 5000, "cifar100": 500}  # training images a class, where known beforehand
FROM_A_FOLDER = (*OF_IMAGE_FILES, *CIFAR)  # sources that need data_root
READ_BY: dict[str, tuple[str, ...]] = {  # which sources read an option that not all of them read
    "data_root": FROM_A_FOLDER, "download": (*CIFAR,), "class_list": OF_IMAGE_FILES, "max_broken": OF_IMAGE_FILES,
    "allow_missing_classes": OF_IMAGE_FILES, "synthetic": ("synthetic",)}
BROKEN_SHARE = 1000  # max_broken=null: of so many images of a stream, one may be broken


class SyntheticConfig(Section):
    """Images made from numbers, for dry runs: a smooth pattern a class, changed a little for each image."""

    classes: int = Field(default=10, ge=2, le=100_000, description="with data.name=synthetic")
    images: int = Field(default=100, ge=1, le=10_000_000, description="training images a class that there are")
    held_out: int = Field(default=20, ge=1, le=10_000_000, description="held-out images a class that there are")
    size: int = Field(default=32, ge=1, le=4096, description="pixels a side, before they are resized to the model's")
    seed: int = Field(default=0, ge=0, le=SEED_MAX, description="of the patterns and their changes")


class DataConfig(Section):
    """A data set and its few-shot split. The image size is the model's."""

    name: Source = Field(default="fashion-mnist", description=f"{' | '.join(SOURCES)}; the first three need no file")
    data_root: str | None = Field(default=None, description=f"folder of {', '.join(FROM_A_FOLDER)}")
    download: bool = Field(default=False, description="let torchvision download CIFAR into data_root")
    class_list: str | None = Field(default=None, min_length=1, description="text file of class folders, one a line: only "
                                   "these are data, labelled in this order; how imagenet100 is chosen from ImageNet-1k")
    images_per_class: int | None = Field(default=30, ge=1, description="training images a class; null = all")
    test_images: int | None = Field(default=300, ge=1, description="held-out images at most, balanced over classes and not "
                                    "fewer than them; null = all")
    seed: int = Field(default=0, ge=0, le=SEED_MAX, description="of the choice of training images")
    max_broken: int | None = Field(default=None, ge=0, description="unreadable images that training and held-out part may "
                                   "each have: named, and replaced by the next of their class, or left out where each "
                                   f"counts once; null = none in the main job, one in {BROKEN_SHARE} in training by recipe")
    allow_missing_classes: bool = Field(default=False, description="go on, with a warning, where a "
                                        "class has no held-out image")
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _used(self) -> DataConfig:
        if self.data_root is not None and self.name not in FROM_A_FOLDER:
            comes = "is made from numbers" if self.name == "synthetic" else "comes with the program"
            raise ValueError(f"data_root is given, but {self.name} {comes}: leave data_root out, or set "
                             "data.name=imagefolder")
        if self.download and self.name not in CIFAR:
            raise ValueError(f"download is for cifar10 and cifar100, not for {self.name}: leave it out")
        for option in self.changed(*READ_BY):
            if self.name not in READ_BY[option]:
                raise ValueError(f"{option} is for {', '.join(READ_BY[option])}, not for {self.name}: leave it out")
        return self

    @property
    def known_classes(self) -> int | None:
        """How many classes there are, where the name tells."""
        return self.synthetic.classes if self.name == "synthetic" else CLASSES.get(self.name)

    @property
    def known_each(self) -> int | None:
        """How many training images each class has, where the name tells."""
        return self.synthetic.images if self.name == "synthetic" else EACH.get(self.name)

    def limit_of(self, images: int) -> int:
        """How many of a stream's images may be broken."""
        return images // BROKEN_SHARE if self.max_broken is None else self.max_broken

