"""Registers, shared memory and spills of every CUDA kernel, for every target.

    python tools/cuda_resources.py            compile for 70, 75, 80, 86 and 90 and write docs/cuda-resources.md
    python tools/cuda_resources.py 70 90      compile for these and print

The compiler is NVRTC, which comes as a wheel (``pip install nvidia-cuda-nvrtc-cu12==12.9.86``) and still has code for 70. It needs neither
a GPU nor a driver. tests/ops/test_cuda_compiled.py holds the kernels to the table: a change of a kernel shows in its diff.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "cuda-resources.md"
TARGETS = (70, 75, 80, 86, 90)
WHEEL = "nvidia-cuda-nvrtc-cu12==12.9.86"
_TYPES = ("float", "Half", "BFloat16")
_HEADS = ("{T}, 32", "{T}, 64", "{T}, 128", "{half}, 16")  # types and padded widths of attention
#: Kernels by file stem; {T} runs over the number types, {half} over those of 16 bits.
KERNELS = {
    "philox": ("philox_fill<{T}, true>", "philox_fill<{T}, false>", "dropout<{T}>"),
    "reparameterize": ("reparameterize<{T}>", "reparameterize_backward<{T}>"),
    "fusion_kl": ("fusion_kl<{T}, 6>", "fusion_kl<{T}, 3>", "fusion_kl_backward<{T}, 6>", "fusion_kl_backward<{T}, 3>"),
    "fusion_kl_rows": ("finish<double>", "count_rows<int64_t>"),
    "dtw": ("dtw<double, false>", "dtw<float, true>"),
    "fusion_kl_categorical": ("fusion_kl_categorical<{T}>", "fusion_kl_categorical_backward<{T}>"),
    "attention": tuple(f"attention<{head}>" for head in _HEADS),
    "attention_backward": tuple(f"attention_backward_{side}<{head}>" for side in ("queries", "keys") for head in _HEADS),
    "emotion_attention": ("few_heads<{T}>", "few_join<{T}>"),
    "attention_block": ("attention_block<float>", "attention_block_backward<float>", "attention_block_sums<float>"),
}


@dataclass(frozen=True)
class Resources:
    """What the assembler said of one kernel: registers of a thread; bytes of static shared memory, of stack and of spilled registers.

    ``matrix`` counts the matrix instructions in its PTX, where that was looked at.
    """

    registers: int
    shared: int
    stack: int
    spilled: int
    matrix: int = 0

    def __str__(self) -> str:
        return (
            f"{self.registers}" + (f" + {self.shared} B" if self.shared else "") + (f", {self.spilled} B spilled" if self.spilled else "")
        )


def names(stem: str) -> list[str]:
    """The kernels of a file, as C++ spells them inside ``emc::cuda``."""
    found = []
    for pattern in KERNELS[stem]:
        types = _TYPES[1:] if "{half}" in pattern else _TYPES
        found += dict.fromkeys(pattern.replace("{T}", t).replace("{half}", t) for t in types)
    return found


def library() -> Path | None:
    """NVRTC from its wheel, or None."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.12"):
            return path
    return None


def compile_kernels(stem: str, target: int) -> tuple[dict[str, str], str, str]:
    """Compile a file's kernels with NVRTC: their names by symbol, the assembler's report, and the PTX.

    Raises:
        FileNotFoundError: the wheel is not installed.
        RuntimeError: the compiler's messages.
    """
    path = library()
    if path is None:
        raise FileNotFoundError(f"NVRTC is not installed: pip install {WHEEL}")
    nvrtc = ctypes.CDLL(str(path))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    program = ctypes.c_void_p()

    def call(name: str, *arguments: object) -> None:
        if code := getattr(nvrtc, name)(*arguments):
            raise RuntimeError(f"{name}: {nvrtc.nvrtcGetErrorString(code).decode()}\n{log() if name == 'nvrtcCompileProgram' else ''}")

    def log() -> str:
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, text)
        return text.value.decode()

    call("nvrtcCreateProgram", ctypes.byref(program), f'#include "{stem}.cuh"\n'.encode(), b"kernels.cu", 0, None, None)
    for name in names(stem):
        call("nvrtcAddNameExpression", program, f"emc::cuda::{_qualified(name)}".encode())
    flags = [f"--gpu-architecture=sm_{target}", "-std=c++17", "-default-device", "--fmad=false", "--ptxas-options=-v"]
    options = [flag.encode() for flag in (*flags, f"-I{ROOT / 'csrc' / 'cuda'}")]
    call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
    symbols = {}
    for name in names(stem):
        symbol = ctypes.c_char_p()
        call("nvrtcGetLoweredName", program, f"emc::cuda::{_qualified(name)}".encode(), ctypes.byref(symbol))
        symbols[symbol.value.decode()] = name  # type: ignore[union-attr]
    size = ctypes.c_size_t()
    call("nvrtcGetPTXSize", program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    call("nvrtcGetPTX", program, ptx)
    report = log()
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return symbols, report, ptx.value.decode()


def _qualified(name: str) -> str:
    return re.sub(r"\b(Half|BFloat16)\b", r"emc::cuda::\1", name)


def parse(report: str) -> Iterator[tuple[str, Resources]]:
    """Symbols and resources from what ``ptxas -v`` prints."""
    for part in re.split(r"Compiling entry function '", report)[1:]:
        numbers = {
            key: int(found[1]) if (found := re.search(pattern, part)) else 0
            for key, pattern in (
                ("registers", r"Used (\d+) registers"),
                ("shared", r"(\d+) bytes smem"),
                ("stack", r"(\d+) bytes stack frame"),
                ("spilled", r"(\d+) bytes spill stores"),
            )
        }
        yield part.partition("'")[0], Resources(**numbers)


def matrix_instructions(ptx: str) -> dict[str, int]:
    """How many there are in each kernel, by symbol. The assembler turns each into HMMA, or refuses the target."""
    parts = re.split(r"\.entry (\w+)\(", ptx)[1:]
    return {symbol: len(re.findall(r"\bmma\.sync\b", body)) for symbol, body in zip(parts[::2], parts[1::2], strict=True)}


def measure(target: int, stems: tuple[str, ...] = tuple(KERNELS)) -> dict[str, Resources]:
    """Resources of every kernel for one target, by name."""
    found = {}
    for stem in stems:
        symbols, report, ptx = compile_kernels(stem, target)
        by_symbol = dict(parse(report))
        matrix = matrix_instructions(ptx)
        found |= {name: replace(by_symbol[symbol], matrix=matrix[symbol]) for symbol, name in symbols.items()}
    return found


def table(measured: dict[int, dict[str, Resources]]) -> str:
    """Markdown: a row per kernel, a column per target."""
    lines = [
        "# Registers of the CUDA kernels",
        "",
        f"Registers of a thread (+ bytes of static shared memory) by target, compiled by NVRTC {WHEEL.partition('==')[2]}. No kernel",
        "spills a register. Written by `python tools/cuda_resources.py`; `tests/ops/test_cuda_compiled.py` compares. Blocks have",
        "256 threads, those of attention up to 128, so a multiprocessor with 65536 registers holds `65536 // (256 * registers)` of them,",
        "eight at the most.",
        "",
        f"| kernel | {' | '.join(f'sm_{target}' for target in measured)} |",
        f"|---|{'---|' * len(measured)}",
    ]
    first = next(iter(measured.values()))
    lines += [f"| `{name}` | {' | '.join(str(column[name]) for column in measured.values())} |" for name in first]
    return "\n".join(lines) + "\n"


def read_table() -> dict[str, dict[int, str]]:
    """The committed table: by kernel and target."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    targets = [int(cell.removeprefix("sm_")) for cell in rows[0][1:]]
    return {row[0].strip("`"): dict(zip(targets, row[1:], strict=True)) for row in rows[1:]}


if __name__ == "__main__":
    wanted = tuple(map(int, sys.argv[1:]))
    text = table({target: measure(target) for target in wanted or TARGETS})
    if wanted:
        print(text)
    else:
        TABLE.write_text(text)
