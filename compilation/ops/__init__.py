"""The operations: importing this package imports every module in it, which fills REGISTRY."""

from importlib import import_module
from pkgutil import iter_modules

from compilation.ops.base import REGISTRY, Op, Sample, Site, Slot

__all__ = ["REGISTRY", "Op", "Sample", "Site", "Slot"]

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
