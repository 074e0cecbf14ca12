"""Objects of the kernels, which do not depend on the model, kept by what they are made of. Only ever an aid: where it
cannot be read or written, things are built anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

KEEP_BYTES = 64_000_000         # the oldest objects beyond this are dropped
KEEP_SECONDS = 60 * 86_400      # and those not used for so long
STALE_SECONDS = 3600            # an unfinished file of this age was left by a run that was killed


@functools.cache
def cache_folder() -> Path:
    """A writable folder, absolute: the user's cache, else a temporary one that goes when Python ends. Pruned."""
    for base in (os.environ.get("XDG_CACHE_HOME", ""), *home_cache()):
        folder = Path(base) / "vit-train-objects"
        if not folder.is_absolute():        # as the XDG specification wants it
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"x")
        except OSError:
            continue
        prune(folder)
        return folder
    return Path(temporary().name)


def home_cache() -> list[str]:
    try:
        return [str(Path.home() / ".cache")]
    except RuntimeError:                    # no HOME, and the user is not in the password file
        return []


@functools.cache
def temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="vit-train-objects-")


def prune(folder: Path) -> None:
    """Keeps the objects used last, up to KEEP_BYTES; drops what was left unfinished."""
    total, now = 0, time.time()
    found = []
    for path in (*folder.glob("*.o"), *folder.glob("*.part")):
        with contextlib.suppress(OSError):
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    for used, size, path in sorted(found, reverse=True, key=lambda f: f[0]):
        unfinished = path.suffix == ".part"
        total += 0 if unfinished else size
        if total > KEEP_BYTES or now - used > (STALE_SECONDS if unfinished else KEEP_SECONDS):
            with contextlib.suppress(OSError):
                path.unlink()


@functools.cache
def cpu_identity() -> str:
    """What decides the code that a compiler makes for "this CPU": architecture, model and features of every kind of core."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    told = ("vendor_id", "model name", "cpu family", "model", "stepping", "flags", "features", "cpu implementer",
            "cpu architecture", "cpu variant", "cpu part", "isa", "uarch")
    kept = {line for line in lines if ":" not in line or line.partition(":")[0].strip().lower() in told}
    return "\n".join([platform.system(), platform.machine(), *sorted(kept)])


def object_key(source: Path, flags: tuple[str, ...], compiler_version: str) -> str:
    """Names an object by everything that it is made of: compiler, CPU, flags, source and headers. Raises OSError."""
    state = hashlib.sha256(repr((compiler_version, cpu_identity(), flags, source.name)).encode())
    for path in [source, *sorted(p for p in source.parent.glob("*.h") if p.name != "vit_train.h")]:
        state.update(path.read_bytes())
    return state.hexdigest()


def fetch(key: str, out: Path) -> bool:
    """Copies an object out; False where there is none."""
    cached = cache_folder() / f"{key}.o"
    try:
        shutil.copyfile(cached, out)
    except OSError:
        return False
    with contextlib.suppress(OSError):      # used now: pruned later
        os.utime(cached)
    return True


def store(key: str, made: Path) -> None:
    """Keeps an object; written aside and moved, so that builds at the same time never see half of it."""
    fresh = None
    try:
        with tempfile.NamedTemporaryFile(dir=cache_folder(), prefix="new.", suffix=".part", delete=False) as file:
            fresh = Path(file.name)
            file.write(made.read_bytes())
        fresh.replace(cache_folder() / f"{key}.o")
    except OSError:
        if fresh is not None:
            fresh.unlink(missing_ok=True)
