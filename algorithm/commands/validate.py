"""python -m algorithm validate: a checkpoint on the held-out images of any data set."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from algorithm.commands.arguments import Parser
from algorithm.commands.opening import add_opening_flags, class_names, eval_transform_of, open_model, read_request
from algorithm.commands.output import emit_json, show
from algorithm.errors import DataError

if TYPE_CHECKING:
    from algorithm.commands.opening import Asked
    from algorithm.recipes.reporting import Evaluation

EPILOG = """\
a checkpoint of `train` knows its model and its data; both can be other data, of the same classes
  python -m algorithm validate --checkpoint work/x
  python -m algorithm validate --checkpoint work/x --data-dir FOLDER --json result.json
  python -m algorithm validate --model vit_tiny_patch16_224 --checkpoint timm.safetensors --data-dir FOLDER --batch-size 64
"""
WORST = 10      # classes, and pairs of them, that the table names


def parser() -> Parser:
    p = Parser("validate", "Evaluate a checkpoint: top-1, top-5, every class, confusion.", EPILOG)
    add_opening_flags(p)
    p.add_argument("--json", metavar="FILE", help="everything as JSON; - for the standard output")
    p.add_argument("--confusion", action="store_true", help="print the whole confusion matrix (rows: the true class)")
    return p


def run(options: argparse.Namespace) -> int:
    asked = read_request(options)
    from algorithm.preflight import check_data
    check_data(asked.experiment.data, asked.experiment.model.num_classes)
    from algorithm.data.streams import open_streams
    from algorithm.journal import Journal
    from algorithm.recipes.devices import Precision, find_device
    from algorithm.recipes.evaluate import evaluate_stream
    from algorithm.training.progress import progress
    journal = Journal()
    model = open_model(asked)
    _, stream = open_streams(asked.experiment.data, journal.say)
    check_classes(asked, stream.classes)
    recipe = asked.experiment.recipe
    with progress("evaluating", len(stream), journal.console) as bar:
        found = evaluate_stream(model, stream, eval_transform_of(asked, model), batch=recipe.batch_eval or recipe.batch,
                                workers=recipe.workers, on_batch=bar.done,
                                autocast=Precision(recipe, find_device(recipe.device)).autocast)
    said = as_json(asked, found, len(stream.broken.found), class_names(asked, stream.classes, len(found.confusion)))
    if options.json != "-":
        for table in tables(said, options.confusion):
            show(table)
    emit_json(said, options.json)
    return 0


def check_classes(asked: Asked, names: list[str]) -> None:
    """Raise DataError where the data set's classes are not those that the checkpoint was trained on."""
    known = asked.classes
    if known and names != known:
        odd = next((n for n in names if n not in known), None)
        raise DataError(f"class {odd!r} of the data is none of the checkpoint's {len(known)} classes ({', '.join(known[:5])}"
                        f"{', ...' if len(known) > 5 else ''}): use data of the same classes" if odd is not None else
                        f"the data have {len(names)} classes, the checkpoint {len(known)} (or in another order): name "
                        "all of them as class folders, or in order with data.class_list")


def as_json(asked: Asked, found: Evaluation, broken: int, names: list[str]) -> dict[str, Any]:
    """Plain data; confusion[i][j]: images of class i that were taken for j. A class without images has null."""
    per_class = [None if v != v else float(v) for v in map(float, found.per_class)]
    return {"checkpoint": str(asked.path), "ema": asked.ema, "model": asked.experiment.model.name,
            "data": asked.experiment.data.name, "images": int(found.count), "broken": broken, "loss": float(found.loss),
            "top1": float(found.top1), "top5": float(found.top5), "per_class": dict(zip(names, per_class, strict=True)),
            "confusion": [[int(n) for n in row] for row in found.confusion]}


def tables(said: dict[str, Any], confusion: bool) -> list[Any]:
    """What a person reads: the figures, the worst classes, what is taken for what most often."""
    from algorithm.analysis.tables import Table, figure, share
    names, matrix = list(said["per_class"]), said["confusion"]
    out = [Table(f"{said['model']} on {said['data']}", ["", "value"], [
        ["images", str(said["images"])], ["top-1", share(said["top1"])], ["top-5", share(said["top5"])],
        ["loss", figure(said["loss"])], ["broken images, left out", str(said["broken"])]])]
    ranked = sorted((v, n) for n, v in said["per_class"].items() if v is not None)
    title = "by class" if len(ranked) <= WORST else f"by class, the {WORST} worst of {len(ranked)}"
    counts = {n: sum(row) for n, row in zip(names, matrix, strict=True)}
    out.append(Table(title, ["class", "accuracy", "images"], [[n, share(v), str(counts[n])] for v, n in ranked[:WORST]]))
    if confusion:
        out.append(Table("confusion (rows: the true class)", ["", *names],
                         [[n, *map(str, row)] for n, row in zip(names, matrix, strict=True)]))
    pairs = sorted(((row[j], a, names[j]) for a, row in zip(names, matrix, strict=True) for j in range(len(names))
                    if row[j] and names[j] != a), reverse=True)[:WORST]
    if pairs:
        out.append(Table("taken for another most often", ["class", "taken for", "images"],
                         [[a, b, str(n)] for n, a, b in pairs]))
    return out
