"""The kernels' own mathematics in units in the last place, and their independence of any library."""

from __future__ import annotations

import ctypes as ct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from runtime.toolchain.elf import Elf
from tests.compilation.kernel_library import KERNELS

FUNCTIONS = "".join(f"void run_{f}(const float *x, float *y, int n) {{\n"
                    f"    for (int i = 0; i < n; i++) y[i] = vt_{f}(x[i]);\n}}\n"
                    for f in ("expf", "logf", "erff", "tanhf", "gelu_value", "gelu_slope"))
CORTEX_M7 = [
    "-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m7+fp_armv8d16", "-std=c11", "-O3", "-Xclang", "-O3",
    "-fomit-frame-pointer", "-ffreestanding", "-fno-math-errno", "-ffp-contract=off", "-fno-sanitize=undefined",
    "-fno-unwind-tables", "-fno-stack-protector", "-ffunction-sections", "-fdata-sections", "-Wall", "-Wextra",
    "-Werror"]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, np.ndarray], np.ndarray]:
    folder = tmp_path_factory.mktemp("math")
    (folder / "math.c").write_text('#include "vt_math.h"\n' + FUNCTIONS)
    subprocess.run([sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native", "-std=c99", "-ffp-contract=off",
                    "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{KERNELS}",
                    str(folder / "math.c"), "-o", str(folder / "math.so")], check=True)
    library = ct.CDLL(str(folder / "math.so"))

    def function(name: str, x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty_like(x)
        getattr(library, f"run_{name}")(x.ctypes.data_as(ct.c_void_p), y.ctypes.data_as(ct.c_void_p), ct.c_int(x.size))
        return y

    return function


def ulps(found: np.ndarray, exact: np.ndarray) -> float:
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float((np.abs(found - exact) / unit).max())


@pytest.mark.parametrize(("name", "exact", "low", "high", "limit"), [
    ("expf", np.exp, -103.0, 88.7, 1.0), ("expf", np.exp, -1.0, 1.0, 1.0),
    ("logf", np.log, 1e-30, 4.0, 1.0), ("logf", np.log, 0.5, 2.0, 1.0), ("logf", np.log, 1.0, 1e30, 1.0),
    ("erff", special.erf, -6.0, 6.0, 1.1), ("erff", special.erf, -1e-3, 1e-3, 1.1),
    ("tanhf", np.tanh, -10.0, 10.0, 1.9), ("tanhf", np.tanh, -0.7, 0.7, 1.9)])
def test_error_in_ulp(call: Callable[..., np.ndarray], name: str, exact: Callable[..., np.ndarray], low: float,
                      high: float, limit: float) -> None:
    x = np.random.default_rng(0).uniform(low, high, 300_000).astype(np.float32)
    assert ulps(call(name, x), exact(x.astype(np.float64))) < limit


def test_special_values(call: Callable[..., np.ndarray]) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([nan, inf, -inf, 0.0, 200.0, -200.0, -1.0], np.float32)
    np.testing.assert_array_equal(call("expf", x)[:6], [nan, inf, 0, 1, inf, 0])
    np.testing.assert_array_equal(call("logf", x)[[0, 1, 2, 3, 6]], [nan, inf, nan, -inf, nan])
    np.testing.assert_array_equal(call("erff", x)[:6], [nan, 1, -1, 0, 1, -1])
    np.testing.assert_array_equal(call("tanhf", x)[:6], [nan, 1, -1, 0, 1, -1])


def test_gelu(call: Callable[..., np.ndarray]) -> None:
    x = np.random.default_rng(0).uniform(-8, 8, 100_000).astype(np.float32)
    d = x.astype(np.float64)
    cdf = 0.5 * (1 + special.erf(d / np.sqrt(2)))
    assert np.abs(call("gelu_value", x) - d * cdf).max() < 1e-6
    assert np.abs(call("gelu_slope", x) - (cdf + d * np.exp(-d * d / 2) / np.sqrt(2 * np.pi))).max() < 3e-7


def test_kernels_need_nothing_on_a_bare_cortex_m7(tmp_path: Path) -> None:
    """Each kernel file compiles freestanding, and all names that any of them needs are defined by another."""
    defined: set[str] = set()
    needed: set[str] = set()
    sources = sorted(KERNELS.glob("*.c"))
    for source in sources:
        target = tmp_path / f"{source.stem}.o"
        subprocess.run([sys.executable, "-m", "ziglang", "cc", *CORTEX_M7, "-c", str(source), "-o", str(target)],
                       check=True)
        for symbol in Elf(target).symbols:
            if symbol.name and not symbol.local:
                (defined if symbol.defined else needed).add(symbol.name)
    assert needed <= defined, f"undefined: {sorted(needed - defined)}"
    assert len(sources) > 10
