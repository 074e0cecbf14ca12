"""Program -> C folder."""

from runtime.codegen.generate import STACK_BYTES, Generated, generate

__all__ = ["STACK_BYTES", "Generated", "generate"]
