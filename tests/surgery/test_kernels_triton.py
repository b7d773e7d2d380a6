"""The fused kernels without a GPU: interpreted on the processor, and compiled for GPUs that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the fused kernels need triton, which the extra dev brings on Linux")

CASES = "grams or weighted_sums or ones or number_that or weight_of or nothing_gives or low_precision"


@pytest.mark.slow
def test_interpreted_kernels_pass_the_tests_of_the_kernels():
    """In a process of its own: whether Triton interprets is settled when the kernels are imported."""
    tests = Path(__file__).with_name("test_kernels.py")
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-W", "ignore", "-k", CASES, str(tests)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=tests.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


COMPILED = """
import warnings
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from counterpoint.surgery._kernels import fused, triton as kernels

def compiled(kernel, pointers, numbers, **constants):
    types = pointers | dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]

warnings.simplefilter("ignore")
tables = {"addresses": "*i64", "items": "*i64"}
for vectors, codes, wide in ((3, 0, False), (3, 0b000101, False), (8, 0, False), (2, 0b1111, True)):
    kind = dict(V=vectors, CODES=codes, ALIGNED=True, WIDE=wide, BLOCK=fused._block(vectors))
    places = triton.next_power_of_2(vectors**2)
    ptx = compiled(kernels.products_kernel, tables | {"products": "*fp64"}, ["first_item"], **kind, PLACES=places)
    if codes == 0:  # without mask or tail, every vector is read once, in pieces of 16 bytes
        assert ptx.count("ld.global.v4.b32") == vectors * kind["BLOCK"] // (128 * 4), ptx.count("ld.global.v4.b32")
    compiled(kernels.sums_kernel, tables | {"weights": "*fp64"}, ["first_item"], **kind, TARGET=codes & 3)
pointers = {"products": "*fp64", "order": "*i64", "ends": "*i64", "units": "*i64", "grams": "*fp64"}
compiled(kernels.units_kernel, pointers, [], V=3, PLACES=16, ROWS=fused.ROWS)
print("compiled")
"""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_and_read_every_element_once(tmp_path):
    """Compiling needs no GPU. That pairs share their reads is the compiler's doing, so it is looked for."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "compiled", done.stderr[-3000:]
