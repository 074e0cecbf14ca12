"""From a placed Program to proof: emit C, build it, simulate it, validate it against a PyTorch trace, report.

The stages are `runtime.codegen.generate`, `runtime.toolchain`, `runtime.simulator.Simulator`,
`runtime.validate.replay` and `runtime.report.write_report`.
"""
