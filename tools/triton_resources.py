"""Compiles the Triton kernels ahead of time, without a GPU, and writes what they take: registers, spills,
shared memory, matrix instructions.

    python tools/triton_resources.py [--write] [--only NAME]

The launchers themselves are run, on CPU tensors and with the launch caught, so that what is compiled is what would be launched: same tiles,
same specialisation on strides and alignment. ``--write`` replaces tests/ops/triton_resources.json; a change of it shows in the diff.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from emc_fast.kernels import _configs, kernel

TABLE = ROOT / "tests" / "ops" / "triton_resources.json"
TARGETS = (80, 89, 90)
_TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.bool: "*i1", torch.float64: "*fp64",
    torch.uint8: "*u8", torch.int32: "*i32",
}  # fmt: skip
SEED = torch.tensor([1])
ONE = torch.tensor(1.0)


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def cases() -> dict[str, Callable[[], Any]]:
    """Representative launches by name: the field's sizes, the dtypes that matter, the paths that differ."""
    found: dict[str, Callable[[], Any]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x = randn(48000, 128, dtype=dtype)
        row = torch.zeros(48000)
        found[f"philox_normal 128 {name}"] = lambda x=x: kernel("philox_normal")(x, SEED, 0, None)
        found[f"dropout 128 {name}"] = lambda x=x: kernel("dropout")(x, SEED, 0.1, 0, None)
        found[f"reparameterize 128 {name}"] = lambda x=x: kernel("reparameterize")(x, x, SEED, 0, None, None)
        found[f"reparameterize backward 128 {name}"] = lambda x=x, row=row: kernel("reparameterize_backward")(
            x, row, x, x, SEED, 0, None, None
        )
        found[f"fusion_kl 128 {name}"] = lambda x=x: kernel("fusion_kl")(x, x, x, x, x, x, None, 0)
        found[f"fusion_kl backward 128 {name}"] = lambda x=x: kernel("fusion_kl_backward")(ONE, x, x, x, x, x, x, None, 0)
        stats = torch.zeros(48000, 12)
        found[f"fusion_kl_categorical 128 {name}"] = lambda x=x: kernel("fusion_kl_categorical")(x, x, x, None, 0)
        found[f"fusion_kl_categorical backward 128 {name}"] = lambda x=x, stats=stats: kernel("fusion_kl_categorical_backward")(
            ONE, x, x, x, stats, None, 0
        )
    return found


def caught(case: Callable[[], Any]) -> list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]]:
    """The launches of a case."""
    launches: list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]] = []

    def catch(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append((self, args, kwargs))

    plain, JITFunction.run = JITFunction.run, catch
    try:
        case()
    finally:
        JITFunction.run = plain
    return launches


def source(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[ASTSource, dict[str, Any]]:
    """What the just-in-time compiler would make of these arguments."""
    names = [param.name for param in kernel.params]
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
    values = dict(zip(names, args, strict=False)) | kwargs
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, param in enumerate(kernel.params):
        value = values[param.name]
        if param.is_constexpr or value is None or (value == 1 if isinstance(value, int) and not param.do_not_specialize else False):
            signature[param.name], constants[(index,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[param.name] = _TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[param.name] = "fp32"
        else:
            signature[param.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not param.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs=constants, attrs=attributes), options


def tool(name: str) -> str:
    return str(Path(nvidia.__file__).parent / "bin" / name)


def resources(cubin: bytes, sass: bool) -> dict[str, int]:
    """From the machine code itself; what `ptxas` only logs is not in Triton's metadata without a GPU."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        found = {"registers": int(re.search(r"REG:(\d+)", usage)[1]), "stack": int(re.search(r"STACK:(\d+)", usage)[1])}  # type: ignore[index]
        if sass:
            text = subprocess.run([tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True).stdout
            found["spills"] = len(re.findall(r"\b(?:STL|LDL)\b", text))
            found["matrix"] = len(re.findall(r"\b(?:HMMA|HGMMA|IMMA)\b", text))
        return found


def measure(only: str = "") -> dict[str, dict[str, dict[str, int]]]:
    """{kernel and case: {target: resources}}."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for name, case in cases().items():
        if only not in name:
            continue
        for target in TARGETS:
            _configs.capability = lambda _, target=target: target  # type: ignore[assignment]
            for function, args, kwargs in caught(case):
                code, options = source(function, args, dict(kwargs))
                compiled = triton.compile(code, target=GPUTarget("cuda", target, 32), options=options)
                entry = resources(compiled.asm["cubin"], sass=True) | {"shared": compiled.metadata.shared}
                table.setdefault(f"{name}: {function.fn.__name__}", {})[str(target)] = entry
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace {TABLE.relative_to(ROOT)}")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    args = parser.parse_args()
    result = {"triton": triton.__version__, "kernels": measure(args.only)}
    rows = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in result["kernels"].items()]
    text = f'{{\n  "triton": {json.dumps(result["triton"])},\n  "kernels": {{\n' + ",\n".join(rows) + "\n  }\n}\n"
    if args.write:
        TABLE.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
