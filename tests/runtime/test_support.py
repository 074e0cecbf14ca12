"""What a compiler may call by itself (vt_support.c): the same results as the C library's, to the bit."""

from __future__ import annotations

import ctypes as ct
import math
from fractions import Fraction

import numpy as np
import pytest

from runtime.codegen.generate import KERNELS
from runtime.toolchain.build import compile_objects
from runtime.toolchain.compiler import EXACT, WARNINGS, ZIG_ONLY, compiler_command, run

NAMES = ("fmaf", "sqrtf", "memset", "memcpy", "memmove", "memcmp")


@pytest.fixture(scope="module", params=["-O0", "-O3"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ct.CDLL:
    """The functions under names of their own, so that no others stand in for them."""
    room = tmp_path_factory.mktemp("support")
    source = room / "support.c"
    source.write_text("".join(f"#define {n} own_{n}\n" for n in NAMES) + f'#include "{KERNELS / "vt_support.c"}"\n' + """
        void many(const float *x, const float *y, const float *z, float *fused, float *root, int32_t n);
        void many(const float *x, const float *y, const float *z, float *fused, float *root, int32_t n) {
            for (int32_t i = 0; i < n; i++) { fused[i] = fmaf(x[i], y[i], z[i]); root[i] = sqrtf(x[i]); }
        }""")
    flags = (request.param, *WARNINGS, *EXACT, *ZIG_ONLY, "-ffreestanding", "-fPIC", "-DVT_SUPPORT_ALL")
    (made,) = compile_objects([source], flags, "zig", room)
    run([*compiler_command("zig"), "-O3", "-shared", "-o", "support.so", made.name], room, room)
    library = ct.CDLL(str(room / "support.so"))
    for name in ("memset", "memcpy", "memmove"):
        getattr(library, f"own_{name}").restype = ct.c_void_p
    return library


def rounded(value: Fraction) -> np.float32:
    """An exact value as the nearest float32, ties to even."""
    if value == 0:
        return np.float32(0)
    exponent = max(math.frexp(float(value))[1] - 24, -149)
    nearest = math.ldexp(round(value / Fraction(2) ** exponent), exponent)
    return np.float32(nearest if abs(nearest) < 2.0**128 else math.copysign(math.inf, nearest))


def triples() -> np.ndarray:
    """(3, n) float32: any bits; sums that cancel; results among the subnormals; sums halfway between two floats."""
    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 2**32, (3, 4000), dtype=np.uint64).astype(np.uint32).view(np.float32)
    x, y = rng.normal(size=(2, 2000)).astype(np.float32)
    near = np.stack([x, y, (-x * y * (1 + 1e-7 * rng.normal(size=2000))).astype(np.float32)])
    odd = 2.0 * rng.integers(1, 2**12, (2, 4000)) + 1
    small = np.stack([odd[0] * 2.0**-75, odd[1] * 2.0**-70, rng.integers(-2**20, 2**20, 4000) * 2.0**-149])
    half = np.stack([odd[0], odd[1] * 2.0**-12, rng.integers(2**23, 2**24, 4000) * 2.0**rng.integers(-2, 3, 4000)])
    with np.errstate(invalid="ignore"):
        return np.ascontiguousarray(np.concatenate([any_bits, near, small, half], 1).astype(np.float32))


def test_fmaf_and_sqrtf_round_once(library: ct.CDLL) -> None:
    x, y, z = triples()
    fused, root = np.empty_like(x), np.empty_like(x)
    library.many(*(a.ctypes.data_as(ct.c_void_p) for a in (x, y, z, fused, root)), ct.c_int32(x.size))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(root, np.sqrt(x))
    finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    exact = [rounded(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))
             for a, b, c in zip(x[finite], y[finite], z[finite], strict=True)]
    np.testing.assert_array_equal(fused[finite], exact)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(fused[~finite], (x * y.astype(np.float64) + z)[~finite].astype(np.float32))


@pytest.mark.parametrize("to", range(5))
@pytest.mark.parametrize("start", range(5))
def test_memory_functions_at_every_alignment_and_overlap(library: ct.CDLL, to: int, start: int) -> None:
    for n in (0, 1, 3, 4, 5, 8, 31):
        ours, wanted = bytearray(range(48)), bytearray(range(48))
        buffer = (ct.c_uint8 * 48).from_buffer(ours)
        address = ct.addressof(buffer)
        assert library.own_memmove(ct.c_void_p(address + to), ct.c_void_p(address + start), ct.c_size_t(n)) == address + to
        wanted[to:to + n] = wanted[start:start + n]
        assert ours == wanted
        apart = (ct.c_uint8 * 40)()
        library.own_memcpy(ct.c_void_p(ct.addressof(apart) + to), ct.c_void_p(address + start), ct.c_size_t(n))
        assert bytes(apart) == bytes(to) + bytes(wanted[start:start + n]) + bytes(40 - to - n)
        library.own_memset(ct.c_void_p(address + to), ct.c_int(0x1AB), ct.c_size_t(n))
        wanted[to:to + n] = b"\xab" * n
        assert ours == wanted
    a, b = b"abc\xff", b"abc\x01"
    assert library.own_memcmp(a, b, ct.c_size_t(4)) > 0 > library.own_memcmp(b, a, ct.c_size_t(4))
    assert library.own_memcmp(a, b, ct.c_size_t(3)) == 0
