"""The native library: found, looked at before it is loaded, loaded, and explained when it cannot be.

Schemas are declared here in Python (:func:`define`), so that fakes and autograd exist with or without the library; the library adds the
kernels to the dispatcher in C++. Importing this module never fails for want of the library.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import os
import platform
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .._sources import digest
from .._version import __version__
from ..errors import BackendError

#: Number of the interface between the Python schemas and the C++ kernels; csrc/torch/runtime.cpp has the same.
INTERFACE = "1"
REPAIR = "build it again with `pip install -e .` in the source tree (or `python setup.py build_ext --inplace`)"

logger = logging.getLogger("emc_fast")

_STAMP = b"emc_fast native library|version="
_LIBRARY = torch.library.Library("emc_fast", "FRAGMENT")
# The dispatcher holds one kernel per operator and device, and a GPU has two back ends: Triton's kernels have a namespace of their own.
_TRITON = torch.library.Library("emc_fast_triton", "FRAGMENT")


def define(schema: str) -> None:
    """Declare the operator ``emc_fast::<schema>``, and ``emc_fast_triton::<schema>`` where there is a Triton kernel for it."""
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema.split("(", 1)[0]
    if "triton" in libraries(name):
        kernels = import_module("emc_fast.kernels")
        _TRITON.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        if name in kernels.KERNELS:
            _TRITON.impl(name, _triton_kernel(name), kernels.device_type().upper())


@functools.cache
def _triton_operators() -> frozenset[str]:
    try:
        kernels = import_module("emc_fast.kernels")
    except ModuleNotFoundError:
        return frozenset()
    return kernels.COMPOSED | kernels.KERNELS.keys()


def _triton_kernel(name: str) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        return import_module("emc_fast.kernels").kernel(name)(*args)  # imports Triton, and that on first use

    return kernel


def libraries(name: str) -> dict[str, torch.library.Library]:
    """The libraries that declare the raw operator ``name``, by the back ends that they serve: ``"native"`` and ``"triton"``."""
    return {"native": _LIBRARY, "triton": _TRITON} if name in _triton_operators() else {"native": _LIBRARY}


def raw(backend: str) -> Any:
    """The namespace of ``torch.ops`` with the kernels of ``backend``; all but ``"triton"`` share one."""
    return torch.ops.emc_fast_triton if backend == "triton" else torch.ops.emc_fast


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Give the raw operator ``name`` its shape function."""
    for library in libraries(name).values():
        torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)


def register_autograd(name: str, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
    """Give the raw operator ``name`` its derivative. Both functions find in ``ctx.backend`` which namespace serves the call."""
    for backend, library in libraries(name).items():
        setup = remember(backend, setup_context)
        torch.library.register_autograd(f"{library.ns}::{name}", backward, setup_context=setup, lib=library)


def remember(backend: str, setup_context: Callable[..., None]) -> Callable[..., None]:
    """``setup_context`` with ``ctx.backend`` set before, so that backward stays with forward's back end."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = backend
        setup_context(ctx=ctx, inputs=inputs, output=output)

    return setup


def implement(name: str, key: str, kernel: Callable[..., Any]) -> None:
    """Serve ``emc_fast::<name>`` under the dispatch key ``"CPU"`` or ``"CUDA"`` by a Python function that puts other operators together.

    With the key ``"TRITON"`` it serves ``emc_fast_triton::<name>`` on the device that Triton's kernels take.
    """
    if key != "TRITON":
        _LIBRARY.impl(name, kernel, key)
    elif "triton" in libraries(name):
        _TRITON.impl(name, kernel, import_module("emc_fast.kernels").device_type().upper())


def library_path() -> Path:
    """Where the library is looked for: ``EMC_FAST_LIBRARY`` or beside the package."""
    return Path(os.environ.get("EMC_FAST_LIBRARY") or Path(__file__).resolve().parent.parent / "_C.so")


def read_stamp(path: Path) -> dict[str, str]:
    """What the file says about itself (version, interface, processor, isas, compiler, cuda), read without loading it."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return {}
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(_STAMP)
            if start < 0:
                return {}
            text = data[start : data.find(b"\0", start)].decode(errors="replace")
    return dict(field.split("=", 1) for field in text.split("|")[1:] if "=" in field)


def _inspect(path: Path) -> list[str]:
    """Everything that is wrong with the file, found before it is loaded."""
    if not path.is_file():
        return ["there is no such file: it has not been built, or EMC_FAST_LIBRARY points elsewhere"]
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return ["it is not a 64-bit Linux shared library"]
    # The table of sections stands last. The loader maps a file that was cut without complaint, and the process dies of a bus error.
    sections, size, count = struct.unpack_from("<Q", header, 40)[0], *struct.unpack_from("<HH", header, 58)
    if path.stat().st_size < sections + size * count:
        return [f"it is cut off: {path.stat().st_size} of {sections + size * count} bytes"]
    stamp = read_stamp(path)
    if not stamp:
        return ["it has no stamp of emc_fast: it is another library, or damaged"]
    problems = []
    built = f"{stamp['version']} (interface {stamp['interface']})"
    wanted = f"{__version__} (interface {INTERFACE})"
    if built != wanted:
        problems.append(f"it was built from emc_fast {built}, this is {wanted}")
    if "" != stamp["sources"] != digest() != "":
        problems.append("it is older than the sources beside it (csrc has changed since it was built)")
    if stamp["processor"] != platform.machine():
        problems.append(f"it was built for {stamp['processor']}, this machine is {platform.machine()}")
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if release < (2, 10):
        problems.append(f"it needs torch 2.10 or newer, this is {torch.__version__}")
    return problems


@dataclass(frozen=True)
class NativeLibrary:
    """The library as it was found; ``problem`` is empty when it is loaded."""

    path: Path
    stamp: dict[str, str]
    problem: str
    handle: Any = None

    def set_isa(self, name: str) -> None:
        """Use the kernels of ``"base"``, ``"v3"``, ``"v4"``, ``"bf16"`` or ``"amx"`` from now on; ``EMC_FAST_ISA`` from the start."""
        if self.handle is None or self.handle.emc_fast_set_isa(name.encode()):
            why = self.problem or "this build or this machine does not have it"
            raise BackendError(f"the instruction set {name!r} cannot be used: {why}")

    @property
    def isa(self) -> str:
        """The instruction set whose kernels run, or ``""`` without the library."""
        return self.handle.emc_fast_isa().decode() if self.handle is not None else ""

    def set_float32_precision(self, name: str) -> None:
        """Multiply float32 by ``"highest"``, ``"high"`` or ``"medium"`` from now on; without the library there is nothing to set."""
        if self.handle is not None and self.handle.emc_fast_set_float32_precision(name.encode()):
            raise AssertionError(f"the library knows no precision {name!r}")

    @property
    def float32_precision(self) -> str:
        """How precisely float32 is multiplied; ``"highest"`` without the library."""
        return self.handle.emc_fast_float32_precision().decode() if self.handle is not None else "highest"

    @functools.cached_property
    def cuda_problem(self) -> str:
        """Why the CUDA kernels in the library cannot run on the devices that torch sees, or ``""``; asks the driver once."""
        if self.handle is None or not torch.cuda.is_available():
            return self.problem
        built = self.stamp["cuda"]
        if reason := self.handle.emc_fast_cuda_problem().decode():
            if reason == "built without CUDA":
                return f"the library was built without CUDA: {built}"
            return f"the CUDA runtime in the library ({built}) cannot work here: {reason}"
        oldest = min(int(target) for target in re.findall(r"\d+", built.partition(" for ")[2]))  # as code, or as PTX
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            if 10 * major + minor < oldest:
                return f"device {index} has capability {major}.{minor}, and the library was built by {built}: it takes an older toolkit"
        return ""

    def set_poison(self, on: bool) -> None:
        """Fill every fresh output with NaN (for tests; ``EMC_FAST_POISON`` does it from the start)."""
        if self.handle is not None:
            self.handle.emc_fast_set_poison(int(on))


@functools.cache
def native() -> NativeLibrary:
    """Load the library once; the result says why where that failed."""
    path = library_path()
    problems = _inspect(path)
    handle = None
    if not problems:
        try:
            handle = ctypes.CDLL(str(path))  # before torch does, whose own error leaves out the loader's reason
            torch.ops.load_library(str(path))
            for function in (handle.emc_fast_isa, handle.emc_fast_cuda_problem, handle.emc_fast_float32_precision):
                function.restype = ctypes.c_char_p
            wanted, taken = os.environ.get("EMC_FAST_ISA"), handle.emc_fast_isa().decode()
            if wanted and wanted != taken:
                logger.warning("EMC_FAST_ISA=%s cannot be used by this build on this machine: %s is taken", wanted, taken)
        except OSError as error:
            problems.append(f"the loader refused it: {error}")
    stamp = read_stamp(path) if path.is_file() else {}
    problem = f"the native library {path} cannot be used: {'; '.join(problems)}; {REPAIR}" if problems else ""
    return NativeLibrary(path, stamp, problem, handle)


def has_kernel(op: str, key: str) -> bool:
    """Whether ``emc_fast::<op>`` has a kernel under the dispatch key ``"CPU"`` or ``"CUDA"``."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"emc_fast::{op}", key))
