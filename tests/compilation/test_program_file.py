"""A Program in a file is verified and judged as one just compiled: no edit gets through, none ends in a traceback."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compilation.capture import InputSpec
from compilation.errors import ProgramFileError
from compilation.passes.training import Selection
from compilation.pipeline import Compiler
from compilation.program_file import read_program
from compilation.regions.region import PREFIX
from runtime.__main__ import main
from tests.compilation.models import IMAGE
from tests.compilation.test_gradients import vit

Raw = dict[str, Any]


class Convolutions(nn.Module):
    """A stem that goes through the long tail."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sigmoid(self.stem(x)).flatten(1))


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Three compiled steps: streamed and recomputed; everything kept, columns trained, with momentum; the long tail."""
    compiler = Compiler(vit(), IMAGE)
    plan: dict[str, Selection] = {n: "all" for n in compiler.shapes if n.startswith("blocks") and "bias" in n}
    plan |= {"head.bias": "all", "blocks.0.mlp.fc2.weight": {"rows": [1, 5]}}
    columns: dict[str, Selection] = {"blocks.1.mlp.fc1.weight": {"cols": [0, 7, 9]}, "norm.weight": "all",
                                     "head.bias": "all"}
    tail = Compiler(Convolutions().eval(), InputSpec((3, 8, 8)))
    return {"tight": compiler.compile(plan, compiler.smallest_ram(plan)).program.to_json(),
            "kept": compiler.compile(columns, momentum=0.9).program.to_json(),
            "tail": tail.compile({"stem.weight": "all", "head.weight": "all"}).program.to_json()}


def write(raw: Raw, path: Path) -> Path:
    """The file with the digest of what it holds now: only the verifier can tell."""
    raw.pop("digest", None)
    path.write_text(json.dumps({**raw, "digest": hashlib.sha256(json.dumps(raw).encode()).hexdigest()}))
    return path


def call(raw: Raw, op: str, slot: str = "") -> Raw:
    """The first call of that operation (that has the slot)."""
    made: Raw = next(c for c in raw["calls"] if c["op"].startswith(op) and slot in ("", *c["inputs"], *c["updates"]))
    return made


def inside(raw: Raw, op: str) -> Raw:
    """The first call of a region that this operation is in."""
    made: Raw = next(c for c in raw["calls"] if c["op"] in raw["regions"]
                     and op in [d["op"] for d in raw["regions"][c["op"]]["definition"]["calls"]])
    return made


def redefined(op: str, change: Callable[[Raw, Raw], Any]) -> Callable[[Raw], None]:
    """An edit of the first region that this operation is in: of the whole of it, and of the operation's call. The region's
    name and digest, which stand for what it is, are what they should be; so do all its calls name it."""
    def edit(raw: Raw) -> None:
        name = inside(raw, op)["op"]
        region = raw["regions"].pop(name)
        change(region, next(c for c in region["definition"]["calls"] if c["op"] == op))
        region["definition"].pop("digest", None)
        region["definition"]["digest"] = hashlib.sha256(json.dumps(region["definition"]).encode()).hexdigest()
        new = PREFIX + hashlib.sha256(json.dumps(region).encode()).hexdigest()[:10]
        raw["regions"][new] = region
        for c in raw["calls"]:
            c["op"] = new if c["op"] == name else c["op"]
    return edit


def tensor(raw: Raw, role: str, **wanted: Any) -> Raw:
    made: Raw = next(t for t in raw["tensors"].values() if t["role"] == role
                     and all(t[k] == v for k, v in wanted.items()))
    return made


def overlap(raw: Raw) -> None:
    """Two tensors of the first gradient call at one place."""
    one = next(c for c in raw["calls"] if "dy" in c["inputs"] and c["scratch"])
    raw["tensors"][one["scratch"]]["offset"] = raw["tensors"][one["inputs"]["dy"]]["offset"]


def swap(raw: Raw) -> None:
    raw["calls"][1], raw["calls"][2] = raw["calls"][2], raw["calls"][1]


def circle(raw: Raw) -> None:
    t = next(t for t in raw["tensors"].values() if t["alias"])
    raw["tensors"][t["alias"]]["alias"] = t["name"]


def outside(raw: Raw) -> None:
    """An activation that calls itself an output: RAM of another kind."""
    t = raw["tensors"][raw["calls"][0]["outputs"]["y"]]
    t["role"], t["offset"] = "output", None


def lost_update(raw: Raw) -> None:
    call(raw, "linear_grad")["updates"].clear()


def swapped_updates(raw: Raw) -> None:
    (a, i), (b, j) = [(c["updates"], s) for c in raw["calls"] for s, t in c["updates"].items()
                      if t.endswith("attn.proj.bias")]
    a[i], b[j] = b[j], a[i]


def late_reader(raw: Raw) -> None:
    """A layer is computed again after its bias was updated."""
    at = next(i for i, c in enumerate(raw["calls"]) if "b" in c["updates"])
    again = copy.deepcopy(next(c for c in raw["calls"] if c["op"] == "linear" and c["where"] == "head"))
    raw["tensors"]["late"] = {**tensor(raw, "activation"), "name": "late", "type": {"shape": [1, 5], "element": "f32"},
                              "alias": None, "offset": 0}
    raw["calls"].insert(at + 1, {**again, "outputs": {"y": "late"}, "scratch": None})


def rename_tensor(raw: Raw) -> None:
    name = raw["calls"][1]["outputs"]["y"]
    raw["tensors"]["other"] = raw["tensors"].pop(name)


def other_columns(raw: Raw) -> None:
    name = call(raw, "take_cols")["inputs"]["index"]
    raw["constants"][name] = [0, 7, 10]


def _set(path: str, value: Any) -> Callable[[Raw], None]:
    """raw[a][b].. = value, the path written with slashes; '#' stands for the first member."""
    def change(raw: Raw) -> None:
        *way, last = path.split("/")
        at: Any = raw
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at[next(iter(at)) if step == "#" else step]
        if value is DELETE:
            del at[last]
        else:
            at[last] = value
    return change


DELETE = object()
Edit = tuple[str, Callable[[Raw], Any], str]
EDITS: dict[str, Edit] = {
    # memory
    "two offsets overlap": ("tight", overlap, "overlap in memory"),
    "an offset is negative": ("tight", lambda r: tensor(r, "gradient", alias=None).update(offset=-4), "outside|elsewhere"),
    "an offset is not aligned": ("tight", lambda r: tensor(r, "scratch").update(offset=2), "aligned|overlap"),
    "an offset is missing": ("tight", lambda r: tensor(r, "scratch").update(offset=None), "None"),
    "an offset is text": ("tight", lambda r: tensor(r, "scratch").update(offset="0"), "whole number"),
    "an offset outside the arena": ("tight", lambda r: tensor(r, "trained").update(offset=0), "not in use in the arena"),
    "a view lies elsewhere": ("tight", lambda r: next(t for t in r["tensors"].values() if t["alias"]).update(offset=8),
                              "elsewhere"),
    "an activation moves out of the arena": ("tight", outside, "does not say what it is for"),
    "a tensor that nobody uses": ("tight", lambda r: r["tensors"].update(
        ghost={**tensor(r, "gradient", alias=None), "name": "ghost", "offset": 100000}), "ghost"),
    "scratch too small": ("tight", lambda r: r["tensors"][inside(r, "gelu")["scratch"]]["type"].update(shape=[4]),
                          "scratch and has 4"),
    "scratch absent": ("tight", lambda r: inside(r, "gelu").update(scratch=None), "scratch and has 0"),
    "scratch of another call": ("tight", lambda r: inside(r, "gelu").update(
        scratch=inside(r, "attention_grad")["scratch"]), "scratch"),
    "scratch is an activation": ("tight", lambda r: inside(r, "gelu").update(
        scratch=tensor(r, "activation", alias=None)["name"]), "no scratch of its own"),
    "storage in a circle": ("tight", circle, "circle|may not take over|only results"),
    "storage of nobody": ("tight", lambda r: next(t for t in r["tensors"].values() if t["alias"]).update(alias="nobody"),
                          "unknown tensor nobody"),
    "storage of a constant": ("tight", lambda r: next(t for t in r["tensors"].values() if t["alias"]).update(
        alias="norm.weight"), "may not take over|not in use|shares"),
    # calls
    "an input slot is dropped": ("tight", lambda r: inside(r, "gelu_grad")["inputs"].pop("dy"),
                                 "required slot dy is absent"),
    "an input slot is unknown": ("tight", lambda r: call(r, "linear")["inputs"].update(z="norm.bias"), "no slot z"),
    "an input names nothing": ("tight", lambda r: call(r, "linear")["inputs"].update(x="nothing"), "unknown tensor nothing"),
    "an output is dropped": ("tight", lambda r: call(r, "linear")["outputs"].pop("y"), "makes no y"),
    "an output goes elsewhere": ("tight", lambda r: call(r, "linear")["outputs"].update(y="norm.bias"), "norm.bias"),
    "an output slot is unknown": ("tight", lambda r: call(r, "linear")["outputs"].update(d_x="ghost"), "no slot d_x"),
    "an operation that does not exist": ("tight", lambda r: inside(r, "gelu").update(op="region.gelu"),
                                         "no such operation"),
    "another operation": ("tight", lambda r: inside(r, "gelu").update(op="layer_norm"), "slot|attribute"),
    "another region": ("tight", lambda r: inside(r, "gelu").update(op=inside(r, "attention")["op"]), "slot"),
    "an operation never lowered": ("tail", lambda r: r["calls"][0].update(
        op="relax:add", attrs={"relax": ""}, outputs={"y": r["calls"][0]["outputs"]["out0"]}), "never lowered"),
    "two calls change places": ("tight", swap, "before any call makes it"),
    "a call is missing": ("tight", lambda r: r["calls"].pop(1), "before any call makes it"),
    "a call stands there twice": ("tight", lambda r: r["calls"].insert(2, copy.deepcopy(r["calls"][1])),
                                  "a second time|scratch"),
    "a layer is read after its update": ("tight", late_reader,
                                         "updated it|no gradient|which calls itself|by the operation's rule"),
    # attributes
    "no rows at a time": ("tight", lambda r: inside(r, "gelu")["attrs"].update(schedule="n/0 o/64"), "'n/0' in the"),
    "three rows at a time": ("tight", lambda r: inside(r, "gelu")["attrs"].update(schedule="n/3 o/64"), "bytes of scratch"),
    "tiles of nothing": ("tight", lambda r: inside(r, "gelu")["attrs"].update(schedule="z/8"), "scheduled 'z/8'"),
    "a schedule of no word": ("tight", lambda r: inside(r, "gelu")["attrs"].update(schedule="n/8 fast"), "'fast' in the"),
    "a schedule is a number": ("tight", lambda r: inside(r, "gelu")["attrs"].update(schedule=8), "not of type str"),
    "heads that do not divide": ("tight", redefined("attention", lambda _, c: c["attrs"].update(heads=5)),
                                 "q has 24 elements along h"),
    "no heads": ("tight", redefined("attention", lambda _, c: c["attrs"].update(heads=0)), "heads is 0"),
    "an attribute is unknown": ("tight", lambda r: call(r, "linear")["attrs"].update(colour=1), "no attribute colour"),
    "an attribute is absent": ("tight", lambda r: call(r, "layer_norm")["attrs"].pop("eps"), "attribute eps is absent"),
    "an attribute of another type": ("tight", lambda r: call(r, "layer_norm")["attrs"].update(heads="1"), "not of type int"),
    "an attribute is a list": ("tight", lambda r: call(r, "layer_norm")["attrs"].update(heads=[1]), "a number or a text"),
    "a factor is not a number": ("tight", lambda r: call(r, "layer_norm")["attrs"].update(eps=float("nan")), "found NaN"),
    "patches that do not fit": ("tight", lambda r: call(r, "patch_embed")["attrs"].update(patch=3), "patches of 3 x 3"),
    "no C source": ("tail", lambda r: call(r, "tir:")["attrs"].pop("c_source"), "c_source is absent"),
    "no symbol": ("tail", lambda r: call(r, "tir:")["attrs"].update(symbol="other"), "does not define"),
    "arguments in another order": ("tail", lambda r: call(r, "tir:", "in1").update(
        inputs={"in1": "stem.weight", "in0": "input"}), "input slots are in1, in0"),
    # regions
    "a region is missing": ("tight", lambda r: r["regions"].pop(inside(r, "gelu")["op"]), "no such operation"),
    "a region under another name": ("tight", lambda r: r["regions"].update(
        {"region.0": r["regions"].pop(inside(r, "gelu")["op"])}), "under 'region.0' calls itself"),
    "a region changed by hand": ("tight", lambda r: r["regions"][inside(r, "gelu")["op"]]["definition"]["calls"][2].update(
        op="relu"), "content is not what its digest names"),
    "a region of another attribute": ("tight", redefined("layer_norm", lambda _, c: c["attrs"].pop("eps")), "eps is absent"),
    "a region that is not of leaves": ("tight", redefined("gelu", lambda _, c: c.update(op="relu_", attrs={})),
                                       "no such operation"),
    "a region of another order": ("tight", redefined("gelu", lambda d, _: d["definition"]["calls"].reverse()),
                                  "before any call makes it"),
    "a region of other shapes": ("tight", redefined("gelu", lambda d, _: d["definition"]["tensors"]["x"]["type"].update(
        shape=[16, 24])), "by the operation's rule|do not fit"),
    "a region without a result": ("tight", redefined("gelu", lambda d, _: d.update(results=[])), "do not make the results"),
    "a region with a result twice": ("tight", redefined("gelu", lambda d, _: d.update(results=["y", "y"])),
                                     "do not make the results"),
    "a region that makes another's result": ("tight", redefined("gelu", lambda d, _: d.update(results=["z"])),
                                             "do not make the results z"),
    "a region that is an update": ("tight", redefined("gelu_grad", lambda d, _: d["definition"]["calls"][-2].update(
        updates={"gamma": "gamma"})), "not trained|cannot update"),
    # tensors and weights
    "a parameter of another shape": ("tight", lambda r: r["tensors"]["head.bias"]["type"].update(shape=[4]),
                                     "elements along"),
    "an activation of another shape": ("tight", lambda r: r["tensors"][r["calls"][0]["outputs"]["y"]]["type"].update(
        shape=[17, 23]), "by the operation's rule"),
    "an element type of its own": ("tight", lambda r: tensor(r, "scratch")["type"].update(element="f16"), "element type"),
    "another element type": ("tight", lambda r: r["tensors"]["norm.bias"]["type"].update(element="i32"), "takes f32"),
    "a shape without elements": ("tight", lambda r: tensor(r, "scratch")["type"].update(shape=[0]), "positive"),
    "a role of its own": ("tight", lambda r: tensor(r, "scratch").update(role="cache"), "expected a role"),
    "a constant that is trained": ("tight", lambda r: r["tensors"]["norm.weight"].update(role="trained"),
                                   "no call updates it"),
    "a trained tensor that is constant": ("tight", lambda r: r["tensors"]["head.bias"].update(role="constant"),
                                          "not trained"),
    "a gradient that is an activation": ("tight", lambda r: tensor(r, "gradient").update(role="activation"), "calls itself"),
    "a tensor is missing": ("tight", lambda r: r["tensors"].pop("norm.bias"), "unknown tensor norm.bias"),
    "a tensor under another name": ("tight", rename_tensor, "calls itself"),
    "a weight is missing": ("tight", lambda r: r["weights"].pop("blocks.0.mlp.fc2.weight"), "unknown tensor|unknown"),
    "rows not ascending": ("tight", lambda r: r["weights"]["blocks.0.mlp.fc2.weight"].update(index=[5, 1]), "ascending"),
    "rows twice": ("tight", lambda r: r["weights"]["blocks.0.mlp.fc2.weight"].update(index=[5, 5]), "ascending"),
    "rows out of range": ("tight", lambda r: r["weights"]["blocks.0.mlp.fc2.weight"].update(index=[5, 24]), "within 0..23"),
    "rows too many": ("tight", lambda r: r["weights"]["blocks.0.mlp.fc2.weight"].update(index=[1, 2, 3]),
                      "trained part|frozen part"),
    "a weight of another shape": ("tight", lambda r: r["weights"]["head.weight"].update(shape=[5, 23]), "frozen part"),
    "an axis of its own": ("tight", lambda r: r["weights"]["blocks.0.mlp.fc2.weight"].update(axis="depth"),
                           '"cols", "rows"'),
    "other columns are kept": ("kept", other_columns, "does not hold the trained columns"),
    "columns out of range": ("kept", lambda r: r["constants"].update(
        {call(r, "take_cols")["inputs"]["index"]: [0, 7, 99]}), "within 0..23"),
    "values of no constant": ("kept", lambda r: r["constants"].update(ghost=[1]), "ghost"),
    "no velocity": ("kept", lambda r: r["tensors"].pop("head.bias.velocity"), "has no velocity"),
    "no momentum": ("kept", _set("momentum", 0.0), "yet has a velocity"),
    "too much momentum": ("kept", _set("momentum", 1.5), "below 1"),
    # updates
    "an update is lost": ("tight", lost_update, "makes no|no call updates it"),
    "an update of what is not trained": ("tight", lambda r: call(r, "linear_grad")["updates"].update(b="norm.bias"),
                                         "not trained|gradients for"),
    "an update of what is unknown": ("tight", lambda r: call(r, "linear_grad")["updates"].update(b="nobody"),
                                     "unknown|gradients for"),
    "an update of a slot that is none": ("tight", lambda r: call(r, "linear_grad")["updates"].update(dy="head.bias"),
                                         "cannot update slot dy"),
    "two updates change places": ("tight", swapped_updates, "no other call has the parameters"),
    # the whole
    "prediction of nothing": ("tight", _set("predict_calls", 0), "a prediction is the first 0 calls"),
    "prediction beyond the end": ("tight", _set("predict_calls", 999), "first 999 calls"),
    "prediction of a text": ("tight", _set("predict_calls", "1"), "whole number"),
    "logits unknown": ("tight", _set("logits", "nobody"), "logits is the unknown tensor"),
    "logits are the loss": ("tight", _set("logits", "loss"), "does not say what it is for|makes the loss of"),
    "no image": ("tight", _set("image", ""), "image is the unknown tensor"),
    "a field is missing": ("tight", _set("weights", DELETE), "weights is missing"),
    "a field is unknown": ("tight", _set("meta", {}), "meta is no field of a Program"),
    "a field of a call is missing": ("tight", lambda r: r["calls"][0].pop("updates"), "call 0: updates is missing"),
    "calls are a mapping": ("tight", _set("calls", {}), "expected a list"),
    "tensors are a list": ("tight", _set("tensors", []), "expected an object"),
    "a tensor is null": ("tight", _set("tensors/head.bias", None), "tensors: head.bias: expected an object"),
    "a name is a number": ("tight", _set("name", 3), "expected a text"),
}


@pytest.mark.parametrize("name", ["tight", "kept", "tail"])
def test_what_was_written_is_read_back(texts: dict[str, str], name: str, tmp_path: Path) -> None:
    (tmp_path / "program.json").write_text(texts[name])
    assert read_program(tmp_path / "program.json").to_json() == texts[name]
    raw = json.loads(texts[name])
    assert read_program(write(raw, tmp_path / "again.json")).to_json() == texts[name]       # laid out otherwise


@pytest.mark.parametrize("name", EDITS)
def test_edits_by_hand_are_refused(texts: dict[str, str], name: str, tmp_path: Path) -> None:
    which, edit, message = EDITS[name]
    raw = json.loads(texts[which])
    before = json.dumps(raw)
    edit(raw)
    assert json.dumps(raw) != before
    with pytest.raises(ProgramFileError, match=message) as error:
        read_program(write(raw, tmp_path / "program.json"))
    assert str(error.value).startswith(str(tmp_path / "program.json")) and "\n" not in str(error.value)


def test_a_change_that_makes_sense_is_noticed_too(texts: dict[str, str], tmp_path: Path) -> None:
    """Another eps is a well-formed Program, but not the one that was compiled."""
    raw = json.loads(texts["tight"])
    redefined("layer_norm", lambda _, c: c["attrs"].update(eps=1e-5))(raw)
    (tmp_path / "program.json").write_text(json.dumps(raw))
    with pytest.raises(ProgramFileError, match="changed by hand"):
        read_program(tmp_path / "program.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": "a", "name": "b"}', b"[" * 100000,
                                     b"1" * 5000, b'{"name": "\\ud800"}', b"NaN"])
def test_what_is_no_program_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "program.json").write_bytes(content)
    with pytest.raises(ProgramFileError, match=r"program\.json: "):
        read_program(tmp_path / "program.json")


def test_a_truncated_or_absent_file_is_refused(texts: dict[str, str], tmp_path: Path) -> None:
    for end in (len(texts["tail"]) // 2, len(texts["tail"]) - 2):
        (tmp_path / "program.json").write_text(texts["tail"][:end])
        with pytest.raises(ProgramFileError, match="cut short"):
            read_program(tmp_path / "program.json")
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(ProgramFileError, match="cannot read"):
            read_program(path)


def test_the_command_refuses_an_edited_program(texts: dict[str, str], tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m runtime` on a folder whose Program was changed: nothing is emitted, built or called good."""
    raw = json.loads(texts["tight"])
    overlap(raw)
    write(raw, tmp_path / "program.json")
    (tmp_path / "values.safetensors").write_bytes(b"")
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "program.json: " in error and "overlap" in error
    assert not (tmp_path / "c").exists()


VALUES: list[Any] = [None, 0, 1, -1, 7, 2.5, 10**12, "", "x", "all", True, [], {}, [0], {"x": "image"}, "d_x", "label"]


def test_random_damage_is_refused_in_one_line(texts: dict[str, str], tmp_path: Path) -> None:
    """Members lost, replaced, exchanged anywhere in the file: refused, or of no consequence; never another exception."""
    rng = random.Random(0)
    refused = 0
    for i in range(600):
        raw = json.loads(texts[("tight", "kept", "tail")[i % 3]])
        for _ in range(rng.choice((1, 1, 2))):
            _damage(raw, rng)
        try:
            read_program(write(raw, tmp_path / "program.json"))
        except ProgramFileError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 480


def test_random_damage_in_a_region_is_refused_in_one_line(texts: dict[str, str], tmp_path: Path) -> None:
    """The same in what a region says of its tensors, calls and results, its name and digest made anew."""
    rng = random.Random(1)
    refused = 0
    for i in range(200):
        raw = json.loads(texts["tight"])

        def change(region: Raw, _: Raw, i: int = i) -> None:
            _damage((region["definition"]["tensors"], region["definition"]["calls"], region["results"])[i % 3], rng)

        redefined(("gelu", "attention", "gelu_grad", "attention_grad")[i % 4], change)(raw)
        try:
            read_program(write(raw, tmp_path / "program.json"))
        except ProgramFileError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 170


def _damage(raw: Any, rng: random.Random) -> None:
    at = raw
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = rng.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.9:
            at = at[key]
            continue
        kind = rng.random()
        if kind < 0.3:
            del at[key]
        elif kind < 0.5:
            other = rng.choice(keys)
            at[key], at[other] = at[other], at[key]
        else:
            at[key] = rng.choice(VALUES)
        return
