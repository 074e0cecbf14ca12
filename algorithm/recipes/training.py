"""One update of a training by recipe, and everything that an update changes: model, optimiser, average, plan."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from algorithm.data.loading import EvalBatches, StepSampler, share_broken, train_batches
from algorithm.data.streams import Stream
from algorithm.data.transforms import train_transform
from algorithm.errors import DataError, NonFiniteLossError, PlanError
from algorithm.experiment import Experiment, settings_of
from algorithm.models import build_model, normalisation
from algorithm.models.torchvision_shim import timm
from algorithm.recipes.checkpoint import (
    DYNAMIC,
    EMA,
    OPTIM,
    PART,
    WATCH,
    Checkpoint,
    load_weights_into,
    save_checkpoint,
)
from algorithm.recipes.devices import Precision
from algorithm.recipes.distill import Teacher
from algorithm.recipes.distributed import World
from algorithm.recipes.dynamic import Dynamic
from algorithm.recipes.evaluate import evaluate_batches, held_out_transform
from algorithm.recipes.mixing import Mixing, make_loss, seed_pass
from algorithm.recipes.optim import check_state, is_second_order, make_optimizer
from algorithm.recipes.reporting import Evaluation
from algorithm.recipes.schedule import Length, Schedule
from algorithm.recipes.state import by_name, load_by_name, pack
from algorithm.sparse import resolve_plan
from algorithm.sparse.apply import AppliedPlan
from algorithm.sparse.plan import UpdatePlan


@dataclass(frozen=True)
class Step:
    """An update of this process: its learning rate, and, as tensors that nobody has waited for, the mean loss and the share
    of its images that were right (of mixed images: their larger part)."""

    update: int
    lr: float
    loss: Tensor
    accuracy: Tensor


class Training:
    """A model under an experiment on this process, before its `update`-th update. A context manager that takes the plan off.

    forward: the model as it is called (inside DistributedDataParallel, compiled); model: itself; average: its moving
    average, or None. Raises AlgorithmError for what cannot be built, or does not fit `found`.
    """

    def __init__(self, experiment: Experiment, streams: tuple[Stream, Stream], world: World, device: torch.device,
                 found: Checkpoint | None = None) -> None:
        recipe = experiment.recipe
        self.experiment, self.recipe, self.world, self.device = experiment, recipe, world, device
        self.stream, self.held_out = streams
        self.classes = list(self.stream.classes)
        self.update = found.update if found else 0
        model: Any = build_model(experiment.model, drop_path=recipe.drop_path).to(device)
        if len(self.classes) > model.num_classes:
            raise DataError(f"the data have {len(self.classes)} classes, the model predicts {model.num_classes}: set "
                            f"model.num_classes (--num-classes {len(self.classes)})")
        self.model: nn.Module = model
        if found:
            load_weights_into(model, found.weights(), found.path)
        plan = UpdatePlan.from_dict(found.plan) if found else resolve_plan(experiment.plan, model)
        if not plan.parameters:
            raise PlanError("the plan trains nothing: name at least one parameter (plan.vit_layer_types=[head] trains the "
                            "head)")
        self.applied = AppliedPlan(model, plan)
        self.sampler = StepSampler(len(self.stream), recipe.batch, recipe.accum_steps, world.rank, world.size, recipe.seed)
        self.length = Length.of(recipe.schedule, self.sampler.updates)
        self._build(found)
        self.transform = held_out_transform(model, experiment.model.img_size, recipe.augment.crop_pct)
        self._eval_batches: EvalBatches | None = None

    def _build(self, found: Checkpoint | None) -> None:
        """Everything around the model, in the state of a checkpoint."""
        recipe, model = self.recipe, self.model
        self.precision = Precision(recipe, self.device)
        self.mixing, self.criterion = Mixing(recipe, int(model.num_classes)), make_loss(recipe)  # type: ignore[arg-type]
        self.teacher = None if recipe.distill.teacher is None else Teacher(
            recipe.distill, model, int(model.num_classes), self.experiment.model.img_size, self.device)  # type: ignore[arg-type]

        def make(of: nn.Module) -> torch.optim.Optimizer:
            return make_optimizer(of, recipe.optim, self.sampler.update_images, recipe.extra)
        if recipe.dynamic.every is not None or self.world.first:
            check_state(make, recipe.optim.opt, recipe.dynamic.every is not None)
        self.optimizer = make(model)
        self.names = {id(p): n for n, p in model.named_parameters()}
        self.schedule = Schedule(recipe.schedule, self.optimizer, self.length)
        # a copy of the model under its plan, before anything else hangs on it
        self.ema = timm.utils.ModelEmaV3(model, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup) \
            if recipe.ema.enabled else None
        self.dynamic = None if recipe.dynamic.every is None else Dynamic(
            recipe.dynamic, self.applied, self.world, recipe.seed, self.length.total)
        if found:
            self._load(found)
        self.forward: nn.Module = model
        if self.world.size > 1:
            self.forward = nn.parallel.DistributedDataParallel(
                model, device_ids=[self.device.index] if self.device.type == "cuda" else None)
        if recipe.compile:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]

    @property
    def average(self) -> nn.Module | None:
        """The model whose weights are the moving average."""
        return None if self.ema is None else self.ema.module

    # -- updates ------------------------------------------------------------------------------------
    def updates(self) -> Iterator[int]:
        """The updates that are left; `step` makes each, and reads its images."""
        mean, std = normalisation(self.model)
        self._batches = train_batches(
            self.stream, train_transform(self.recipe.augment, self.experiment.model.img_size, mean, std), self.sampler,
            self.update, self.recipe.workers, self.recipe.pin_memory and self.device.type == "cuda", self.recipe.prefetch,
            self.length.total)
        yield from range(self.update, self.length.total)

    def step(self, update: int, watch: Any = None) -> Step:
        """Make one update. Raises DataError."""
        self.schedule.before(update)
        if watch:
            watch.before_step(update)
        self.forward.train()
        self.optimizer.zero_grad(set_to_none=True)
        passes = [self._pass(update, k) for k in range(self.recipe.accum_steps)]
        scaler = self.precision.scaler
        scale = float(scaler.get_scale()) / self.recipe.accum_steps
        scaler.unscale_(self.optimizer)
        if self.recipe.optim.clip_grad is not None:
            timm.utils.dispatch_clip_grad([p for p in self.model.parameters() if p.requires_grad],
                                          self.recipe.optim.clip_grad, self.recipe.optim.clip_mode)
        if watch:
            watch.before_update(update)
        lr = self.schedule.lr
        scaler.step(self.optimizer)
        scaler.update()
        self.applied.sync()
        if self.dynamic:
            self.dynamic.after_update(update, self.optimizer, scale)
        if self.ema:
            self.ema.update(self.model, step=update)
        self.update = update + 1
        losses, right = (torch.stack(values) for values in zip(*passes, strict=True))
        return Step(update, lr, losses.mean(), right.mean())

    def _pass(self, update: int, k: int) -> tuple[Tensor, Tensor]:
        """Forward and backward of one micro-batch; (loss, share that was right)."""
        at, number, images, labels = next(self._batches)
        assert (at, number) == (update, k)
        recipe, world = self.recipe, self.world
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        seed_pass(recipe.seed, update, k * world.size + world.rank)
        images, targets = self.mixing(images, labels)
        last = k + 1 == recipe.accum_steps
        ddp: Any = getattr(self.forward, "_orig_mod", self.forward)
        with nullcontext() if last or world.size == 1 else ddp.no_sync():
            with self.precision.autocast():
                logits = self.forward(images)
                loss = self.criterion(logits, targets)
                if self.teacher:
                    loss = self.teacher.loss(loss, logits, self.teacher(images))
            scaled = self.precision.scaler.scale(loss / recipe.accum_steps)
            scaled.backward(create_graph=is_second_order(self.optimizer))
        truth = targets if targets.ndim == 1 else targets.argmax(1)
        return loss.detach().float(), (logits.detach().argmax(1) == truth).float().mean()

    def checked(self, step: Step) -> dict[str, float]:
        """loss and accuracy of a step, read. Raises NonFiniteLossError, on every process, where a loss is not finite."""
        loss = float(step.loss)
        bad = self.world.sum(torch.tensor([float(not torch.isfinite(step.loss))], device=self.device))
        if float(bad):
            raise NonFiniteLossError(f"the loss of update {step.update} is {loss}: lower recipe.optim.lr (it is "
                                     f"{step.lr:g}), warm up longer, or clip gradients (recipe.optim.clip_grad); the last "
                                     "checkpoint is from before", step.update, loss)
        return {"loss": loss, "accuracy": float(step.accuracy)}

    # -- evaluation ---------------------------------------------------------------------------------
    def evaluate(self, update: int) -> tuple[Evaluation, Evaluation | None]:
        """The model, and where asked its average, on the held-out images; on all processes together. After whole epochs
        the schedule learns of it."""
        recipe = self.recipe
        if self._eval_batches is None:
            self._eval_batches = EvalBatches(
                self.held_out, self.transform, recipe.batch_eval or recipe.batch, self.world.rank, self.world.size,
                recipe.workers, recipe.pin_memory and self.device.type == "cuda", recipe.prefetch)
        both = [evaluate_batches(m, self._eval_batches, self.held_out.classes, device=self.device,
                                 autocast=self.precision.autocast)
                for m in (self.model, self.average if recipe.eval_ema else None) if m is not None]
        for stream in (self.stream, self.held_out):
            share_broken(stream)
        if (update + 1) % self.length.epoch == 0:
            self.schedule.evaluated((update + 1) // self.length.epoch, both[0].top1)
        return both[0], both[1] if len(both) > 1 else None

    def samples(self, count: int) -> tuple[Tensor, Tensor]:
        """The first readable held-out images, as the model takes them, and their labels: (S, 3, H, W), (S,)."""
        batches = iter(EvalBatches(self.held_out.choose(_spread(self.held_out, count)), self.transform, count))
        images, labels = next(batches, (torch.empty(0), torch.empty(0, dtype=torch.int64)))
        return images.to(self.device), labels.to(self.device)

    # -- state --------------------------------------------------------------------------------------
    def save(self, path: Path, watch: Any, best: float | None) -> None:
        """A checkpoint of what is now, by the first process. Raises CheckpointError; NonFiniteLossError, on every process,
        where a weight is not finite."""
        whole = {n: t for n, t in self.model.state_dict().items() if not n.endswith(PART)}
        odd = next((n for n, t in whole.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())), None)
        if float(self.world.sum(torch.tensor([float(odd is not None)], device=self.device))):
            raise NonFiniteLossError(f"weights are not finite after update {self.update} ({odd}): lower recipe.optim.lr, "
                                     "warm up longer, or clip gradients; the last checkpoint is from before", self.update,
                                     float("nan"))
        if self.dynamic:
            self.dynamic.gather()
        if not self.world.first:
            return
        tensors: dict[str, Tensor] = dict(whole)
        if self.average is not None:
            tensors |= {EMA + n: t for n, t in self.average.state_dict().items() if not n.endswith(PART)}
        if self.dynamic:
            tensors |= {DYNAMIC + n: t for n, t in self.dynamic.state().items()}
        packed: dict[str, Any] = {}
        for key, value in ((OPTIM, by_name(self.optimizer, self.names)), ("scaler", self.precision.scaler.state_dict()),
                           ("schedule", self.schedule.state()), (WATCH, watch.state() if watch else {})):
            packed[key], more = pack(value, key)
            tensors |= more
        save_checkpoint(path, tensors, self.update, settings_of(self.experiment), self.classes, self.applied.plan.to_dict(),
                        best, packed)

    def _load(self, found: Checkpoint) -> None:
        load_by_name(self.optimizer, found.state(OPTIM), self.names)
        self.precision.scaler.load_state_dict(found.state("scaler"))
        self.schedule.load_state(found.state("schedule"), found.update)
        if self.average is not None:
            load_weights_into(self.average, found.weights(EMA), found.path)
        if self.dynamic:
            self.dynamic.load_state(found.weights(DYNAMIC), found.update)

    def describe(self) -> str:
        """One line of what is trained where."""
        world, length = self.world, self.length
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        where = f"{world.size} processes, " if world.size > 1 else ""
        begin = f"goes on after update {self.update} of" if self.update else "trains"
        return (f"{begin} {length.total} updates of {self.sampler.update_images} images, {length.epoch} an epoch; "
                f"{self.applied.plan.describe()}: {trained:,} parameters; {where}{self.device}, {self.precision.describe()}")

    def __enter__(self) -> Training:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.world.size > 1:     # the wrapper goes while the processes still talk: see `distributed.joined`
            self.forward = self.model
            gc.collect()
        self.applied.close()


def _spread(stream: Stream, count: int) -> Any:
    """Positions of `count` images, the classes in turn."""
    from algorithm.data.dataset import balanced
    return balanced(stream.labels, stream.classes, max(count, len(stream.classes)), 0)[:count] \
        if len(stream) > count else range(len(stream))
