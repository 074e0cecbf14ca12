"""Errors of the runtime, one class per stage; each says where, what was expected, what was found, what to do."""

from __future__ import annotations


class RuntimeStageError(Exception):
    """Base class: anything the runtime refuses."""


class RefusedError(RuntimeStageError):
    """What was asked for cannot be done: the folder or the arguments are wrong. Nothing was built."""


class CodegenError(RuntimeStageError):
    """The Program cannot be written as C (not placed, a value is missing, an unknown operation)."""


class ToolchainError(RuntimeStageError):
    """A C compiler is missing or refused the code."""


class SimulationError(RuntimeStageError):
    """The C step misbehaved on the host: wrote outside its memory, read memory it never wrote, made a NaN."""


class ValidationError(RuntimeStageError):
    """A trace cannot be replayed, or the C run is further from float64 than allowed."""


class ReportError(RuntimeStageError):
    """The run folder cannot be read or the report cannot be written."""
