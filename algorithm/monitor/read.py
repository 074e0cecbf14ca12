"""Read back what a run recorded: its metrics.jsonl, and the .wandb file of Weights & Biases without network or account."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from algorithm.analysis.records import read_records
from algorithm.errors import AnalysisError, CheckpointError
from algorithm.monitor.values import Value, from_json
from algorithm.schema import one_line

Series = dict[str, list[tuple[int, Any]]]

# A .wandb file is LevelDB's log format (its doc/log_format.md) after a header of 7 bytes: blocks of 32 KiB, and in them
# fragments of records, each checksum (4), length (2), type (1), data. A trailer of zeros fills a block.
HEADER, BLOCK = b":W&B", 1 << 15
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_metrics(folder: str | Path) -> dict[str, list[tuple[int, Value]]]:
    """{metric: [(step, value)]} of a run folder's metrics.jsonl, in the order of the file, values as they were recorded.

    `algorithm.analysis.records` reads the file; a last line that is torn is left out. Raises AnalysisError.
    """
    path = Path(folder) / "metrics.jsonl"
    out: dict[str, list[tuple[int, Value]]] = {}
    for name, found in read_records(path).items():
        try:
            out[name] = [(step, from_json(value, path.parent)) for step, value in found]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise AnalysisError(f"{path} holds a {name} that no run records ({one_line(error)}): it was edited, or another "
                                "program wrote it") from None
    return out


def read_wandb_offline(folder: str | Path) -> Series:
    """{metric: [(step, value)]} of all .wandb files below a run folder, steps ascending. Raises CheckpointError.

    A training that was resumed has a file for each time it went on; of a step that two files have, the later one counts.
    Numbers are numbers; histograms, images and tables are wandb's own description of them. The rows of a custom chart
    stand under `<metric>_table` there, and under the metric's name here.
    """
    files = sorted(Path(folder).rglob("*.wandb"), key=lambda path: path.parent.name)
    if not files:
        raise CheckpointError(f"{folder} has no .wandb file: record with monitor.wandb=offline")
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, dict[int, Any]] = {}
    for path in files:
        for data in records(path):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") != "history":
                continue
            row: dict[str, Any] = {}
            for item in record.history.item:
                name, *fields = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                if fields:
                    row.setdefault(name, {})["/".join(fields)] = value
                else:
                    row[name] = value
            for name, value in row.items():
                if not name.startswith("_"):
                    found.setdefault(_metric(name, value), {})[record.history.step.num] = value
    return {name: sorted(steps.items()) for name, steps in found.items()}


def _metric(name: str, value: Any) -> str:
    """The metric that a key of the history is for."""
    chart = name.endswith("_table") and isinstance(value, dict) and value.get("_type") == "table-file"
    return name.removesuffix("_table") if chart else name


def records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, without wandb. Raises CheckpointError; a last record that is torn is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    if not data.startswith(HEADER):
        raise CheckpointError(f"{path} is no .wandb file: it does not begin with {HEADER.decode()}")
    at, parts = 7, b""
    while at + 7 <= len(data):
        room = BLOCK - at % BLOCK
        if room < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if kind not in (FULL, FIRST, MIDDLE, LAST):
            raise CheckpointError(f"{path} is damaged at byte {at}: a fragment of unknown type {kind}")
        if at + 7 + length > len(data):
            return
        parts = data[at + 7:at + 7 + length] if kind in (FULL, FIRST) else parts + data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield parts
