"""What a region costs where it is called: its schedules, and the nest of the one that was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compilation.ops.base import Site
from compilation.regions import schedule as schedules
from compilation.regions.build import build
from compilation.regions.loops import Nest
from compilation.regions.memory import Layout
from compilation.regions.search import Option, options, pruned
from compilation.regions.statements import Statements, statements
from compilation.target import CORTEX_M, Target

if TYPE_CHECKING:
    from compilation.regions.region import Region


@dataclass(frozen=True)
class Space:
    """The schedules of a region at one kind of site, fastest first, and the results that may take an input's place in all
    of them."""

    options: tuple[Option, ...]
    over: tuple[tuple[str, str], ...]


def space(region: Region, site: Site, target: Target = CORTEX_M) -> Space:
    """The schedules worth having. Where letting a result take an input's place is worth more than what the schedules that
    cannot save, those are left out."""
    key = (*_key(region, site), target)
    if key not in _SPACES:
        found = options(lambda split: _statements(region, site, split), target)
        least = min(o.scratch for o in found)
        over: list[tuple[str, str]] = []
        for pair in sorted({p for o in found for p in o.over}):
            able = [o for o in found if pair in o.over]
            if pair[0] not in dict(over) and able and \
                    min(o.scratch for o in able) < least + region.definition.tensors[pair[0]].bytes:
                found, over = able, [*over, pair]
        _SPACES[key] = Space(tuple(pruned(found)), tuple(over))
    return _SPACES[key]


def layout(region: Region, site: Site, schedule: str = "") -> Layout:
    """The loops and tensors of a region under one schedule (the call's own, else the fastest)."""
    text = schedule or site.attrs.get("schedule") or space(region, site).options[0].schedule
    key = (*_key(region, site), text)
    if key not in _LAYOUTS:
        read = schedules.read(text)
        _LAYOUTS[key] = Layout(build(_statements(region, site, "split" in read.choices), read))
    return _LAYOUTS[key]


def nest(region: Region, site: Site, schedule: str = "") -> Nest:
    """The same as plain data, every tensor in its place."""
    text = schedule or site.attrs.get("schedule") or space(region, site).options[0].schedule
    key = (*_key(region, site), text)
    if key not in _NESTS:
        _NESTS[key] = layout(region, site, text).nest()
    return _NESTS[key]


def _statements(region: Region, site: Site, split: bool) -> Statements:
    wanted = tuple(r for r in region.results if r in site.wants or not r.startswith("d_"))
    return statements(region.definition, wanted, site.parts, site.updates, split)


def _key(region: Region, site: Site) -> tuple[object, ...]:
    return region.name, site.wants, site.updates, tuple(sorted(site.parts.items()))


_SPACES: dict[tuple[object, ...], Space] = {}
_LAYOUTS: dict[tuple[object, ...], Layout] = {}
_NESTS: dict[tuple[object, ...], Nest] = {}
