"""python -m benchmarks.verdict: how often the verdict cries wolf, and which planted faults it finds.

(a) Correct runs: small models x plans x momentum 0 and 0.9 x 5 and 20 steps x seeds, recorded with each vector unit of
PyTorch (ATEN_CPU_CAPABILITY default, avx2, the CPU's own) and one and two threads. Each must be proven.
(b) Planted faults: one line of kernels, gradients, passes or code generation changed; the changed project replays a run
that the sound one recorded. Each must be found. --unit-tests also runs the tests that should find it.

--json FILE writes runs, false_alarms, planted, caught, and every row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

KINDS = ("loss", "largest", "rms", "along")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m benchmarks.verdict", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("--seeds", type=int, default=4, help="seeds a cell (default 4: 1,152 correct runs)")
    p.add_argument("--part", choices=["both", "alarms", "planted"], default="both", help="which half (default both)")
    p.add_argument("--only", default="", help="only the planted faults whose name contains this text")
    p.add_argument("--unit-tests", action="store_true", help="also look whether the unit tests find each planted fault")
    p.add_argument("--work", type=Path, help="folder to work in: the same one again resumes (default: a temporary one)")
    p.add_argument("--json", type=Path, help="write the figures and all rows here")
    return p


def summarise(runs: list[dict[str, Any]], faults: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures, and what every single run and fault came to."""
    share = {k: max((r[k] for r in runs), default=0.0) for k in KINDS}
    return {"runs": len(runs), "false_alarms": sum(r["outcome"] == "differs" for r in runs),
            "not_proven": sum(r["outcome"] != "proven" for r in runs), "largest_share_of_allowed": share,
            "planted": len(faults), "caught": sum(f["caught"] for f in faults),
            "caught_by_tests": sum(f.get("caught_by_test", False) for f in faults),
            "run_rows": runs, "fault_rows": faults}


def tables(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(150, Console().width), markup=False)
    if result["runs"]:
        table = Table(title=f"{result['runs']:,} correct runs, {result['false_alarms']} false alarms")
        for column in ("case", "runs", "proven", *(f"largest share of allowed: {k}" for k in KINDS)):
            table.add_column(column)
        for case in dict.fromkeys(r["case"] for r in result["run_rows"]):
            rows = [r for r in result["run_rows"] if r["case"] == case]
            table.add_row(case, str(len(rows)), str(sum(r["outcome"] == "proven" for r in rows)),
                          *(f"{max(r[k] for r in rows):.2f}" for k in KINDS))
        console.print(table)
    if result["planted"]:
        table = Table(title=f"{result['planted']} planted faults, {result['caught']} caught")
        for column in ("fault", "case", "found by", "what it says", "unit test"):
            table.add_column(column)
        for f in result["fault_rows"]:
            found = {True: "yes", False: "no", None: ""}[f.get("caught_by_test")]
            table.add_row(f["name"], f["case"], f["by"] if f["caught"] else "MISSED", (f["text"] or [""])[0][:70], found)
        console.print(table)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.seeds < 1:
        parser().error("--seeds must be 1 or more")
    from benchmarks.verdict import alarms, planted

    with tempfile.TemporaryDirectory(prefix="verdict-") as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        runs = alarms.run_all(work, args.seeds) if args.part != "planted" else []
        faults = planted.run_all(work, args.unit_tests, args.only) if args.part != "alarms" else []
    result = summarise(runs, faults)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    tables(result)
    return 0 if not result["not_proven"] and result["caught"] == result["planted"] else 1


if __name__ == "__main__":
    sys.exit(main())
