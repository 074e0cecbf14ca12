"""`python -m compilation.place FILE.csv --capacity N`: solve a placement instance.

The file has the columns id, lower, upper, size (upper exclusive). Prints height, bound, gap and seconds, writes the
offsets to FILE.offsets.csv in the current folder (or to --output), and exits 1 when no placement within the
capacity was found.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from compilation.errors import PlacementError
from compilation.memory.placement import Item, place
from compilation.memory.validate import check_placement


def read_instance(path: Path) -> list[Item]:
    """Read id,lower,upper,size rows. Raises PlacementError naming the bad line."""
    items = []
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = {"id", "lower", "upper", "size"} - set(reader.fieldnames or [])
            if missing:
                raise PlacementError(f"{path}: the header lacks {', '.join(sorted(missing))}; "
                                     "expected id,lower,upper,size")
            for line, row in enumerate(reader, 2):
                try:
                    item = Item(row["id"], int(row["lower"]), int(row["upper"]), int(row["size"]))
                except (TypeError, ValueError):
                    raise PlacementError(f"{path}, line {line}: lower, upper and size must be integers") from None
                if item.upper <= item.lower or item.size < 0:
                    raise PlacementError(f"{path}, line {line}: upper must exceed lower and size must not be negative")
                items.append(item)
    except (UnicodeDecodeError, csv.Error) as error:
        raise PlacementError(f"{path} is not a CSV file: {error}") from None
    except OSError as error:
        raise PlacementError(f"cannot read {path}: {error.strerror}") from None
    if len({i.id for i in items}) != len(items):
        raise PlacementError(f"{path}: an id occurs twice")
    return items


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m compilation.place", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="CSV with id,lower,upper,size (upper exclusive)")
    parser.add_argument("--capacity", type=int, required=True, help="bytes that the placement must not exceed")
    parser.add_argument("--output", type=Path,
                        help="where the offsets go (default: FILE.offsets.csv in the current folder)")
    parser.add_argument("--seconds", type=float, default=50.0, help="time limit")
    args = parser.parse_args(argv)
    try:
        items = read_instance(args.file)
        placement = place(items, args.capacity, args.seconds)
        check_placement(items, placement.offsets, args.capacity)
    except PlacementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    output = args.output or Path(args.file.stem + ".offsets.csv")
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "lower", "upper", "size", "offset"])
        writer.writerows([i.id, i.lower, i.upper, i.size, placement.offsets[i.id]] for i in items)
    print(f"height {placement.height}  bound {placement.bound}  gap {placement.gap:.2%}  "
          f"{placement.seconds:.2f} s  solver {placement.solver}  offsets {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
