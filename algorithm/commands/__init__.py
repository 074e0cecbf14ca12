"""The commands of `python -m algorithm`, one file a command, and what they share: flags as a table, YAML of flags, work
folders, the console. Commands only put parts together; training, evaluation and measuring live elsewhere in `algorithm`.

A command's file has `parser()` and `run(options) -> exit status`; nothing heavy is imported before `run`.
"""
