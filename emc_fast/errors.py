"""The package's exceptions. Operators raise plain ValueError and TypeError for bad arguments, as torch's own do."""

from __future__ import annotations


class EmcError(Exception):
    """Base of every error that the package raises on purpose; its text says what is wrong and how to mend it."""


class DataError(EmcError, ValueError):
    """A file, corpus or stream that cannot be used: names the file or stream, what was found and what is taken."""


class CheckpointError(EmcError, ValueError):
    """A checkpoint that is damaged, incomplete or made for another configuration."""


class ConvergenceError(EmcError, ArithmeticError):
    """An iteration that did not come close enough to its solution: says what is left, what is taken, and what to change."""


class BackendError(EmcError, RuntimeError):
    """No back end can serve an operator as asked; lists every candidate with its reason."""
