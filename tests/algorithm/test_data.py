"""Data: the embedded set, folders, splits, and errors that name what is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from algorithm.data import DataConfig, Dataset, few_shot, load_data, resize
from algorithm.errors import DataError


def test_fashion_mnist_is_embedded_and_balanced() -> None:
    train, test = load_data(DataConfig(images_per_class=3, test_images=40), 32, 10)
    assert train.images.shape == (30, 32, 32, 3) and train.images.dtype == np.uint8
    assert list(np.bincount(train.labels)) == [3] * 10 and list(np.bincount(test.labels)) == [4] * 10
    assert sorted(train.labels[:10]) == list(range(10))  # one of each class in turn
    assert train.classes[9] == "Ankle boot" and train.images.std() > 30


def test_splits_are_seeded_and_the_held_out_set_is_fixed() -> None:
    config = DataConfig(images_per_class=2, test_images=20)
    a, test_a = load_data(config, 16)
    b, test_b = load_data(config, 16)
    c, test_c = load_data(config.model_copy(update={"seed": 1}), 16)
    assert np.array_equal(a.images, b.images) and not np.array_equal(a.images, c.images)
    assert np.array_equal(test_a.images, test_c.images) and np.array_equal(test_a.labels, test_b.labels)


def test_digits() -> None:
    train, test = load_data(DataConfig(name="digits", images_per_class=None, test_images=None), 8)
    assert len(train) + len(test) == 1797 and len(test) == 449 and train.images.max() == 255


def write_folder(root, splits=("train", "val"), classes=("cat", "dog"), count=5) -> None:
    rng = np.random.default_rng(0)
    for split in splits:
        for c in classes:
            folder = root / split / c if split else root / c
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (20, 30, 3) if i else (20, 30), dtype=np.uint8)  # one of them is grey
                Image.fromarray(image).save(folder / f"{i}.png")


@pytest.mark.parametrize("splits", [("train", "val"), ("Train", "valid"), ("train", "validation"), ("",)])
def test_image_folders(tmp_path, splits) -> None:
    write_folder(tmp_path, splits)
    config = DataConfig(name="imagefolder", data_root=str(tmp_path), images_per_class=2, test_images=None)
    train, test = load_data(config, 16, 2)
    assert train.images.shape == (4, 16, 16, 3) and train.classes == ["cat", "dog"] and set(test.labels) == {0, 1}


def folder_error(root, match: str, **changes) -> None:
    config = DataConfig(name="imagefolder", data_root=str(root), images_per_class=2, **changes)
    with pytest.raises(DataError, match=match) as caught:
        load_data(config, 16, 2)
    assert "\n" not in str(caught.value)


def test_folder_errors(tmp_path) -> None:
    folder_error(tmp_path, "is empty")
    folder_error(tmp_path / "absent", "no image folder")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    folder_error(tmp_path, "only one of its two splits")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    folder_error(tmp_path, "single class folder, 'cat'")
    (tmp_path / "train" / "dog").mkdir(parents=True)
    folder_error(tmp_path, "cat holds no image")
    write_folder(tmp_path / "data" / "outer")
    folder_error(tmp_path / "data", "single class folder, 'outer'; if that is the data set, point to it")
    with pytest.raises(DataError, match="--data_root"):
        load_data(DataConfig(name="imagefolder"), 16)


def test_corrupt_image_is_named(tmp_path) -> None:
    write_folder(tmp_path)
    whole = (tmp_path / "train" / "cat" / "1.png").read_bytes()
    for broken in (b"not an image", whole[:len(whole) // 2]):
        for i in range(5):
            (tmp_path / "train" / "cat" / f"{i}.png").write_bytes(broken)
        folder_error(tmp_path, r"cat/\d.png is corrupt or unreadable")


def test_too_few_images_and_labels_out_of_range(tmp_path) -> None:
    write_folder(tmp_path, classes=("a", "b", "c"), count=1)
    folder_error(tmp_path, r"class 'a' has 1 images .*2 asked for; lower data.images_per_class")
    write_folder(tmp_path / "more", classes=("a", "b", "c"), count=2)
    folder_error(tmp_path / "more", r"label 2 of image \d is outside 0..1.*num_classes")
    with pytest.raises(DataError, match=r"label -1 of image 1 is outside 0\.\.1"):
        Dataset(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, -1]), ["a", "b"], "mine")


def test_cifar_from_a_local_root(tmp_path) -> None:
    with pytest.raises(DataError, match=r"cifar10 is not in .*data.download=true"):
        load_data(DataConfig(name="cifar10", data_root=str(tmp_path)), 16)
    with pytest.raises(DataError, match=r"needs data\.data_root"):
        load_data(DataConfig(name="cifar100"), 16)


def test_few_shot_takes_each_class_alike() -> None:
    labels = np.repeat([0, 1, 2], [5, 9, 30])
    index = few_shot(labels, 4, seed=0)
    assert len(set(index)) == 12 and list(np.bincount(labels[index])) == [4, 4, 4]
    assert sorted(few_shot(labels, None, seed=0)) == list(range(44))


def test_resize_is_pils_antialiased_bicubic_of_the_centre() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    expected = np.asarray(image.crop((10, 0, 50, 40)).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.max(np.abs(resize(image, 16).astype(int) - expected)) == 0
    grey = resize(np.arange(256, dtype=np.uint8).reshape(16, 16), 16)
    assert np.array_equal(grey[..., 0], grey[..., 2]) and grey[0, 5, 1] == 5


def test_datasets_pickle() -> None:
    train, _ = load_data(DataConfig(images_per_class=1, test_images=10), 16)
    assert np.array_equal(pickle.loads(pickle.dumps(train)).images, train.images)


def paint(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


def loaded(root: Path, **changes: Any) -> tuple[Dataset, Dataset]:
    changes = {"images_per_class": None, "test_images": None, **changes}
    return load_data(DataConfig(name="imagefolder", data_root=str(root), **changes), 8)


def values(part: Dataset) -> dict[int, list[int]]:
    return {c: sorted(int(i[0, 0, 0]) for i, n in zip(part.images, part.labels, strict=True) if n == c)
            for c in range(len(part.classes))}


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (4, 1), (5, 1), (9, 1), (10, 2), (25, 5)])
def test_every_class_has_held_out_images_of_its_own(tmp_path, count: int, held: int) -> None:
    for i in range(count):
        paint(tmp_path / "small" / f"{i:02}.png", i)
    for i in range(40):
        paint(tmp_path / "large" / f"{i:02}.png", 100 + i)
    train, test = (values(part) for part in loaded(tmp_path))
    assert len(test[1]) == held and len(train[1]) == count - held and len(test[0]) == 8
    assert all(not set(train[c]) & set(test[c]) for c in (0, 1))


def test_a_class_of_one_image_is_refused_by_name(tmp_path) -> None:
    paint(tmp_path / "many" / "0.png", 0)
    paint(tmp_path / "many" / "1.png", 1)
    paint(tmp_path / "single" / "0.png", 2)
    folder_error(tmp_path, r"class 'single' in .* has a single image")


def test_what_is_hidden_is_not_data(tmp_path) -> None:
    for name in ("cat", "dog"):
        for i in range(5):
            paint(tmp_path / name / f"{i}.PNG", i)
        for junk in (".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/0.png", "._0.png", "deep/.hidden/0.png",
                     "@eaDir/0.png"):
            paint(tmp_path / name / junk, 200)
        (tmp_path / name / "Thumbs.db").write_bytes(b"x")
        (tmp_path / name / "notes.txt").write_text("x")
        paint(tmp_path / name / "deep" / "5.Jpg", 5)
    for junk in (".git", "__MACOSX"):
        paint(tmp_path / junk / "0.png", 200)
    train, test = loaded(tmp_path)
    assert train.classes == ["cat", "dog"]
    assert all(len(values(train)[c] + values(test)[c]) == 6 and max(values(train)[c]) == 5 for c in (0, 1))


def test_links_are_followed_but_never_in_a_circle(tmp_path) -> None:
    root, aside = tmp_path / "root", tmp_path / "aside"
    for i in range(3):
        paint(root / "cat" / f"{i}.png", i)
        paint(aside / f"{i}.png", 50 + i)
    (root / "dog").symlink_to(aside, target_is_directory=True)
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "cat" / "self").symlink_to(root / "cat", target_is_directory=True)
    (root / "again").symlink_to(root, target_is_directory=True)
    train, test = loaded(root)
    assert train.classes == ["cat", "dog"]
    assert sorted(values(train)[0] + values(test)[0]) == [0, 1, 2]
    assert sorted(values(train)[1] + values(test)[1]) == [50, 51, 52]
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    folder_error(root, "gone.png is not a file")


def test_a_held_out_image_is_never_a_training_image(tmp_path) -> None:
    write_folder(tmp_path, ("train",))
    (tmp_path / "val").symlink_to(tmp_path / "train", target_is_directory=True)
    folder_error(tmp_path, "is also a training image")


def test_names_that_differ_in_case_only(tmp_path) -> None:
    write_folder(tmp_path / "a", ("",), ("Cat", "cat"))
    folder_error(tmp_path / "a", "differ in case only, 'Cat' and 'cat'")
    write_folder(tmp_path / "b", ("train", "Train", "val"))
    folder_error(tmp_path / "b", "two folders for one split, 'Train' and 'train'")


def test_every_class_is_tested_and_has_enough_to_train_on(tmp_path) -> None:
    for i in range(5):
        paint(tmp_path / "few" / f"{i}.png", i)
    for i in range(50):
        paint(tmp_path / "many" / f"{i}.png", i)
    folder_error(tmp_path, r"data\.test_images=1 cannot show each of the 2 classes", test_images=1)
    with pytest.raises(DataError, match=r"class 'few' has 4 images to train on .*30 asked for; lower data.images_per_class"):
        loaded(tmp_path, images_per_class=30)
    assert set(loaded(tmp_path, test_images=2)[1].labels) == {0, 1}
    with pytest.raises(DataError, match="test_images=9 cannot show each of the 10 classes"):
        load_data(DataConfig(name="digits", images_per_class=1, test_images=9), 8)
