"""The one way out for TVM's errors: each leaves as ours, with the operation and its module path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from compilation.errors import CompilationError

REMEDY = "replace it by other operations (docs/adding-an-op.md says how to add one)"


@contextmanager
def door(kind: type[CompilationError], what: Callable[[], str], remedy: str) -> Iterator[None]:
    """Turn any error that is not ours into `kind`: what() says which operation where, remedy what to do."""
    try:
        yield
    except CompilationError:
        raise
    except Exception as error:  # TVM raises many kinds, and asserts
        lines = str(error).strip().splitlines()
        reason = lines[-1].strip() if lines else type(error).__name__
        raise kind(f"{what()} cannot be compiled ({reason}): {remedy}") from error
