"""`python -m compilation.place FILE.csv --capacity N`: solve a placement instance.

The file has the columns id, lower, upper, size (upper exclusive). Prints height, bound, gap and seconds, writes the
offsets to FILE.offsets.csv in the current folder (or to --output), and exits 1 when no placement within the
capacity was found.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

# The solvers (NumPy) are imported in the functions that use them, so that `--help` and refusals come at once.
from compilation.errors import PlacementError
from compilation.request import whole

if TYPE_CHECKING:
    from compilation.memory.placement import Item, Placement

COLUMNS = ["id", "lower", "upper", "size"]
RESULT = [*COLUMNS, "offset"]


def read_instance(path: Path) -> list[Item]:
    """Read id,lower,upper,size rows. Raises PlacementError naming the bad line."""
    items: dict[str, Item] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = list(reader.fieldnames or [])
            missing = [c for c in COLUMNS if header.count(c) != 1]
            if missing:
                raise PlacementError(f"{path}: the header lacks {', '.join(missing)}, or has it twice; expected "
                                     "id,lower,upper,size")
            for row in reader:
                item = _item(f"{path}, line {reader.line_num}", row)
                if item.id in items:
                    raise PlacementError(f"{path}, line {reader.line_num}: an id occurs twice ({item.id!r})")
                items[item.id] = item
    except (UnicodeDecodeError, csv.Error) as error:
        raise PlacementError(f"{path} is not a CSV file: {error}") from None
    except OSError as error:
        raise PlacementError(f"cannot read {path}: {error.strerror}") from None
    return list(items.values())


def _item(where: str, row: dict[str, str]) -> Item:
    if None in row:
        raise PlacementError(f"{where}: it has more values than the header has columns")
    from compilation.memory.placement import Item
    try:
        item = Item(row["id"], int(row["lower"]), int(row["upper"]), int(row["size"]))
    except (TypeError, ValueError):
        raise PlacementError(f"{where}: lower, upper and size must be integers") from None
    if item.upper <= item.lower or item.size < 0:
        raise PlacementError(f"{where}: upper must exceed lower and size must not be negative")
    return item


def check_output(output: Path, source: Path) -> None:
    """Raise PlacementError unless the offsets may be written there: a new file, or offsets that were written before."""
    if output.exists() or output.is_symlink():
        if not output.is_file():
            raise PlacementError(f"{output} is no file: choose another with --output")
        if source.exists() and output.samefile(source):
            raise PlacementError(f"{output} is the instance itself: choose another file with --output")
        with output.open(errors="replace") as file:
            first = file.readline().strip()
        if first not in ("", ",".join(RESULT)):
            raise PlacementError(f"{output} holds something else than offsets: choose another file with --output")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise PlacementError(f"{folder} is no folder: choose another place with --output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PlacementError(f"{folder} cannot be written: choose another place with --output")


def write_offsets(output: Path, items: list[Item], placement: Placement) -> None:
    """Written aside and moved into place. Raises PlacementError."""
    aside = ""
    try:
        with tempfile.NamedTemporaryFile("w", newline="", dir=output.absolute().parent, prefix=f".{output.name}.",
                                         delete=False) as file:
            aside = file.name
            writer = csv.writer(file)
            writer.writerow(RESULT)
            writer.writerows([i.id, i.lower, i.upper, i.size, placement.offsets[i.id]] for i in items)
        os.chmod(aside, 0o644)
        os.replace(aside, output)
    except OSError as error:
        if aside:
            Path(aside).unlink(missing_ok=True)
        raise PlacementError(f"cannot write {output}: {error.strerror}") from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no time limit: a number of seconds above 0 is expected")
    return value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m compilation.place", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="CSV with id,lower,upper,size (upper exclusive)")
    parser.add_argument("--capacity", type=whole(0, "capacity"), required=True, metavar="N",
                        help="bytes that the placement must not exceed")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="where the offsets go (default: FILE.offsets.csv in the current folder)")
    parser.add_argument("--seconds", type=_seconds, default=50.0, metavar="S", help="time limit")
    args = parser.parse_args(argv)
    output = args.output or Path(args.file.stem + ".offsets.csv")
    from compilation.memory.placement import place
    from compilation.memory.validate import check_placement
    try:
        items = read_instance(args.file)
        check_output(output, args.file)
        placement = place(items, args.capacity, args.seconds)
        check_placement(items, placement.offsets, args.capacity)
        write_offsets(output, items, placement)
    except PlacementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"height {placement.height}  bound {placement.bound}  gap {placement.gap:.2%}  "
          f"{placement.seconds:.2f} s  solver {placement.solver}  offsets {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
