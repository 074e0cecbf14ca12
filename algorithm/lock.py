"""A lock file that says who holds it. The operating system frees it when its process ends, however that ends.

Where a file system has no such locks, the file itself is the lock, and one that a crash left must be removed by hand.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from algorithm.errors import AlgorithmError

fcntl: Any
try:
    import fcntl
except ImportError:         # not a POSIX system
    fcntl = None

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """A process; boot tells one start of a machine from another, whatever its containers are called."""

    pid: int
    host: str
    boot: str
    started: str
    command: str

    @staticmethod
    def this() -> Holder:
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            boot = ""
        return Holder(os.getpid(), socket.gethostname(), boot, datetime.now().astimezone().isoformat(timespec="seconds"),
                      " ".join(sys.argv)[:500])

    @staticmethod
    def read(text: str) -> Holder:
        """Raises ValueError where the text was not written by a lock."""
        try:
            return Holder(**json.loads(text))
        except (TypeError, ValueError):
            raise ValueError("not a lock") from None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (started {self.started}: {self.command})"

    def was_here(self) -> bool:
        """On this machine, now or before it was started again: then the operating system's word on the lock holds."""
        here = Holder.this()
        return self.host == here.host or (bool(self.boot) and self.boot == here.boot)


class Lock:
    """One holder at a time of `what` ("the run x"), over all processes. `acquire`, then `release`.

    error: the class of every refusal. name, output: the flags that choose another place, for what the refusals advise.
    """

    def __init__(self, path: Path, what: str, error: type[Exception] = AlgorithmError, name: str = "--name",
                 output: str = "--output") -> None:
        self.path, self.what = path, what
        self._error, self._name, self._output = error, name, output
        self._file: int | None = None

    def acquire(self, say: Say) -> None:
        """Raises `error` that names the holder. say: told when the lock of a process that died is taken over."""
        try:
            while not self._attempt(say):
                pass
        except OSError as error:
            raise self._error(f"the lock {self.path} cannot be made ({error.strerror}): choose another {self._output}"
                              ) from None

    def _attempt(self, say: Say) -> bool:
        """False: the file was removed by its holder between our opening and locking it."""
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
        try:
            file, created = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            try:
                file, created = os.open(self.path, flags), False
            except FileNotFoundError:
                return False
        try:
            locked = self._lock(file, created)
            if locked and not self._still_there(file):
                os.close(file)
                return False
            self._take(file, created, locked, say)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return True

    def _lock(self, file: int, created: bool) -> bool:
        """False where there are no locks. Raises `error` where another process holds it."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._error(f"{self.what} is in use by {self._holder(file) or 'a process that has just started'}: "
                              f"wait for it, or give this run another {self._name}") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
        return True

    def _still_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def _take(self, file: int, created: bool, locked: bool, say: Say) -> None:
        before = self._holder(file)
        if not created and before and not (locked and before.was_here()):
            raise self._error(f"{self.what} is in use by {before}: wait for it, or give this run another {self._name}; if "
                              f"that process has ended, remove {self.path}")
        if not created and not before and not locked:
            raise self._error(f"{self.what} is in use: if no other run is, remove {self.path}")
        if before:
            say(f"taking over the lock of {before}, which has ended")
        try:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, (json.dumps(asdict(Holder.this())) + "\n").encode())
        except OSError:
            if created:
                self.path.unlink(missing_ok=True)
            raise

    def _holder(self, file: int) -> Holder | None:
        """Who wrote the file; None where it is empty. Raises `error` where it is somebody's own file."""
        os.lseek(file, 0, os.SEEK_SET)
        text = os.read(file, 10_000).decode(errors="replace")
        try:
            return Holder.read(text) if text else None
        except ValueError:
            raise self._error(f"{self.path} is no lock of a run, though it has the name of one: move it away") from None

    def release(self) -> None:
        """Removes the file, then lets go."""
        if self._file is not None:
            if self._still_there(self._file):
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
