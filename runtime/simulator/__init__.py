"""The host simulator."""

from runtime.simulator.simulator import Measured, Simulator

__all__ = ["Measured", "Simulator"]
