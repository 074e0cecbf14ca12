"""The work folder: whose it is, under which settings a training goes on there, and that nothing of others is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from algorithm.commands.resolving import experiment_of, tree_of
from algorithm.commands.work import EXPERIMENT, LOG, WorkError, WorkFolder, finished, settings_of, stored
from algorithm.experiment import Experiment


def experiment(folder: Path, *overrides: str, **output: Any) -> Experiment:
    tree = tree_of(["training/dry_run.yaml"], {}, overrides)
    return experiment_of({**tree, "output": {"dir": str(folder), "name": "x", **output}})


def listing(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_resolved_experiment_is_kept_and_reads_back(tmp_path: Path) -> None:
    asked = experiment(tmp_path, "recipe.optim.lr=0.5", "model.gram.rank=3")
    with WorkFolder(asked, print) as work:
        work.say("hello")
    assert experiment_of(tree_of([work.path / EXPERIMENT], {}, [])) == asked
    assert stored(work.path) == settings_of(asked)
    assert (work.path / LOG).read_text().endswith(" hello\n")


def test_two_trainings_never_share_a_folder(tmp_path: Path) -> None:
    with WorkFolder(experiment(tmp_path), print):
        with pytest.raises(WorkError, match=r"in use by process .* another --experiment"):
            WorkFolder(experiment(tmp_path), print)
        with WorkFolder(experiment(tmp_path, name="y"), print):
            pass
    with WorkFolder(experiment(tmp_path), print):
        pass


@pytest.mark.parametrize(("overrides", "goes_on"), [
    ([], True), (["recipe.workers=1"], True), (["monitor.jsonl=false"], True), (["recipe.keep=7"], True),
    (["recipe.optim.lr=0.5"], False), (["recipe.schedule.epochs=9"], False), (["model.seed=4"], False),
    (["data.synthetic.images=9"], False)])
def test_a_training_goes_on_where_every_update_would_be_made_again(overrides: list[str], goes_on: bool,
                                                                       tmp_path: Path) -> None:
    with WorkFolder(experiment(tmp_path), print) as work:
        (work.path / "checkpoints").mkdir()
    before = listing(tmp_path)
    if goes_on:
        with WorkFolder(experiment(tmp_path, *overrides), print):
            assert (work.path / "checkpoints").is_dir()
        return
    with pytest.raises(WorkError, match=r"other settings \(.*--fresh replaces it"):
        WorkFolder(experiment(tmp_path, *overrides), print)
    assert listing(tmp_path) == before
    with WorkFolder(experiment(tmp_path, *overrides, fresh=True), print):
        assert not (work.path / "checkpoints").exists()


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(WorkError, match="no work folder"):
            WorkFolder(experiment(tmp_path, fresh=fresh), print)
    assert listing(tmp_path) == {"x/thesis.tex": "mine"}
    (tmp_path / "x" / "thesis.tex").rename(tmp_path / "thesis.tex")
    with WorkFolder(experiment(tmp_path), print) as work:
        (work.path / "notes.txt").write_text("mine")
    with WorkFolder(experiment(tmp_path, fresh=True), print):
        assert (work.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["a/b", "..", " ", ".x", "a\nb"])
def test_names_that_are_no_plain_file_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="--experiment"):
        WorkFolder(experiment(tmp_path, name=name), print)
    assert list(tmp_path.iterdir()) == []


def test_an_end_by_an_error_is_in_the_log_and_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), WorkFolder(experiment(tmp_path), print) as work:
        raise ZeroDivisionError("of\nthree")
    assert (work.path / LOG).read_text().endswith(" ended by ZeroDivisionError: of three\n")
    assert finished(work.path) is None
    with WorkFolder(experiment(tmp_path), print) as work:
        work.finish({"top1": 0.5})
    assert finished(work.path) == {"top1": 0.5}
