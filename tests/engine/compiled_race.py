"""Compiles the sampling kernels for an H100 without a GPU and prints their resource usage as JSON.

python -m tests.engine.compiled_race
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from baton.engine.race import kernels, settle
from baton.engine.race.gpu import CAPACITY, LAUNCH

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    **dict.fromkeys(["peaks", "arrivals", "masses", "before", "again", "tokens"], "*i64"),
    **dict.fromkeys(["rows", "counts", "bins", "noted"], "*i32"),
    **dict.fromkeys(["vocab", "splits"], "i32"),
    "logits": "*fp32",
    "finite": "*i1",
    "capacity": "constexpr",
}
KERNELS = [
    *(kernels.peaks_kernel, kernels.bins_kernel, kernels.race_kernel, kernels.check_kernel, kernels.again_kernel),
    settle.settle_kernel,
]
FUSED = re.compile(r"\bfma\.|\bmad\.(?:rn|rz)|\bFFMA\b")


def compiled(kernel: Any) -> Any:
    """Compiled as by the launcher: addresses and vocabulary size are multiples of 16."""
    signature = {name: TYPES[name] for name in kernel.arg_names}
    aligned = [place for place, name in enumerate(signature) if signature[name][0] == "*" or name == "vocab"]
    source = ASTSource(
        kernel,
        signature,
        constexprs={"capacity": CAPACITY} if "capacity" in signature else {},
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    return triton.compile(source, target=HOPPER, options=LAUNCH)


def facts(kernel: Any) -> dict[str, int]:
    """Registers per thread, bytes of local and shared memory, and number of fused multiply-adds."""
    made = compiled(kernel)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(made.asm["cubin"])
        cubin.flush()
        used = _output(tools / "cuobjdump", "-res-usage", cubin.name)
        code = _output(tools / "nvdisasm", "-c", cubin.name)
    sizes = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", used)}
    return {
        "registers": sizes["REG"],
        "local_bytes": sizes["LOCAL"],
        "stack_bytes": sizes["STACK"],
        "shared_bytes": made.metadata.shared,
        "fused": len(FUSED.findall(made.asm["ptx"] + code)),
        "instructions": code.count(";"),
    }


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    json.dump({kernel.__name__: facts(kernel) for kernel in KERNELS}, sys.stdout, indent=1)
    print()
