"""Compilers and what they produce. `compiler` says how one is called and whether it can be; `build` makes libraries and
firmware with it; `cache` keeps objects; `elf` and `stack` read what was made.
"""

from runtime.toolchain.build import CORTEX_M7, Firmware, build_firmware, build_shared
from runtime.toolchain.compiler import HOST_BUILDS, Build, available_builds, check_compiler
from runtime.toolchain.elf import Elf, undefined_symbols

__all__ = ["CORTEX_M7", "HOST_BUILDS", "Build", "Elf", "Firmware", "available_builds", "build_firmware", "build_shared",
           "check_compiler", "undefined_symbols"]
