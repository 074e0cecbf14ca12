"""The example of docs/adding-an-op.md: these files alone make an operation that compiles, trains and streams."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = re.compile(r"^`((?:compilation|runtime)/\S+)`:\n\n```\w+\n(.*?)^```$", re.M | re.S)

MODEL = '''
import torch
from torch import nn

from compilation.capture import InputSpec
from compilation.pipeline import Compiler
from tests.compilation.in_c import trains_like_torch


class Block(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.norm, self.up, self.down, self.f = nn.LayerNorm(24), nn.Linear(24, 96), nn.Linear(96, 24), f

    def forward(self, x):
        return x + self.down(self.f(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.blocks, self.head = nn.Sequential(Block(f), Block(f)), nn.Linear(24, 4)
        for p in self.parameters():
            nn.init.normal_(p, std=0.1)
        self.eval()

    def forward(self, x):
        return self.head(self.blocks(x).mean(1))


torch.manual_seed(0)
spec = InputSpec((33, 24))
biases = {n: "all" for n, _ in Net(torch.exp).named_parameters() if "bias" in n}
functions = {"gelu": nn.functional.gelu, "exp": torch.exp, "none": lambda x: 1 / (2 + x * x)}
for name, f in functions.items():
    print(name, Compiler(Net(f), spec).smallest_ram(biases))
model = Net(torch.exp)
made = trains_like_torch(model, spec, biases, Compiler(model, spec).smallest_ram(biases)).program
print(made.chain(next(c for c in made.calls if c.op in made.regions)))
trains_like_torch(Net(torch.exp), spec)
'''


def test_the_example_streams_at_once(tmp_path: Path) -> None:
    text = (ROOT / "docs/adding-an-op.md").read_text()
    files = dict(FILE.findall(text))
    assert {Path(f).suffix for f in files} == {".py", ".h", ".c"} and len(files) == 3
    for package in ("algorithm", "compilation", "runtime", "tests/compilation"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in files.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    done = subprocess.run([sys.executable, "-c", MODEL], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *figures, chain = done.stdout.splitlines()
    ram = {name: int(n) for name, n in (line.split() for line in figures)}
    assert chain == "layer_norm linear exp linear add"
    assert ram["exp"] == ram["gelu"] < ram["none"] / 4
    for figure in (ram["exp"], ram["none"]):
        assert f"{round(figure / 1000)} kb" in text
