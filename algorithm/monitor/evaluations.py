"""The metrics of an evaluation by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from algorithm.monitor.observer import Evaluation, Values
from algorithm.monitor.values import Confusion


def evaluation_values(evaluation: Evaluation, prefix: str, classes: Sequence[str], by_class: bool) -> Values:
    """`Val/loss`, `Val/accuracy` (top-1), `Val/top1_accuracy`, `Val/top5_accuracy`; by_class:
    `Val/per_class_accuracy/<class>` for each class with images, and `Charts/confusion_matrix`.

    Another prefix ("ValEMA") stands in place of Val, and at the end of the chart's name. Classes beyond the names that are
    given go by their number.
    """
    values: Values = {f"{prefix}/loss": evaluation.loss, f"{prefix}/accuracy": evaluation.top1,
                      f"{prefix}/top1_accuracy": evaluation.top1, f"{prefix}/top5_accuracy": evaluation.top5}
    if by_class:
        count = len(evaluation.confusion)
        names = tuple(classes[i] if i < len(classes) else str(i) for i in range(count))
        accuracies = zip(names, np.asarray(evaluation.per_class, np.float64), strict=True)
        values |= {f"{prefix}/per_class_accuracy/{name}": float(a) for name, a in accuracies if np.isfinite(a)}
        chart = "Charts/confusion_matrix" if prefix == "Val" else f"Charts/confusion_matrix_{prefix}"
        values[chart] = Confusion(np.asarray(evaluation.confusion, np.int64), names)
    return values
