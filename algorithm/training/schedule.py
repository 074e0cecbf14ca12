"""The learning rate of every step, as float32: the rate is an argument of the device's step, so a schedule costs nothing."""

from __future__ import annotations

import numpy as np

from algorithm.training.config import TrainConfig


def learning_rates(config: TrainConfig, images: int) -> np.ndarray:
    """The rates (steps,) float32 of a training over `images` images.

    The schedule spans the T steps of all passes, also where `steps` stops it sooner, so that a shorter run is the
    beginning of a longer one. Step t < W = floor(warmup T) has rate lr (t + 1) / W; after it, with z = (t - W) / (T - W),
    which goes from 0 to below 1,

        constant  lr
        linear    min_lr + (lr - min_lr) (1 - z)
        cosine    min_lr + (lr - min_lr) (1 + cos(pi z)) / 2        (SGDR, Loshchilov and Hutter 2017, equation 5)
    """
    total = images * config.epochs
    rising_steps = int(config.warmup * total)
    t = np.arange(total if config.steps is None else config.steps, dtype=np.float64)
    z = (t - rising_steps) / (total - rising_steps)
    falling = {"constant": np.ones_like(z), "linear": 1 - z, "cosine": (1 + np.cos(np.pi * z)) / 2}[config.schedule]
    rising = (t + 1) / max(1, rising_steps)
    rates = np.where(t < rising_steps, config.lr * rising, config.min_lr + (config.lr - config.min_lr) * falling)
    return rates.astype(np.float32)
