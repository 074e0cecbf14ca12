"""Streams: what they open and when, broken images, missing classes, ImageNet's folders, data made from numbers, names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from algorithm.config import make_run_config
from algorithm.data import DataConfig, load_data, open_streams
from algorithm.data.config import CIFAR, CLASSES, EACH
from algorithm.data.names import data_of_timm_name
from algorithm.errors import AlgorithmError, ConfigError, DataError
from algorithm.preflight import check_data


def paint(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, value, value)).save(path)


def folder(root: Path, counts: dict[str, tuple[int, int]]) -> Path:
    """root/{train,val}/class/00.png ...; every image is grey of a value of its own."""
    value = 0
    for name, both in counts.items():
        for split, count in zip(("train", "val"), both, strict=True):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                paint(root / split / name / f"{i:02}.png", value)
                value += 1
    return root


def config(root: Path, **changes: Any) -> DataConfig:
    changes = {"images_per_class": None, "test_images": None, **changes}
    return DataConfig(name="imagefolder", data_root=str(root), **changes)


def grey(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


def test_opening_a_stream_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, {"cat": (6, 3), "dog": (5, 2)})
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *a, **k: (opened.append(str(path)), real(path, *a, **k))[1])
    train, test = open_streams(config(root))
    few, held = open_streams(config(root, images_per_class=2, test_images=2))
    assert (len(train), len(test), len(few), len(held)) == (11, 5, 4, 2) and opened == []
    image, label = train[7]
    assert opened == [str(root / "train/dog/01.png")] and label == 1 and image.mode == "RGB" and grey(image) == 10
    assert train.classes == ["cat", "dog"] and list(np.bincount(few.labels)) == [2, 2] and train.labels.dtype == np.int64


def test_paths_of_any_length_and_letters(tmp_path: Path) -> None:
    names = ["a.png", "ü" * 60 + ".png", "z z.png"]
    for c in ("cat", "dög"):
        for split in ("train", "val"):
            for k, name in enumerate(names):
                paint(tmp_path / split / c / name, k)
    train, _ = open_streams(config(tmp_path))
    assert [train.title(i) for i in range(6)] == [str(tmp_path / "train" / c / n) for c in ("cat", "dög")
                                                     for n in sorted(names)]
    assert grey(train.choose(np.array([4, 1]))[1][0]) == sorted(range(3), key=lambda k: names[k])[1]


def test_streams_and_arrays_choose_the_same_images(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": (9, 4), "dog": (8, 5)})
    chosen = config(root, images_per_class=3, test_images=4, seed=5)
    for stream, array in zip(open_streams(chosen), load_data(chosen, 4), strict=True):
        assert sorted((grey(i), n) for i, n in (stream[k] for k in range(len(stream)))) == \
            sorted((int(i[0, 0, 0]), int(n)) for i, n in zip(array.images, array.labels, strict=True))


def test_a_transform_is_applied(tmp_path: Path) -> None:
    train, _ = open_streams(DataConfig(name="digits"))
    train.transform = grey
    assert isinstance(train[0][0], int)


@pytest.mark.parametrize("name", ["fashion-mnist", "digits", "synthetic"])
def test_sets_without_files(name: str) -> None:
    train, test = open_streams(DataConfig(name=name, images_per_class=3, test_images=20))
    assert len(train) == 30 and len(test) == 20 and train[0][0].mode == "RGB"
    assert np.array_equal(np.asarray(train[4][0]), np.asarray(pickle.loads(pickle.dumps(train))[4][0]))


def test_synthetic_images_are_seeded_and_their_classes_can_be_learnt() -> None:
    options = {"classes": 5, "images": 12, "held_out": 4, "size": 20}
    made = DataConfig(name="synthetic", images_per_class=12, test_images=None, synthetic=options)
    (train, test), (again, _) = load_data(made, 20), load_data(made, 20)
    assert train.images.shape == (60, 20, 20, 3) and len(test) == 20 and np.array_equal(train.images, again.images)
    other = load_data(made.model_copy(update={"synthetic": made.synthetic.model_copy(update={"seed": 1})}), 20)[0]
    assert not np.array_equal(train.images, other.images)
    assert len({i.tobytes() for i in (*train.images, *test.images)}) == 80  # no image twice, none in both parts
    means = np.stack([train.images[train.labels == c].mean(0) for c in range(5)])
    distance = ((test.images[:, None].astype(float) - means) ** 2).sum((2, 3, 4))
    assert (distance.argmin(1) == test.labels).mean() > 0.9  # the nearest mean of a class tells it


def broken_folder(root: Path) -> Path:
    root = folder(root, {"cat": (6, 3), "dog": (6, 3)})
    for name in ("train/cat/01.png", "train/cat/02.png", "val/dog/00.png"):
        (root / name).write_bytes(b"no image")
    return root


def test_a_broken_image_is_replaced_by_the_next_of_its_class_and_named_once(tmp_path: Path) -> None:
    said: list[str] = []
    train, _ = open_streams(config(broken_folder(tmp_path), max_broken=2), said.append)
    assert [grey(train[i][0]) for i in range(6)] == [0, 3, 3, 3, 4, 5]  # 01 and 02 are broken, 03 stands for both
    assert [grey(train[i][0]) for i in range(6)] == [0, 3, 3, 3, 4, 5] and len(said) == 2 == len(train.broken.found)
    assert "cat/01.png is corrupt" in said[0] and "cat/03.png stands for it" in said[0] and "of at most 2" in said[0]


def test_more_broken_images_than_may_be_are_refused_by_name(tmp_path: Path) -> None:
    root = broken_folder(tmp_path)
    train, test = open_streams(config(root))  # one in a thousand: none of six
    with pytest.raises(DataError, match=r"dog/00\.png is corrupt or unreadable .*data\.max_broken"):
        test[3]
    with pytest.raises(DataError, match=r"cat/01\.png is corrupt"):
        train[1]
    train, _ = open_streams(config(root, max_broken=1), lambda _: None)
    with pytest.raises(DataError, match=r"2 images .* data.max_broken allows 1: .*01\.png, .*02\.png"):
        for i in range(6):
            train[i]
    assert DataConfig(name="imagefolder", max_broken=None).limit_of(5000) == 5


def test_a_class_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": (2, 2), "dog": (2, 2)})
    for i in range(2):
        (root / f"train/dog/{i:02}.png").write_bytes(b"")
    train, _ = open_streams(config(root, max_broken=9), lambda _: None)
    with pytest.raises(DataError, match=r"no image of class 'dog' in .* is readable"):
        train[3]
    with pytest.raises(DataError, match=r"no image of class 'dog' in .* is readable"):
        load_data(config(root, max_broken=9), 4, warn=lambda _: None)


def test_the_main_job_refuses_a_broken_image_or_takes_one_that_was_not_chosen(tmp_path: Path) -> None:
    root = broken_folder(tmp_path)
    with pytest.raises(DataError, match=r"0\d\.png is corrupt or unreadable"):
        load_data(config(root), 4)
    said: list[str] = []
    for seed in range(6):
        train, test = load_data(config(root, images_per_class=4, max_broken=3, seed=seed), 4, warn=said.append)
        assert sorted(int(i[0, 0, 0]) for i in train.images[train.labels == 0]) == [0, 3, 4, 5]  # four others, none twice
    assert len(test) == 5 and list(np.bincount(test.labels)) == [3, 2]  # no other to take: left out
    assert any("dog/00.png" in s and "left out" in s for s in said)


def test_a_class_missing_in_val(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": (3, 2), "dog": (3, 0), "eel": (3, 2)})
    said: list[str] = []
    with pytest.raises(DataError, match=r"class 'dog' is in only one of .*data.allow_missing_classes=true"):
        open_streams(config(root))
    _, test = open_streams(config(root, allow_missing_classes=True), said.append)
    assert set(test.labels) == {0, 2} and test.classes == ["cat", "dog", "eel"]
    assert len(said) == 1 and "1 of 3 classes" in said[0] and said[0].endswith(": dog")
    (root / "val/dog").rmdir()
    assert len(load_data(config(root, allow_missing_classes=True), 4, warn=said.append)[1]) == 4 and len(said) == 2
    paint(root / "val/fox/0.png", 9)
    for allowed in (False, True):
        with pytest.raises(DataError, match=r"class 'fox' is in only one of .* no training image"):
            open_streams(config(root, allow_missing_classes=allowed))


@pytest.mark.parametrize(("real", "link"), [("train", "val"), ("val", "train")])
def test_a_held_out_image_that_is_a_link_to_a_training_image(tmp_path: Path, real: str, link: str) -> None:
    root = folder(tmp_path, {"cat": (2, 2), "dog": (2, 2)})
    (root / link / "dog/09.png").symlink_to(root / real / "dog/00.png")
    with pytest.raises(DataError, match=r"dog/0\d.png is also a training image"):
        open_streams(config(root))


def test_a_split_of_flat_images_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, {"cat": (2, 0), "dog": (2, 0)})
    for name in ("cat", "dog"):
        (root / "val" / name).rmdir()
    paint(root / "val" / "00.png", 0)
    with pytest.raises(DataError, match=r"val holds images \(00.png, ...\) but no class folders"):
        open_streams(config(root))


def imagenet(root: Path, classes: int) -> list[str]:
    """Empty files in the layout of ImageNet: names are all that opening needs."""
    names = [f"n{c:08}" for c in range(classes)]
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            (root / split / name / f"{name}_1.JPEG").touch()
    return names


def test_imagenet_and_its_hundred_classes(tmp_path: Path) -> None:
    names = imagenet(tmp_path / "ILSVRC/Data/CLS-LOC", 1000)
    whole = {"images_per_class": None, "test_images": None}
    train, test = open_streams(DataConfig(name="imagenet", data_root=str(tmp_path), **whole))
    assert len(train) == len(test) == 1000 and train.classes == names and train.title(3).endswith("CLS-LOC/train/n00000003/"
                                                                                                  "n00000003_1.JPEG")
    chosen = [names[k] for k in np.random.default_rng(0).permutation(1000)[:100]]
    listed = tmp_path / "hundred.txt"
    listed.write_text("# the hundred\n" + "\n".join(f"{name} word" for name in chosen))
    hundred = DataConfig(name="imagenet100", data_root=str(tmp_path), class_list=str(listed), **whole)
    train, test = open_streams(hundred)
    assert train.classes == test.classes == chosen and len(test) == 100
    assert chosen[7] in test.title(7) and test.labels[7] == 7
    assert check_data(hundred, 100) == [1] * 100
    with pytest.raises(DataError, match=r"imagenet100 has 100 classes, .* has 1000: name the wanted ones in .*class_list"):
        check_data(hundred.model_copy(update={"class_list": None}), 1000)
    for text, match in ((f"{names[0]}\nn9\n", "lists 2: correct"), ("n1\nn1\n", "'n1' twice"), ("\n", "names 0 classes"),
                        ("\n".join([*chosen[1:], "n00000999x"]), "'n00000999x' of data.class_list is not in .*n00000999'")):
        listed.write_text(text)
        with pytest.raises(DataError, match=match):
            open_streams(hundred)
    with pytest.raises(DataError, match=r"cannot read class list .*No such file"):
        open_streams(hundred.model_copy(update={"class_list": str(tmp_path / "absent")}))
    with pytest.raises(DataError, match="no folder train"):
        open_streams(DataConfig(name="imagenet", data_root=str(tmp_path / "ILSVRC/Data/CLS-LOC/val"), **whole))


def test_imagenet_with_the_flat_val_of_its_archive(tmp_path: Path) -> None:
    top = tmp_path / "ILSVRC/Data/CLS-LOC"
    names = imagenet(top, 100)
    for k, name in enumerate(names):
        (top / "val" / name / f"{name}_1.JPEG").rename(top / "val" / f"ILSVRC2012_val_{k:08}.JPEG")
        (top / "val" / name).rmdir()
    flat = DataConfig(name="imagenet100", data_root=str(tmp_path), images_per_class=None, test_images=None)
    with pytest.raises(DataError, match=r"val holds images .* but no class folders"):
        open_streams(flat)
    lines = [f"ILSVRC2012_val_{k:08},{names[(k + 3) % 100]} 85 1 499 272" for k in range(100)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    _, test = open_streams(flat)
    assert {int(test.title(i)[-13:-5]): int(test.labels[i]) for i in range(100)} == {k: (k + 3) % 100 for k in range(100)}
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[1:]]))
    with pytest.raises(DataError, match=r"val_00000000.JPEG is not in the list of held-out images"):
        open_streams(flat)
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nx\n")
    with pytest.raises(DataError, match=r"csv line 2: expected an image and its synset .* found 'x'"):
        open_streams(flat)


def test_a_class_list_of_any_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", {"cat": (3, 2), "dog": (3, 2), "eel": (3, 2)})
    (tmp_path / "two.txt").write_text("eel\ncat\n")
    paint(root / "val/fox/0.png", 1)  # not named either
    train, test = open_streams(config(root, class_list=str(tmp_path / "two.txt")))
    assert train.classes == ["eel", "cat"] and list(test.labels) == [0, 0, 1, 1] and grey(train[0][0]) == 10


def test_cifar_from_torchvisions_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from algorithm.models.torchvision_shim import ensure_torchvision
    ensure_torchvision()
    from torchvision.datasets import CIFAR10, cifar
    with pytest.raises(DataError, match=r"cifar10 is not in .*unpack cifar-10-python.tar.gz there, or .*data.download=true"):
        open_streams(DataConfig(name="cifar10", data_root=str(tmp_path)))
    monkeypatch.setattr(CIFAR10, "url", "file:///dev/null/absent")
    with pytest.raises(DataError, match=r"cifar10 cannot be downloaded into .*no network, unpack cifar-10-python.tar.gz"):
        open_streams(DataConfig(name="cifar10", data_root=str(tmp_path), download=True))
    monkeypatch.setattr(cifar, "check_integrity", lambda *a: True)
    home = tmp_path / CIFAR10.base_folder
    home.mkdir()
    rng = np.random.default_rng(0)
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        (home / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10)) * 2}))
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{k}" for k in range(10)]}))
    train, test = open_streams(DataConfig(name="cifar10", data_root=str(tmp_path), images_per_class=4, test_images=10))
    assert len(train) == 40 and len(test) == 10 and train.classes[3] == "c3" and train[0][0].size == (32, 32)


@pytest.mark.parametrize(("dataset", "data_dir", "expected"), [
    ("torch/cifar100", "d", ("cifar100", "d")), ("torch/cifar10", None, ("cifar10", None)),
    ("imagenet", "d", ("imagenet", "d")), ("torch/imagenet", "d", ("imagenet", "d")),
    ("ImageNet-100", "d", ("imagenet100", "d")),
    ("", "d", ("imagefolder", "d")), (None, "d", ("imagefolder", "d")), ("folder", "d", ("imagefolder", "d")),
    ("./mine", None, ("imagefolder", "mine")), ("digits", None, ("digits", None)),
    ("synthetic", None, ("synthetic", None)),
])
def test_timms_names(dataset: str | None, data_dir: str | None, expected: tuple[str, str | None]) -> None:
    section = DataConfig.model_validate(data_of_timm_name(dataset, data_dir))
    assert (section.name, section.data_root) == expected and section.images_per_class is None is section.test_images


@pytest.mark.parametrize(("dataset", "data_dir", "match"), [
    ("torch/cifar1000", "d", "nearest known: 'cifar100'"), ("hfds/food101", None, "Hugging Face data sets are not read"),
    ("digits", "d", "needs no file"), (None, None, "no data set is named"), ("folder", None, "no data set is named"),
])
def test_timms_names_that_are_refused(dataset: str | None, data_dir: str | None, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        data_of_timm_name(dataset, data_dir)


@pytest.mark.parametrize(("overrides", "match"), [
    (["data.max_broken=3"], "max_broken is for imagefolder, imagenet, imagenet100, not for fashion-mnist"),
    (["data.name=cifar10", "data.class_list=x"], "class_list is for imagefolder"),
    (["data.synthetic.size=8"], "synthetic is for synthetic, not for fashion-mnist"),
    (["data.allow_missing_classes=true"], "allow_missing_classes is for imagefolder"),
    (["data.name=synthetic", "data.data_root=x"], "made from numbers"),
    (["data.name=synthetic", "data.synthetic.classes=1"], "classes"),
    (["data.name=imagnet"], "data.name"),
])
def test_options_that_a_source_does_not_read(overrides: list[str], match: str) -> None:
    with pytest.raises(AlgorithmError, match=match):
        make_run_config([], overrides)


def test_another_data_set_drops_the_options_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("data: {name: synthetic, synthetic: {classes: 4}}")
    (tmp_path / "i.yaml").write_text("data: {name: imagenet100, data_root: x, class_list: y, max_broken: 3}")
    assert make_run_config([tmp_path / "s.yaml"], ["data.data_root=x"]).data.name == "imagefolder"
    assert make_run_config([tmp_path / "s.yaml"], ["data.synthetic.size=8"]).data.synthetic.classes == 4
    kept = make_run_config([tmp_path / "i.yaml"], ["data.name=cifar10"]).data
    assert kept.data_root == "x" and kept.class_list is None and kept.max_broken is None


def test_what_names_and_paths_show_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for name, home in CIFAR.items():
        missing = DataConfig(name=name, data_root=str(tmp_path))
        with pytest.raises(DataError, match=f"{name} is not in .*no such folder: {home}.*data.download=true"):
            check_data(missing, 100)
        check_data(missing.model_copy(update={"download": True, "test_images": None}), 100)
        (tmp_path / home).mkdir()
        assert check_data(missing.model_copy(update={"test_images": None}), 100) == [EACH[name]] * CLASSES[name]
    with pytest.raises(DataError, match=r"class '0' has 500 images to train on .* 501 asked for"):
        check_data(DataConfig(images_per_class=501), 10)
    train, _ = open_streams(DataConfig(images_per_class=None))
    assert list(np.bincount(train.labels)) == [EACH["fashion-mnist"]] * 10


@pytest.mark.parametrize(("changes", "match"), [
    ({"synthetic": {"classes": 11}}, "the data have 11 classes"),
    ({"images_per_class": 101}, "class '0' has 100 images"),
    ({"test_images": 9}, "cannot show each of the 10 classes"),
])
def test_the_preflight_of_synthetic_data(changes: dict[str, Any], match: str) -> None:
    assert check_data(DataConfig(name="synthetic"), 10) == [100] * 10
    with pytest.raises(DataError, match=match):
        check_data(DataConfig(name="synthetic", **changes), 10)
