"""From GPU to device: a recorded run of the device's own steps, from a training's last weights, for `python -m runtime`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from algorithm.commands.opening import Asked, checkpoint_file, header_of, open_model
from algorithm.errors import DataError
from algorithm.experiment import Experiment
from algorithm.training.config import TrainConfig

TRACE, PLAN = "trace.safetensors", "plan.yaml"


def record(experiment: Experiment, folder: Path, steps: int, say: Callable[[str], None]) -> None:
    """Write `trace.safetensors` and `plan.yaml` into the work folder: `steps` steps of batch-1 SGD on the first training
    images, at the main job's learning rate, from the newest checkpoint and by its plan, on the training's device in full
    float32.

    Raises DataError where there are fewer images.
    """
    import numpy as np

    from algorithm.data.dataset import resize
    from algorithm.data.streams import open_streams
    from algorithm.recipes.devices import find_device
    from algorithm.sparse.plan import UpdatePlan
    from algorithm.training.trace import record_trace
    path = checkpoint_file(folder)
    said = header_of(path)
    model = open_model(Asked(path, experiment, said, [], ema=False))
    plan = UpdatePlan.from_dict(said["plan"])   # as it was trained: the rule, on trained weights, may choose other columns
    stream, _ = open_streams(experiment.data, say)
    if steps > len(stream):
        raise DataError(f"output.record_trace={steps} is more than the {len(stream)} training images: record fewer")
    images = np.stack([resize(stream.open(i), experiment.model.img_size) for i in range(steps)])
    plan.save(folder / PLAN)
    record_trace(model, plan, images, stream.labels[:steps], TrainConfig().lr, path=folder / TRACE,
                 device=find_device(experiment.recipe.device))
    say(f"trace of {steps} of the device's steps, from {path.name}: {folder / TRACE}")
