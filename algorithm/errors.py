"""Errors of the algorithm side, one class per stage; each message is one line that says what to do."""

from __future__ import annotations


class AlgorithmError(Exception):
    """Base class: anything that the algorithm side refuses."""


class ConfigError(AlgorithmError):
    """A configuration is malformed: unknown key, wrong type, value out of range."""


class ModelError(AlgorithmError):
    """The model cannot be built as asked."""


class WeightsError(AlgorithmError):
    """A weights file is missing, unreadable, of the wrong shape, or not finite."""


class DataError(AlgorithmError):
    """A data set is missing, empty, corrupt, or its labels are out of range."""


class PlanError(AlgorithmError):
    """An update plan does not fit the model."""


class BudgetParseError(AlgorithmError):
    """A memory budget is not a number of bytes with a known unit."""


class CheckpointError(AlgorithmError):
    """A training checkpoint cannot be read or belongs to another run."""


class AnalysisError(AlgorithmError):
    """A model, a matrix or a file cannot be analysed or drawn as asked."""


class NonFiniteLossError(AlgorithmError):
    """The loss left the finite numbers. Attributes: ``step`` (0-based), ``loss``."""

    def __init__(self, message: str, step: int, loss: float) -> None:
        super().__init__(message)
        self.step, self.loss = step, loss
