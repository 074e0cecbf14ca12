"""Errors of the compiler, one class per stage; each says where, what was expected, what was found, what to do."""

from __future__ import annotations


class CompilationError(Exception):
    """Base class: anything the compiler refuses."""


class RequestError(CompilationError):
    """The command line asks for what cannot be: flags that contradict each other, an output that is not ours."""


class CaptureError(CompilationError):
    """The PyTorch model could not be exported or imported."""


class UnsupportedOperationError(CaptureError):
    """An operation of the model has no kernel and no legalisation; names the module path."""


class GradientError(CompilationError):
    """A wanted gradient does not exist (unknown parameter, operation without a gradient)."""


class PlanError(CompilationError):
    """The update plan does not fit the model (unknown parameter, index out of range)."""


class VerificationError(CompilationError):
    """A pass produced a malformed Program: always a bug of the compiler."""


class ProgramFileError(CompilationError):
    """A Program read from a file is damaged, was changed by hand, or was written by another version."""


class PlacementError(CompilationError):
    """A memory plan is invalid, or none was found within the capacity."""


class BudgetError(CompilationError):
    """The budget cannot be met.

    Attributes: ``smallest`` (bytes of the smallest schedule found), ``binding`` (the call and tensors
    that bind it), ``nearest`` (description of the nearest plan that fits, or None).
    """

    def __init__(self, message: str, smallest: int, binding: str, nearest: str | None = None) -> None:
        super().__init__(message)
        self.smallest, self.binding, self.nearest = smallest, binding, nearest
