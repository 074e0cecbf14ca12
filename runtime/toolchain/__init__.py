"""Compilers and what they produce."""

from runtime.toolchain.build import (
    CORTEX_M7,
    LAW4_BUILDS,
    Build,
    Firmware,
    available_builds,
    build_firmware,
    build_shared,
)
from runtime.toolchain.elf import Elf, undefined_symbols

__all__ = ["CORTEX_M7", "LAW4_BUILDS", "Build", "Elf", "Firmware", "available_builds", "build_firmware", "build_shared",
           "undefined_symbols"]
