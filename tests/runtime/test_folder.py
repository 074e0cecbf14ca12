"""The run folder: what is not ours stays, two runs never share one, a stopped run goes on, a finished one is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from algorithm import lock as lock_module
from algorithm.config import make_run_config
from algorithm.continuing import continues
from algorithm.lock import Holder, Lock
from runtime.errors import ReportError
from runtime.folder import KEPT, TRAINING, RunFolder, check_name
from runtime.marker import MARKER, Marker

OLD, NEW = {"train": {"lr": 1}}, {"train": {"lr": 2}}


def opened(parent: Path, settings: dict[str, Any] | None = None, said: list[str] | None = None, name: str = "run",
           fresh: bool = False, continues: Callable[[Any, Any], bool] | None = None) -> RunFolder:
    return RunFolder.open(parent, name, settings or OLD, fresh=fresh, continues=continues,
                          say=(said if said is not None else []).append)


def train(folder: RunFolder, value: float = 1.0) -> None:
    save_file({"x": np.full(3, value, np.float32)}, folder.file(TRAINING))


def finished(parent: Path, text: str = "report", **options: Any) -> Path:
    """A finished run that wrote a report, C code and a checkpoint."""
    with opened(parent, **options) as folder:
        folder.write_text("report.html", text)
        code = folder.file("c")
        code.mkdir()
        (code / "a.c").write_text("int a;")
        train(folder)
        return folder.finish()


def stopped(parent: Path, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt), opened(parent, **options) as folder:
        train(folder)
        folder.write_text("plan.yaml", "old plan")
        (folder.path / f".{TRAINING}.12.tmp").write_text("half")
        raise KeyboardInterrupt


def listing(path: Path) -> dict[str, str | None]:
    """Every path below (links not followed) -> its text, or the target of a link (None: a folder)."""
    if not path.is_dir() or path.is_symlink():
        return {"": os.readlink(path) if path.is_symlink() else path.read_text()}
    return {p.relative_to(path).as_posix(): os.readlink(p) if p.is_symlink() else None if p.is_dir() else
            p.read_text(errors="replace") for p in sorted(path.rglob("*"))}


def test_a_finished_run_is_in_place_whole_and_known(tmp_path: Path) -> None:
    final = finished(tmp_path)
    assert final == tmp_path / "run"
    assert sorted(os.listdir(tmp_path)) == ["latest", "run"]
    assert os.readlink(tmp_path / "latest") == "run"
    marker = Marker.read(final)
    assert marker.name == "run" and marker.finished and marker.settings == OLD
    assert set(marker.files) == {"report.html", "c/a.c", TRAINING}
    assert marker.foreign(final) == []


def test_threads_may_write_at_once(tmp_path: Path) -> None:
    names = [f"{i}.txt" for i in range(60)]
    with opened(tmp_path) as folder:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: folder.write_text(name, name), names))
        assert sorted(Marker.read(folder.path).names) == sorted(names)
        final = folder.finish()
    assert Marker.read(final).foreign(final) == []


# -- what is not ours ------------------------------------------------------------------------------
def a_folder(place: Path) -> None:
    place.mkdir()
    (place / "a.tex").write_text("x")


def a_link(place: Path) -> None:
    elsewhere = place.with_name("elsewhere")
    a_folder(elsewhere)
    place.symlink_to(elsewhere)


def a_link_to_a_run(place: Path) -> None:
    finished(place.with_name("other"), name="run")
    place.symlink_to(place.with_name("other") / "run")


def another_run(place: Path) -> None:
    finished(place.parent, name="another").rename(place)


def a_broken_marker(place: Path) -> None:
    a_folder(place)
    (place / MARKER).write_text("{")


def a_foreign_marker(place: Path) -> None:
    a_folder(place)
    (place / MARKER).write_text(json.dumps({"format": "other"}))


TAKEN: dict[str, Callable[[Path], Any]] = {
    "folder": a_folder, "empty folder": Path.mkdir, "file": lambda p: p.write_text("x"), "link": a_link,
    "link to a run": a_link_to_a_run, "broken link": lambda p: p.symlink_to("nowhere"), "another run": another_run,
    "broken marker": a_broken_marker, "foreign marker": a_foreign_marker}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_not_ours_is_refused_before_work_and_left_alone(kind: str, fresh: bool, tmp_path: Path) -> None:
    TAKEN[kind](tmp_path / "run")
    before = listing(tmp_path)
    with pytest.raises(ReportError, match="left alone"):
        opened(tmp_path, fresh=fresh)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_appears_in_the_place_meanwhile_is_left_alone_and_the_run_is_kept(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"waits in .*\.run\.partial"), opened(tmp_path) as folder:
        train(folder)
        TAKEN[kind](tmp_path / "run")
        before = listing(tmp_path / "run")
        folder.finish()
    assert listing(tmp_path / "run") == before
    (tmp_path / "run").rename(tmp_path / "users")
    with opened(tmp_path) as folder:            # the same command only moves it into place
        assert folder.done and (folder.path / TRAINING).is_file()
    assert listing(tmp_path / "users") == before


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "../a", "/tmp/a", "a\\b", ".hidden", "latest", "Latest", "a ",
                                  "a\nb", "a\0b", "a\x1b[31mb", "\udcff", "x" * 201, "\u00e9" * 101])
def test_names_that_are_no_plain_file_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="name") as caught:
        opened(tmp_path / "o", name=name)
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).isprintable() and len(str(caught.value)) < 200
    assert not (tmp_path / "o").exists()


def test_ordinary_names_are_accepted() -> None:
    for name in ("a", "vit-tiny_1.5mb", "[red]", "x" * 200, "\u00e9t\u00e9 2", "a.old-1"):
        check_name(name)


@pytest.mark.parametrize("kind", ["folder", "file", "link elsewhere", "link to a user's folder"])
def test_a_latest_of_the_users_is_left_alone(kind: str, tmp_path: Path) -> None:
    latest, runs = tmp_path / "runs/latest", tmp_path / "runs"
    runs.mkdir()
    (runs / "mine").mkdir()
    (tmp_path / "far").mkdir()
    {"folder": a_folder, "file": lambda p: p.write_text("x"), "link elsewhere": lambda p: p.symlink_to("../far"),
     "link to a user's folder": lambda p: p.symlink_to("mine")}[kind](latest)
    before, said = listing(runs), list[str]()
    finished(runs, said=said)
    assert {k: v for k, v in listing(runs).items() if not k.startswith("run")} == before
    assert any("left alone" in s for s in said)


def test_latest_follows_the_last_run(tmp_path: Path) -> None:
    finished(tmp_path, name="a")
    finished(tmp_path, name="b")
    assert os.readlink(tmp_path / "latest") == "b"


# -- a finished run --------------------------------------------------------------------------------
def test_a_finished_run_is_done(tmp_path: Path) -> None:
    finished(tmp_path)
    before = listing(tmp_path)
    with opened(tmp_path) as folder:
        assert folder.done and folder.path == folder.final == tmp_path / "run"
    assert listing(tmp_path) == before


def test_fresh_replaces_a_finished_run_that_holds_nothing_else(tmp_path: Path) -> None:
    finished(tmp_path, "first")
    final = finished(tmp_path, "second", fresh=True)
    assert (final / "report.html").read_text() == "second"
    assert sorted(os.listdir(tmp_path)) == ["latest", "run"]


@pytest.mark.parametrize("change", ["notes.txt", "c/notes.txt", "report.html", "empty/"])
def test_what_the_user_put_into_a_finished_run_is_kept(change: str, tmp_path: Path) -> None:
    final = finished(tmp_path, "first")
    path = final / change
    if change.endswith("/"):
        path.mkdir()
    else:
        path.write_text("the user's")
    said: list[str] = []
    finished(tmp_path, "second", fresh=True, said=said)
    kept = tmp_path / "run.old-1"
    assert (kept / change).is_dir() or (kept / change).read_text() == "the user's"
    assert (tmp_path / "run/report.html").read_text() == "second"
    assert any("run.old-1" in s and change.rstrip("/") in s for s in said)


def test_a_finished_run_of_other_settings_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    finished(tmp_path, "first", settings=OLD)
    finished(tmp_path, "second", settings=NEW, said=said)
    assert (tmp_path / "run.old-1/report.html").read_text() == "first"
    assert (tmp_path / "run/report.html").read_text() == "second"
    assert "train.lr" in said[0] and "run.old-1" in said[1]
    finished(tmp_path, "third", settings=OLD)
    assert (tmp_path / "run.old-2/report.html").read_text() == "second"


def test_the_training_of_a_finished_run_goes_on(tmp_path: Path) -> None:
    finished(tmp_path, settings={"epochs": 1})
    with opened(tmp_path, {"epochs": 2}, continues=lambda old, new: old["epochs"] < new["epochs"]) as folder:
        assert (folder.path / TRAINING).read_bytes() == (tmp_path / "run" / TRAINING).read_bytes()
        assert not (folder.path / "report.html").exists()
        folder.finish()
    assert TRAINING in Marker.read(tmp_path / "run").files
    with opened(tmp_path, {"epochs": 1}, continues=lambda old, new: old["epochs"] < new["epochs"]) as folder:
        assert not (folder.path / TRAINING).exists()


# -- a stopped run ---------------------------------------------------------------------------------
def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ReportError), opened(tmp_path) as folder:
        folder.write_text("plan.yaml", "plan")
        (folder.path / "plan.yaml.new").write_text("half")      # what writers leave when the disk is full
        folder.file("c")
        (folder.path / ".c.12.new").mkdir()
        (folder.path / ".c.12.new/a.c").write_text("half")
        raise ReportError("refused")
    assert listing(tmp_path) == {}


def test_what_the_user_put_into_a_refused_run_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ReportError), opened(tmp_path) as folder:
        folder.write_text("plan.yaml", "plan")
        (folder.path / "notes.txt").write_text("x")
        raise ReportError("refused")
    assert set(listing(tmp_path)) == {".run.partial", ".run.partial/notes.txt", f".run.partial/{MARKER}"}
    final = finished(tmp_path, fresh=True)
    assert (final / "notes.txt").read_text() == "x"
    assert Marker.read(final).foreign(final) == ["notes.txt"]


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    stopped(tmp_path)
    assert not (tmp_path / "run").exists() and not (tmp_path / ".run.lock").exists()
    with opened(tmp_path) as folder:
        assert (folder.path / TRAINING).is_file() and not (folder.path / "plan.yaml").exists()
        folder.finish()
    assert set(KEPT) >= set(Marker.read(tmp_path / "run").files) == {TRAINING}


def test_a_stopped_run_of_other_settings_is_set_aside(tmp_path: Path) -> None:
    stopped(tmp_path)
    said: list[str] = []
    with opened(tmp_path, NEW, said) as folder:
        assert not (folder.path / TRAINING).exists()
        assert (tmp_path / ".run.stopped-1" / TRAINING).is_file()
    assert "train.lr" in said[0] and ".run.stopped-1" in said[0]


def test_fresh_starts_a_stopped_run_again(tmp_path: Path) -> None:
    stopped(tmp_path)
    with opened(tmp_path, fresh=True) as folder:
        assert set(os.listdir(folder.path)) == {MARKER}
    assert listing(tmp_path) == {}


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no marker": lambda p: (p / MARKER).unlink(),
    "corrupt marker": lambda p: (p / MARKER).write_bytes(b"\x00\xff"),
    "marker of other fields": lambda p: (p / MARKER).write_text('{"name": 3}'),
    "marker is a list": lambda p: (p / MARKER).write_text("[]"),
    "corrupt checkpoint": lambda p: (p / TRAINING).write_bytes(b"\xff" * 100),
    "empty checkpoint": lambda p: (p / TRAINING).write_bytes(b""),
    "truncated checkpoint": lambda p: (p / TRAINING).write_bytes((p / TRAINING).read_bytes()[:-4]),
    "checkpoint is a folder": lambda p: ((p / TRAINING).unlink(), (p / TRAINING).mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_partial_is_set_aside_and_is_no_wall(kind: str, tmp_path: Path) -> None:
    for number in (1, 2):
        stopped(tmp_path)
        DAMAGE[kind](tmp_path / ".run.partial")
        damaged, said = sorted(os.listdir(tmp_path / ".run.partial")), list[str]()
        with opened(tmp_path, said=said) as folder:
            assert set(os.listdir(folder.path)) == {MARKER}
        aside = tmp_path / f".run.damaged-{number}"
        assert sorted(os.listdir(aside)) == damaged
        assert len(said) == 1 and "damaged" in said[0] and aside.name in said[0]


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_a_partial_that_is_no_folder_is_set_aside(kind: str, tmp_path: Path) -> None:
    TAKEN[kind](tmp_path / ".run.partial")
    finished(tmp_path)
    assert os.path.lexists(tmp_path / ".run.damaged-1")


def test_a_corrupt_file_that_is_written_anew_does_no_harm(tmp_path: Path) -> None:
    stopped(tmp_path)
    (tmp_path / ".run.partial/plan.yaml").unlink()
    (tmp_path / ".run.partial/plan.yaml").mkdir()
    with opened(tmp_path) as folder:
        folder.write_text("plan.yaml", "new")
        assert (folder.path / TRAINING).is_file()


# -- crashes ---------------------------------------------------------------------------------------
class Crash(BaseException):
    pass


@pytest.mark.parametrize("renames", [0, 1, 2])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_crash_between_the_renames_is_repaired(renames: int, fresh: bool, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path, "first")
    rename, left = Path.rename, [renames]

    def crashing(self: Path, target: Path) -> Path:
        if left[0] == 0:
            raise Crash
        left[0] -= 1
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Path, "rename", crashing)
        patch.setattr("runtime.folder.remove", lambda path: (_ for _ in ()).throw(Crash))
        finished(tmp_path, "second", settings=NEW, fresh=fresh)
    with opened(tmp_path, NEW) as folder:
        assert folder.done and (folder.path / "report.html").read_text() == "second"
    texts = {p.parent.name: p.read_text() for p in tmp_path.glob("*/report.html")}
    assert texts.pop("run") == texts.pop("latest") == "second"
    assert set(texts.values()) <= {"first"} and (fresh or texts)
    assert not [p for p in os.listdir(tmp_path) if p.startswith(".")]


def test_an_old_run_whose_successor_is_lost_comes_back(tmp_path: Path) -> None:
    finished(tmp_path, "first").rename(tmp_path / ".run.old")
    with opened(tmp_path) as folder:
        assert folder.done and (folder.path / "report.html").read_text() == "first"


@pytest.mark.parametrize("where", ["write_text", "replace", "mkdir"])
def test_a_full_disk_is_one_line_and_loses_nothing(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = finished(tmp_path, "first")
    (final / "notes.txt").write_text("x")
    before = listing(final)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ReportError, match="No space left"):
        patch.setattr(Path, where, full)
        finished(tmp_path, "second", settings=NEW)
    assert listing(final) == before
    finished(tmp_path, "second", settings=NEW)
    assert (tmp_path / "run.old-1/notes.txt").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ReportError, match="cannot be"):
        opened(tmp_path)
    tmp_path.chmod(0o700)


# -- two runs --------------------------------------------------------------------------------------
HOLD = """
import sys
from runtime.folder import RunFolder
with RunFolder.open(sys.argv[1], "run", {"train": {"lr": 1}}) as folder:
    print("open", flush=True)
    sys.stdin.read()
    folder.write_text("report.html", "theirs")
    folder.finish()
"""


def holding(parent: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, cwd=Path(__file__).parents[2])
    assert process.stdout and process.stdout.readline() == "open\n"
    return process


@pytest.mark.parametrize("settings", [OLD, NEW], ids=["same", "other"])
@pytest.mark.parametrize("fresh", [False, True])
def test_the_second_of_two_runs_is_refused_naming_the_first(settings: dict[str, Any], fresh: bool, tmp_path: Path) -> None:
    process = holding(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(ReportError, match=rf"in use by process {process.pid} on "):
        opened(tmp_path, settings, fresh=fresh)
    with opened(tmp_path, settings, name="other"):
        pass
    assert listing(tmp_path) == before
    process.communicate("")
    assert process.returncode == 0
    assert (tmp_path / "run/report.html").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == ["latest", "run"]


def test_the_lock_of_a_killed_run_is_taken_over_with_a_message(tmp_path: Path) -> None:
    process = holding(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / ".run.lock").is_file()
    said: list[str] = []
    with opened(tmp_path, said=said):
        assert Holder.read((tmp_path / ".run.lock").read_text()).pid == os.getpid()
    assert f"process {process.pid} on" in said[0] and "ended" in said[0]
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("content", ["a note of mine", '{"pid": 3}', "[]"])
def test_a_file_with_the_name_of_a_lock_is_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / ".run.lock").write_text(content)
    with pytest.raises(ReportError, match="no lock of a run"):
        opened(tmp_path)
    assert listing(tmp_path) == {".run.lock": content}


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    (tmp_path / ".run.lock").symlink_to("mine")
    with pytest.raises(ReportError, match="lock"):
        opened(tmp_path)
    assert (tmp_path / ".run.lock").is_symlink() and (tmp_path / "mine").read_text() == ""


def test_a_lock_of_another_machine_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").write_text(json.dumps({"pid": 1, "host": "far", "boot": "b", "started": "s", "command": "c"}))
    with pytest.raises(ReportError, match=r"process 1 on far .*remove"):
        opened(tmp_path)


@pytest.mark.parametrize("locks", ["none here", "not on this file system"])
def test_without_locks_of_the_system_the_file_is_the_lock(locks: str, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsupported:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(file: int, how: int) -> None:
            raise OSError(38, "not implemented")

    monkeypatch.setattr(lock_module, "fcntl", None if locks == "none here" else Unsupported)
    path = tmp_path / "lock"
    first, second = (Lock(path, "the run x", ReportError) for _ in range(2))
    first.acquire(print)
    with pytest.raises(ReportError, match=rf"process {os.getpid()} on .*remove"):
        second.acquire(print)
    first.release()
    second.acquire(print)
    second.release()
    assert not path.exists()


# -- which settings a training goes on under --------------------------------------------------------
CONSTANT = ["train.schedule=constant"]


@pytest.mark.parametrize(("old", "new", "goes_on"), [
    (CONSTANT, [*CONSTANT, "train.epochs=9"], True), ([*CONSTANT, "train.epochs=9"], CONSTANT, False),
    ([], ["train.epochs=9"], False),        # the rate would have fallen otherwise
    (["train.steps=5"], ["train.steps=6"], True), (["train.steps=5"], [], True), ([], ["train.steps=5"], False),
    (["train.steps=6"], ["train.steps=5"], False),
    ([], ["compile.compiler=gcc"], True), ([], ["compile.max_recompute=2"], False),
    ([], ["monitor.wandb=offline", "train.trace_steps=3", "data.test_images=9", "train.checkpoint_every=7"], True),
    ([], ["train.lr=0.5"], False), ([], ["train.momentum=0.5"], False), ([], ["data.seed=1"], False),
    ([], ["model.name=vit_tiny_patch16_224"], False), ([], ["model.extra={depth: 2}"], False),
    ([], ["budget.memory=1mb"], False),
])
def test_a_training_goes_on_where_every_step_would_be_made_again(old: list[str], new: list[str], goes_on: bool) -> None:
    assert json.loads(json.dumps(make_run_config([], old).settings())) == make_run_config([], old).settings()
    before, after = (make_run_config([], o).settings() for o in (old, new))
    assert continues(before, after) is goes_on


def test_a_training_does_not_go_on_with_other_files(tmp_path: Path) -> None:
    images, plan = tmp_path / "images", tmp_path / "plan.yaml"
    (images / "train/a").mkdir(parents=True)
    for path in (images / "train/a/1.png", plan):
        path.write_text("x")

    def settings() -> dict[str, Any]:
        return make_run_config([], ["data.name=imagefolder", f"data.data_root={images}", f"plan.file={plan}"]).settings()
    before = settings()
    assert continues(before, settings())
    (images / "train/a/2.png").write_text("y")
    more = settings()
    assert not continues(before, more)
    plan.write_text("another plan")
    assert not continues(more, settings())
