"""The one door to Apache TVM: import a PyTorch model, differentiate, legalise the long tail."""

from compilation.tvm_adapter.gradient import differentiate
from compilation.tvm_adapter.importer import import_model, importable
from compilation.tvm_adapter.tail import lower_tail

__all__ = ["differentiate", "import_model", "importable", "lower_tail"]
