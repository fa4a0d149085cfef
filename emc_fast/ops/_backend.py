"""Choice of the back end: what serves an operator here, and why the others do not.

The choice depends on the device, the dtype and the operator's own limits, never on sizes or values, so it costs nothing under
``torch.compile``: there it is a constant, guarded by what :func:`use_backend` says. Which of two kernels is preferred where both can serve
is in ``_preferences``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import torch

from ..errors import BackendError
from ._library import has_kernel, native
from ._preferences import PREFERENCE, preferred

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]
BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

logger = logging.getLogger("emc_fast")


@dataclass(frozen=True)
class Operator:
    """What the choice must know of an operator: the raw operator that carries its kernels, and the dtypes these take."""

    name: str
    raw: str
    dtypes: tuple[torch.dtype, ...]


@dataclass(frozen=True)
class Row:
    """One line of :func:`backend_report`: ``reason`` is empty where the back end can serve, ``source`` says why it was chosen."""

    operator: str
    backend: str
    device: str
    reason: str
    chosen: bool
    source: str = ""


OPERATORS: dict[str, Operator] = {}
_decided: dict[tuple[object, ...], str] = {}
_logged: set[tuple[str, str, torch.dtype, str]] = set()
_warned = False


def register_operator(name: str, *, raw: str | None = None, dtypes: tuple[torch.dtype, ...] = KERNEL_DTYPES) -> None:
    """Make an operator known to the choice; ``raw`` is its dispatcher name where that differs."""
    OPERATORS[name] = Operator(name, raw or name, dtypes)


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}; it takes one of {', '.join(BACKENDS)}")
    return name


_forced = _checked(os.environ.get("EMC_FAST_BACKEND") or "auto", "EMC_FAST_BACKEND")


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Have every operator inside the block served by ``backend``, or an error that says why that cannot be.

    Args:
        backend: ``"auto"`` (the best that can serve), ``"reference"`` (plain PyTorch), ``"cpu"``, ``"cuda"`` or ``"triton"``.

    The setting is the process's, as torch's own back-end flags are, and the environment variable ``EMC_FAST_BACKEND`` sets it from the
    start. A backward pass always uses the back end of its forward pass.

    Raises:
        ValueError: the name is none of these.
        BackendError: (from an operator in the block) the back end cannot serve it; names every candidate with its reason.
    """
    global _forced
    previous, _forced = _forced, _checked(backend, "backend")
    try:
        yield
    finally:
        _forced = previous


def _reason(operator: Operator, backend: str, device: str, dtype: torch.dtype | None, refuse: tuple[tuple[str, str], ...]) -> str:
    """Why ``backend`` cannot serve, or the empty string."""
    if backend == "reference":
        return ""
    if backend == "triton":
        try:
            kernels = import_module("emc_fast.kernels")
        except ModuleNotFoundError:
            return "the Triton kernels are not installed (a source tree on the path instead of `pip install -e .`)"
        if reason := kernels.triton_reason(operator.name):
            return reason
        if device != kernels.device_type():
            return f"the tensors are on {device}"
    elif native().problem:
        return native().problem
    elif not has_kernel(operator.raw, backend.upper()):
        return f"this version has no {'CUDA' if backend == 'cuda' else 'CPU'} kernel for {operator.name}"
    elif device != backend:
        return f"the tensors are on {device}"
    elif backend == "cuda" and (reason := native().cuda_problem):
        return reason
    if dtype is not None and dtype not in operator.dtypes:
        taken = ", ".join(str(d).removeprefix("torch.") for d in operator.dtypes)
        return f"the kernel takes {taken}, not {str(dtype).removeprefix('torch.')}"
    return dict(refuse).get(backend, "")


def _best(operator: Operator, device: str, index: int | None, dtype: torch.dtype, refuse: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """What ``auto`` takes, and why."""
    candidates, source = preferred(operator.name, device, index, dtype)
    able = [backend for backend in candidates if not _reason(operator, backend, device, dtype, refuse)]
    if len(able) < 3:  # the reference is one of them
        source = "the only kernel that can serve" if len(able) == 2 else "no kernel can serve"
    return able[0], source


def _decide(name: str, device: str, index: int | None, dtype: torch.dtype, forced: str, refuse: tuple[tuple[str, str], ...]) -> str:
    key = (name, device, index, dtype, forced, refuse)
    known = _decided.get(key)
    if known is not None:
        return known
    operator = OPERATORS[name]
    if forced != "auto":
        if reason := _reason(operator, forced, device, dtype, refuse):
            lines = [f"{backend}: {_reason(operator, backend, device, dtype, refuse) or 'can serve'}" for backend in BACKENDS[1:]]
            raise BackendError(f"{name}: the back end {forced!r} was asked for and cannot serve: {reason}\n  " + "\n  ".join(lines))
        choice = forced
    else:
        choice, source = _best(operator, device, index, dtype, refuse)
        _log(operator, device, dtype, choice, refuse, source)
    _decided[key] = choice
    return choice


def _log(operator: Operator, device: str, dtype: torch.dtype, choice: str, refuse: tuple[tuple[str, str], ...], source: str) -> None:
    """Say once what was chosen; loudly if only a broken library stands in the way of a kernel."""
    global _warned
    line = (operator.name, device, dtype, choice)
    if line in _logged:
        return
    _logged.add(line)
    passed = {b: _reason(operator, b, device, dtype, refuse) for b in PREFERENCE.get(device, ()) if b not in (choice, "reference")}
    why = ""
    if passed and choice == "reference":
        why = f" ({'; '.join(f'{b}: {reason}' for b, reason in passed.items())})"
    elif passed and not any(passed.values()):  # there was a choice
        why = f" ({source})"
    logger.info("%s on %s in %s is served by %s%s", operator.name, device, str(dtype).removeprefix("torch."), choice, why)
    problem = native().problem or (native().cuda_problem if device == "cuda" else "")
    if choice == "reference" and problem and not _warned:
        _warned = True
        logger.warning("the operators run in plain PyTorch, slower than they could: %s", problem)


# Under torch.compile the decision is taken once, while tracing, and its result is a constant of the graph: what
# torch.compiler.assume_constant_result does, without importing the compiler, which takes longer than all the rest of this package.
_decide._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(name: str, device: torch.device, dtype: torch.dtype, refuse: tuple[tuple[str, str], ...] = ()) -> str:
    """The back end that serves operator ``name`` for tensors of ``dtype`` on ``device``.

    Args:
        name: as given to :func:`register_operator`.
        device: of the tensors.
        dtype: of the tensors.
        refuse: pairs of a back end and the reason why it cannot serve this call, for limits that only the operator knows.

    Raises:
        BackendError: a back end was asked for that cannot serve.
    """
    if _forced == "auto" and not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return "reference"  # torch.func transforms go through plain PyTorch, not through registered derivatives
    return _decide(name, device.type, device.index, dtype, _forced, refuse)


def backend_report() -> list[Row]:
    """Every operator x back end (at float32), with the reason where a back end cannot serve, and what ``auto`` takes and why.

    CPU rows are for tensors on the CPU; CUDA and Triton rows for tensors on the current CUDA device.
    """
    rows = []
    build = "" if torch.version.cuda else f" (torch {torch.__version__} is a CPU build)"
    no_cuda = "" if torch.cuda.is_available() else f"torch sees no CUDA device{build}"
    for operator in OPERATORS.values():
        for device, candidates in PREFERENCE.items():
            best, source = _best(operator, device, None, torch.float32, ())
            for backend in candidates:
                reason = _reason(operator, backend, device, torch.float32, ()) or (no_cuda if device == "cuda" else "")
                chosen = backend == best and not reason
                rows.append(Row(operator.name, backend, device, reason, chosen, source if chosen else ""))
    return rows
