"""Compiles the Triton kernels ahead of time, without a GPU, and writes what they take: registers, spills,
shared memory, matrix instructions.

    python tools/triton_resources.py [--write | --check] [--only NAME]

The launchers themselves are run, on CPU tensors and with the launch caught, so that what is compiled is what would be launched: same tiles,
same specialisation on strides and alignment. ``--write`` replaces tests/ops/triton_resources.json, so that a change shows in the diff;
``--check`` compares with it. A kernel that spills, or attention in a half type without matrix instructions, is an error always.
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
#: Bytes of shared memory that a block may ask for (CUDA programming guide, compute capabilities).
SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
_TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.bool: "*i1", torch.float64: "*fp64",
    torch.uint8: "*u8", torch.int32: "*i32",
}  # fmt: skip
SEED = torch.tensor([1])
ONE = torch.tensor(1.0)


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def cases() -> dict[str, tuple[Callable[[], Any], tuple[int, ...]]]:
    """Representative launches with their targets, by name: every kernel at a size of the field in bfloat16 on all; other paths on one."""
    found: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {}

    def add(name: str, raw: str, *args: Any, targets: tuple[int, ...] = TARGETS) -> None:
        found[name] = (lambda: kernel(raw)(*args), targets)

    x, row, stats, w = randn(48000, 128), torch.zeros(48000), torch.zeros(48000, 12), randn(128)
    add("philox_normal 128 bf16", "philox_normal", x, SEED, 0, None)
    add("dropout 128 bf16", "dropout", x, SEED, 0.1, 0, None)
    add("fusion_kl_categorical 128 bf16", "fusion_kl_categorical", x, x, x, None, 0)
    add("fusion_kl_categorical backward 128 bf16", "fusion_kl_categorical_backward", ONE, x, x, x, stats, None, 0)
    add("attention_block 128 bf16", "attention_block_epilogue", x, x, w, w, 1e-5, 0.1, SEED, 0)
    add("attention_block backward 128 bf16", "attention_block_epilogue_backward", x, x, x, w, row, row, 0.1, SEED, 0)
    for name, dtype, targets in (("bf16", torch.bfloat16, TARGETS), ("fp32", torch.float32, (90,))):
        x = randn(48000, 128, dtype=dtype)
        add(f"reparameterize 128 {name}", "reparameterize", x, x, SEED, 0, None, None, targets=targets)
        add(f"reparameterize backward 128 {name}", "reparameterize_backward", x, row, x, x, SEED, 0, None, None, targets=targets)
        add(f"fusion_kl 128 {name}", "fusion_kl", x, x, x, x, x, x, None, 0, targets=targets)
        add(f"fusion_kl backward 128 {name}", "fusion_kl_backward", ONE, x, x, x, x, x, x, None, 0, targets=targets)
    numbers, lengths = torch.zeros(640, 2, dtype=torch.int64), torch.ones(64, dtype=torch.int64)
    for channels, exact, some, targets in (
        (2, True, None, (90,)),
        (15, True, lengths, TARGETS),
        (25, False, lengths, TARGETS),
        (600, True, lengths, (80, 90)),
    ):
        x, far = torch.zeros(64, 750, channels), None if some is None else torch.ones(640, dtype=torch.float64)
        name = f"dtw {channels}{'' if exact else ', estimate'}{'' if some is None else ', bound'}"
        add(name, "dtw", x, x, numbers, some, some, far, exact, targets=targets)
    for name, dtype, clips, width, dropout, targets in (
        ("32 bf16", torch.bfloat16, 64, 32, 0.0, TARGETS),
        ("30 bf16, dropout", torch.bfloat16, 64, 30, 0.1, (80, 90)),
        ("32 bf16, one clip", torch.bfloat16, 1, 32, 0.0, (90,)),
        ("128 fp16", torch.float16, 64, 128, 0.0, (89, 90)),
        ("32 fp32", torch.float32, 64, 32, 0.0, (90,)),
        ("30 fp32, dropout", torch.float32, 64, 30, 0.1, (80, 90)),
        ("64 fp32", torch.float32, 64, 64, 0.0, (80, 90)),
        ("64 fp32, dropout", torch.float32, 64, 64, 0.1, (90,)),
        ("128 fp32", torch.float32, 64, 128, 0.0, (90,)),
    ):
        x, statistics = randn(clips, 750, 4, width, dtype=dtype), torch.zeros(2, clips, 4, 750)
        options = (None, True, 0, None, dropout, SEED, 0)
        add(f"attention {name}", "attention", x, x, x, *options, targets=targets)
        add(f"attention backward {name}", "attention_backward", x, x, x, x, statistics, *options, targets=targets)
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
            if value.data_ptr() % 16 == 0 and not param.do_not_specialize_on_alignment:
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


def resources(cubin: bytes) -> dict[str, int]:
    """From the machine code itself; what `ptxas` only logs is not in Triton's metadata without a GPU."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        found = {"registers": int(re.search(r"REG:(\d+)", usage)[1]), "stack": int(re.search(r"STACK:(\d+)", usage)[1])}  # type: ignore[index]
        text = subprocess.run([tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True).stdout
        found["spills"] = len(re.findall(r"\b(?:STL|LDL)\b", text))
        found["matrix"] = len(re.findall(r"\b(?:HMMA|HGMMA)\b", text))
        return found


def measure(only: str = "") -> dict[str, dict[str, dict[str, int]]]:
    """{kernel and case: {target: resources}}."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for name, (case, targets) in cases().items():
        if only not in name:
            continue
        for target in targets:
            _configs.capability = lambda _, target=target: target  # type: ignore[assignment]
            for function, args, kwargs in caught(case):
                code, options = source(function, args, dict(kwargs))
                compiled = triton.compile(code, target=GPUTarget("cuda", target, 32), options=options)
                entry = resources(compiled.asm["cubin"]) | {"shared": compiled.metadata.shared}
                table.setdefault(f"{name}: {function.fn.__name__}", {})[str(target)] = entry
    return table


def problems(table: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    """What no kernel may do: spill, take more shared memory than a block has, or multiply half types without the matrix units."""
    found = []
    for name, entries in table.items():
        for target, entry in entries.items():
            if entry["stack"] or entry["spills"]:
                found.append(f"{name} for sm_{target} spills: {entry}")
            if entry["shared"] > SHARED[int(target)]:
                found.append(f"{name} for sm_{target} takes {entry['shared']} bytes of shared memory, a block has {SHARED[int(target)]}")
            if name.startswith(("attention ", "attention backward")) and "fp32" not in name and not entry["matrix"]:
                found.append(f"{name} for sm_{target} has no matrix instruction")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace {TABLE.relative_to(ROOT)}")
    parser.add_argument("--check", action="store_true", help="compare with it")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    args = parser.parse_args()
    table = measure(args.only)
    rows = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items()]
    text = f'{{\n  "triton": {json.dumps(triton.__version__)},\n  "kernels": {{\n' + ",\n".join(rows) + "\n  }\n}\n"
    found = problems(table)
    if args.write:
        TABLE.write_text(text)
    elif args.check:
        committed = json.loads(TABLE.read_text())
        if committed["triton"] == triton.__version__ and committed["kernels"] != table:
            found.append(
                f"{TABLE.relative_to(ROOT)} is not what these kernels take: write it again with --write, and look at the difference"
            )
        print(f"{sum(map(len, table.values()))} kernels compiled by triton {triton.__version__}")
    else:
        sys.stdout.write(text)
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
