"""The verdict's error rates: false alarms over correct runs, and planted faults found. See `python -m benchmarks.verdict`.

`cases` are small models with plans; `alarms` records and replays correct runs of them under differing arithmetic;
`planted` compiles them with one line of the project changed (`mutations`) and replays a recorded run.
"""
