"""Placement: solvers against the validator and an exact solver; the command line on good and bad files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compilation.errors import PlacementError
from compilation.memory.exact import solve
from compilation.memory.placement import Item, bound_of, height_of, place
from compilation.memory.search import Search, Span
from compilation.memory.validate import check_placement
from compilation.place import main

INSTANCES = Path(__file__).resolve().parents[3] / "shared" / "planner_instances"


@st.composite
def instances(draw: st.DrawFn, most: int = 24, smallest: int = 0) -> list[Item]:
    rows = draw(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8), st.integers(smallest, 9)), max_size=most))
    unit = draw(st.sampled_from([1, 4, 1024]))
    return [Item(f"b{n}", lower, lower + length, size * unit) for n, (lower, length, size) in enumerate(rows)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(instances())
def test_every_placement_is_valid_and_the_bound_is_below(items: list[Item]) -> None:
    placement = place(items, limit_seconds=5.0)
    check_placement(items, placement.offsets, placement.height)
    assert placement.height == height_of(items, placement.offsets)
    assert bound_of(items) <= placement.bound <= placement.height
    again = place(items, placement.height, limit_seconds=5.0)
    check_placement(items, again.offsets, placement.height)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(instances(most=12, smallest=1), st.integers(0, 6))
def test_search_and_cp_sat_agree(items: list[Item], slack: int) -> None:
    """Also that the search rules out only what is impossible."""
    assume(items)
    spans = [Span(i.lower, i.upper, i.size) for i in items]
    ceiling = bound_of(items) + slack
    mine, theirs = Search(spans).run(ceiling, 10 ** 6), solve(spans, ceiling, 10 ** 5, 20.0)
    assert (mine.offsets is None, mine.proved) == (theirs.offsets is None, theirs.proved)
    for outcome in (mine, theirs):
        if outcome.offsets is not None:
            check_placement(items, {i.id: at for i, at in zip(items, outcome.offsets, strict=True)}, ceiling)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(instances(smallest=1), st.data())
def test_the_validator_refuses_corrupted_placements(items: list[Item], data: st.DataObject) -> None:
    assume(items)
    placement = place(items, limit_seconds=5.0)
    victim = data.draw(st.sampled_from(items))
    offsets, height = placement.offsets, placement.height
    wrong = [offsets | {victim.id: height - victim.size + 1}, offsets | {victim.id: -1},
             {n: at for n, at in offsets.items() if n != victim.id}]
    beside = [i for i in items if i is not victim and i.lower < victim.upper and victim.lower < i.upper]
    if beside:
        wrong.append(offsets | {victim.id: offsets[data.draw(st.sampled_from(beside)).id]})
    for bad in wrong:
        with pytest.raises(PlacementError):
            check_placement(items, bad, height)
    with pytest.raises(PlacementError):
        check_placement(items, offsets, height - 1)
    shifted = {n: at + 1 for n, at in offsets.items()}
    with pytest.raises(PlacementError, match="aligned"):
        check_placement(items, shifted, height + 1, alignment=1 << 20)


def test_impossible_capacities_are_refused() -> None:
    items = [Item("a", 0, 2, 5), Item("b", 1, 3, 6)]
    with pytest.raises(PlacementError, match="11 bytes live at once"):
        place(items, 10)
    assert place(items, 11).height == 11
    assert place([]).height == 0


def test_a_proof_raises_the_bound() -> None:
    """At most 7 bytes live at once, and yet no placement needs fewer than 8."""
    rows = [(6, 7, 3), (0, 1, 4), (5, 6, 1), (3, 7, 4), (1, 6, 2), (2, 4, 1), (1, 3, 2), (0, 2, 3)]
    items = [Item(f"b{n}", *row) for n, row in enumerate(rows)]
    placement = place(items)
    assert (bound_of(items), placement.bound, placement.height) == (7, 8, 8)
    with pytest.raises(PlacementError, match="ruled out"):
        place(items, 7)


@pytest.mark.parametrize("name", ["A.1048576", "D.1048576", "J.1048576", "input.12"])
def test_the_shared_instances(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = INSTANCES / f"{name}.csv"
    if not file.is_file():
        pytest.skip(f"{file} is not here: the shared instances lie outside the repository")
    assert main([str(file), "--capacity", name.split(".")[1], "--output", str(tmp_path / "out.csv")]) == 0
    text = capsys.readouterr().out
    assert "height" in text and "bound" in text and "gap" in text
    assert len((tmp_path / "out.csv").read_text().splitlines()) == len(file.read_text().splitlines())


@pytest.mark.parametrize(("text", "capacity", "status", "message"), [
    ("id,lower,upper,size\na,0,3,4\nb,2,9,4\n", 8, 0, ""),
    ("id,lower,upper,size\na,0,3,4\nb,2,9,4\n", 7, 1, "8 bytes live at once"),
    ("id,lower,size\na,0,4\n", 8, 1, "the header lacks upper"),
    ("", 8, 1, "the header lacks"),
    ("id,lower,upper,size\na,0,x,4\n", 8, 1, "line 2: lower, upper and size must be integers"),
    ("id,lower,upper,size\na,0,3\n", 8, 1, "line 2: lower, upper and size must be integers"),
    ("id,lower,upper,size\na,0,3,4\nb,3,3,4\n", 8, 1, "line 3: upper must exceed lower"),
    ("id,lower,upper,size\na,0,3,-4\n", 8, 1, "size must not be negative"),
    ("id,lower,upper,size\na,0,3,4\na,0,3,4\n", 8, 1, "an id occurs twice"),
    (None, 8, 1, "cannot read"),
])
def test_the_command_line(text: str | None, capacity: int, status: int, message: str, tmp_path: Path,
                          capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "in.csv"
    if text is not None:
        file.write_text(text)
    assert main([str(file), "--capacity", str(capacity), "--output", str(tmp_path / "out.csv")]) == status
    assert message in capsys.readouterr().err
    assert (tmp_path / "out.csv").is_file() == (status == 0)
