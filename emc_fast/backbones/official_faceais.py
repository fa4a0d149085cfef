"""Names of the published FaceAIS weights and their places in `FaceAIS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import CheckpointError
from .official import Reader

if TYPE_CHECKING:
    from .faceais import FaceAIS

_TOKENIZER = {
    "encoder.wfe": "face_input",
    "encoder.wpe": "face_positions",
    "quantize.quantize.project_in": "to_code",
    "quantize.quantize.project_out": "from_code",
    "decoder_to_3dmm.wfe": "code_input",
    "decoder_to_3dmm.wpe": "code_positions",
    "lm_head_3dmm": "coefficient_head",
    "lm_head_emotion": "emotion_head",
}
_TOKENIZER_STACKS = {"encoder": "encoder", "decoder_to_3dmm": "coefficient_decoder", "decoder_to_emotion": "emotion_decoder"}
_PREDICTOR = {
    "wav2vec2_c_proj": "speaker.speech_input",
    "sp_cm_transformer.wpe_sound": "speaker.speech_positions",
    "sp_cm_transformer.wte_face": "speaker.face_embedding",
    "sp_cm_transformer.wpw_face": "speaker.face_positions",
    "lt_cm_transformer.wte": "listener.embedding",
    "lt_cm_transformer.wpe": "listener.positions",
    "lt_cm_transformer.ln_f": "listener.norm",
    "lm_head": "listener.head",
}
_PREDICTOR_STACKS = {
    "sp_cm_transformer.h_sound": "speaker.speech_stack",
    "sp_cm_transformer.h_face": "speaker.face_stack",
    "lt_cm_transformer.h_listener": "listener.listener_stack",
    "lt_cm_transformer.h_speaker": "listener.speaker_stack",
}
_PREDICTOR_CROSS = {"sp_cm_transformer.h": "speaker.cross", "lt_cm_transformer.h": "listener.cross"}
_NO_BIAS = {"lm_head", "lm_head_3dmm", "lm_head_emotion"}
_LAYER = {"ln_1": "attention_norm", "attn.c_attn": "attention.inputs", "attn.c_proj": "attention.output",
          "ln_2": "mlp_norm", "mlp.c_fc": "mlp.expand", "mlp.c_proj": "mlp.contract"}  # fmt: skip
_CROSS_LAYER = _LAYER | {"ln_3": "memory_norm", "attn_cross.x_c_attn": "cross.query",
                         "attn_cross.y_c_attn": "cross.inputs", "attn_cross.c_proj": "cross.output"}  # fmt: skip
_UNUSED = ("sp_cm_transformer.wte_sound.", "sp_cm_transformer.ln_f.", "sound_feature_extractor.", "sound_tokenizer.", "render.")
"""Saved by the published code and without a part in what it computes, or not a part of the model."""


def _plain_name(name: str) -> str:
    """A name without what the published training program puts before it."""
    for prefix in ("module.", "face_tokenizer.", "model."):
        name = name.removeprefix(prefix)
    return name


def map_faceais(module: FaceAIS, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under `module`'s names; what only EMC has keeps its value.

    Args:
        module: the backbone to be loaded.
        state_dict: tensors of predictor and tokenizer by the published names, with the prefixes of its training program or without.

    Raises:
        CheckpointError: names that are missing or unknown.
    """
    left = {_plain_name(name): tensor for name, tensor in state_dict.items() if not name.startswith(_UNUSED)}
    reader = Reader({name: tensor for name, tensor in left.items() if not name.startswith(_UNUSED)})

    def take(name: str, place: str, *, bias: bool) -> None:
        reader.take(f"{name}.weight", f"{place}.weight")
        if bias and name not in _NO_BIAS and ".wte" not in name and ".wpe" not in name and ".wpw" not in name:
            reader.take(f"{name}.bias", f"{place}.bias")

    def stack(names: dict[str, str], name: str, place: str, layers: int, *, bias: bool) -> None:
        for i in range(layers):
            for theirs, ours in names.items():
                take(f"{name}.{i}.{theirs}", f"{place}.layers.{i}.{ours}", bias=bias)
            if names is _CROSS_LAYER:
                reader.take(f"{name}.{i}.gated_alpha", f"{place}.layers.{i}.gate")

    for name, place in _TOKENIZER.items():
        take(name, f"tokenizer.{place}", bias=True)
    for name, place in _TOKENIZER_STACKS.items():
        stack(_LAYER, f"{name}.h", f"tokenizer.{place}", module.options.tokenizer_layers, bias=False)
        take(f"{name}.ln_f", f"tokenizer.{place}.norm", bias=False)
    for name, place in _PREDICTOR.items():
        take(name, place, bias=True)
    for name, place in _PREDICTOR_STACKS.items():
        stack(_LAYER, name, place, module.options.layers, bias=True)
    for name, place in _PREDICTOR_CROSS.items():
        stack(_CROSS_LAYER, name, place, module.options.layers, bias=True)
    if reader.faults():
        raise CheckpointError(
            f"the state dict is not that of the published FaceAIS: {reader.faults()}. The predictor's checkpoint has both parts; a "
            "tokenizer's has its own only, and goes beside it"
        )
    own = {name: value for name, value in module.state_dict().items() if name.startswith("refine.")}
    return reader.result | own
