"""Names of the released REGNN weights and their places in `REGNN`.

The release pickles whole modules. Its classes are public except that of the transformers, whose names are those of the Multimodal
Transformer that it is taken from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import CheckpointError
from .official import Reader

if TYPE_CHECKING:
    from .regnn import REGNN

_FUSE = "perceptual_processor.fuse_model"
_COGNITIVE = "cognitive_processor"
_MOTOR = "motor_processor"

_PLAIN = {
    f"{_FUSE}.trans_v_with_a.layer_norm": "perception.cross_norm",
    f"{_FUSE}.trans_v_mem.layer_norm": "perception.self_norm",
    f"{_FUSE}.proj1": "perception.expand",
    f"{_FUSE}.proj2": "perception.contract",
    f"{_FUSE}.out_layer": "perception.output",
    f"{_COGNITIVE}.convert_layer.fc1": "cognition.convert.expand",
    f"{_COGNITIVE}.convert_layer.fc2": "cognition.convert.contract",
    f"{_COGNITIVE}.EdgeLayer.qk.0.fc1": "cognition.edge_input.expand",
    f"{_COGNITIVE}.EdgeLayer.qk.0.fc2": "cognition.edge_input.contract",
}
_UNUSED = (
    f"{_FUSE}.proj_a.",  # speech is as wide as the transformer already
    f"{_COGNITIVE}.dll.",  # the mixture head, whose loss is off
    *(f"{_MOTOR}.{name}" for name in ("p", "sign_s", "l", "log_s", "u")),  # a linear flow that is not applied
)
_UNUSED_ENDS = (".version", ".embed_positions._float_tensor")


def map_regnn(module: REGNN, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released weights under `module`'s names.

    What the release computes without using it is left out. The 3DMM head, which it does not have, keeps its weights.

    Args:
        module: the backbone to be loaded, for 768 numbers of face and 128 of speech per frame.
        state_dict: tensors by the released names; a `module.` prefix (from data-parallel training) is dropped.

    Raises:
        CheckpointError: other widths, or names that are missing or unknown.
    """
    reader = Reader(state_dict)
    for name in [n for n in reader.left if n.startswith(_UNUSED) or n.endswith(_UNUSED_ENDS)]:
        del reader.left[name]
    if not isinstance(module.speech_projection, torch.nn.Identity):
        raise CheckpointError(
            f"the released REGNN reads {module.d_model} numbers of speech per frame (VGGish) and has no layer for another width; "
            f"set speech_dim={module.d_model}"
        )
    reader.take(f"{_FUSE}.proj_v.weight", "face_projection.weight")
    for name, place in _PLAIN.items():
        reader.affine(name, place)
    reader.take(f"{_COGNITIVE}.EdgeLayer.qk.1.weight", "cognition.edge_weight.weight")
    for stack, place in (("trans_v_with_a", "cross_layers"), ("trans_v_mem", "self_layers")):
        for i in range(module.options.perceptual_layers):
            layer, ours = f"{_FUSE}.{stack}.layers.{i}", f"perception.{place}.{i}"
            reader.attention(f"{layer}.self_attn", f"{layer}.layer_norms.0", f"{ours}.attention")
            reader.affine(f"{layer}.fc1", f"{ours}.feed_forward.expand")
            reader.affine(f"{layer}.fc2", f"{ours}.feed_forward.contract")
            reader.affine(f"{layer}.layer_norms.1", f"{ours}.feed_forward.norm")
    for i in range(module.options.layers):
        layer = f"{_MOTOR}.Layers.{i}"
        reader.take(f"{layer}.norm_layer._log_scale", f"motor.norms.{i}.log_scale")
        reader.take(f"{layer}.norm_layer._shift", f"motor.norms.{i}.shift")
        reader.take(f"{layer}.attn_1.w", f"motor.flows.{i}.channel_weight")
        reader.affine(f"{layer}.attn_1.qk", f"motor.flows.{i}.query_key")
    if reader.faults():
        raise CheckpointError(
            f"the state dict is not that of the released REGNN: {reader.faults()}. If it has more or fewer layers, set "
            "backbone_options={'layers': ..., 'perceptual_layers': ...}"
        )
    name = "face_projection.weight"
    reader.result[name] = reader.result[name].squeeze(-1)  # a convolution of one frame
    own = module.state_dict()
    kept = {n: t for n, t in own.items() if n.startswith("coefficient_head.") or n == "threshold"}
    begun = {n: torch.ones_like(t) for n, t in own.items() if n.endswith(".initialised")}
    return {**reader.result, **kept, **begun}
