"""Operators: public functions, autograd and the choice of back end.

Each is one file stem: its definition in ``ops/reference``, its operator here, its kernels in ``csrc`` and ``kernels``. The names below are
the functions; a module of the same name is reached by ``from emc_fast.ops.<module> import ...``.
"""

from ._backend import backend_report, use_backend
from ._library import native
from ._precision import get_float32_precision, set_float32_precision, set_from_environment
from .attention import attention
from .attention_block import AttentionBlockWeights, attention_block
from .attention_sublayer import attention_sublayer
from .cross_covariance import cross_covariance
from .dtw import dtw
from .emotion_attention import emotion_attention
from .fusion_kl import fusion_kl
from .fusion_kl_categorical import fusion_kl_categorical
from .lagged_correlation import lagged_correlation
from .philox import draw_seed, dropout, philox_normal, philox_uniform
from .reparameterize import reparameterize

native()  # the raw operators have their kernels from here on, for exported programs too; a library that fails is explained on use
set_from_environment()

__all__ = [
    "AttentionBlockWeights",
    "attention",
    "attention_block",
    "attention_sublayer",
    "backend_report",
    "cross_covariance",
    "draw_seed",
    "dropout",
    "dtw",
    "emotion_attention",
    "fusion_kl",
    "fusion_kl_categorical",
    "get_float32_precision",
    "lagged_correlation",
    "philox_normal",
    "philox_uniform",
    "reparameterize",
    "set_float32_precision",
    "use_backend",
]
