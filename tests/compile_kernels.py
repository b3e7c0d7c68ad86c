"""Compile every kernel that the operations launch for GPUs that are not here: ``python -m tests.compile_kernels``.

Launches are caught and compiled for Ampere, Hopper and Blackwell instead of being run, so this needs no GPU, but a process of its own in
which Triton was not told to interpret.
"""

# mypy: disable-error-code="import-untyped"

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tests.kernel_calls import CALLS

CAPABILITIES = (80, 90, 100)
_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64", torch.int32: "*i32",
    torch.uint8: "*u8",
}  # fmt: skip


def compile_launch(kernel: Any, arguments: dict[str, Any], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Compile one launch for every GPU and return the kernel's name and what it needs."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = _TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if (value.data_ptr() if isinstance(value, torch.Tensor) else value) % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    found = []
    for capability in CAPABILITIES:
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        needs = {"shared": compiled.metadata.shared, "spilled": spilled(compiled.asm["cubin"])}
        found.append({"kernel": kernel.__name__, "capability": capability, **needs})
    return found


def spilled(cubin: bytes) -> int:
    """Return how much of what a thread should hold in registers lies in memory (bytes), by the tool that comes with Triton."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stack, local), *_ = re.findall(r"STACK:(\d+) .*LOCAL:(\d+)", usage)
    return int(stack) + int(local)


def compile_all() -> list[dict[str, Any]]:
    """Compile whatever the calls launch."""
    found: list[dict[str, Any]] = []

    def caught(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in self.params]
        options = {key: value for key, value in kwargs.items() if key not in names}
        found.extend(compile_launch(self, {**dict(zip(names, args, strict=False)), **kwargs}, options))

    JITFunction.run = caught
    for call in CALLS.values():
        call()
    return found


if __name__ == "__main__":
    json.dump(compile_all(), sys.stdout)
