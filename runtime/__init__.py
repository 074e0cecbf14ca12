"""From a placed Program to proof: emit C, build it, simulate it, validate it against a PyTorch trace, report.

The stages are `runtime.codegen.generate`, `runtime.toolchain`, `runtime.simulator.Simulator`, `runtime.validate.replay`
(judged by `runtime.verdict`) and `runtime.report.write_report`; `runtime.prove` walks them again for a run folder.
"""
