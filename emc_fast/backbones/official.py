"""Names of the published Trans-VAE weights and their places in `TransVAE`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import CheckpointError

if TYPE_CHECKING:
    from .trans_vae import TransVAE

_ENCODER = "speaker_behaviour_encoder"
_DECODER = "reaction_decoder"

_PLAIN = {
    f"{_ENCODER}.video_encoder.fc": "face_encoder.output",
    f"{_ENCODER}.audio_feature_map": "speech_encoder",
    f"{_ENCODER}.fusion_layer": "fusion",
    "fusion": "past_fusion",
    f"{_DECODER}.vae_model.linear": "vae_input",
    f"{_DECODER}.listener_reaction_3dmm_map_layer": "coefficient_head",
    f"{_DECODER}.listener_reaction_emotion_map_layer.0": "emotion_head.0",
    f"{_DECODER}.listener_reaction_emotion_map_layer.1": "emotion_head.1",
}
_PLAIN_ONLINE = {f"{_DECODER}.linear_3d": "past_input", f"{_DECODER}.linear_reaction": "hidden_input"}
_DECODER_LAYERS = {f"{_DECODER}.listener_reaction_decoder_{i}.layers.0": f"decoder_{i}" for i in (1, 2)}
_DECODER_LAYERS_ONLINE = {f"{_DECODER}.listener_reaction_decoder_3d.layers.0": "past_decoder"}
_COMPUTED = f"{_DECODER}.PE.pe"
"""The table of positions: saved by the published code, computed here."""


class Reader:
    """Takes tensors out of the published dict, and notes what is not there."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.left = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        self.missing: list[str] = []
        self.result: dict[str, Tensor] = {}

    def take(self, name: str, *places: str) -> None:
        """Move a tensor to its place; to several places it goes in equal parts along its first dimension."""
        tensor = self.left.pop(name, None)
        if tensor is None:
            self.missing.append(name)
        elif len(places) == 1:
            self.result[places[0]] = tensor
        elif tensor.ndim == 0 or tensor.shape[0] % len(places):
            raise CheckpointError(f"the published state dict's {name} has shape {tuple(tensor.shape)}, not one of the published shapes")
        else:
            self.result.update(zip(places, tensor.chunk(len(places)), strict=True))

    def faults(self) -> str:
        """What the published dict lacks and what of it was not taken, in words; empty where it fits."""
        faults = [
            f"it {word} {', '.join(sorted(names)[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            for word, names in (("lacks", self.missing), ("has unknown", list(self.left)))
            if names
        ]
        return "; ".join(faults)

    def affine(self, name: str, place: str) -> None:
        """Weight and bias."""
        for kind in ("weight", "bias"):
            self.take(f"{name}.{kind}", f"{place}.{kind}")

    def attention(self, name: str, norm: str, place: str) -> None:
        """Torch's multi-head attention, its input projections stacked in one matrix, and the LayerNorm that follows it."""
        for kind in ("weight", "bias"):
            self.take(f"{name}.in_proj_{kind}", *(f"{place}.{part}.{kind}" for part in ("query", "key", "value")))
        self.affine(f"{name}.out_proj", f"{place}.output")
        self.affine(norm, f"{place}.norm")

    def feed_forward(self, layer: str, norm: str, place: str) -> None:
        """The two linear layers and the LayerNorm that follows them."""
        self.affine(f"{layer}.linear1", f"{place}.expand")
        self.affine(f"{layer}.linear2", f"{place}.contract")
        self.affine(norm, f"{place}.norm")


def map_trans_vae(module: TransVAE, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under `module`'s names.

    Args:
        module: the backbone to be loaded, with image input.
        state_dict: tensors by the published names; a `module.` prefix (from data-parallel training) is dropped.

    Raises:
        CheckpointError: feature input, or names that are missing or unknown: most often the other form, online or offline.
    """
    if not module.images:
        raise CheckpointError("the published Trans-VAE reads images; build the model with EMCConfig(input='image')")
    reader = Reader(state_dict)
    reader.left.pop(_COMPUTED, None)
    for name, place in (_PLAIN | (_PLAIN_ONLINE if module.online else {})).items():
        reader.affine(name, place)
    for i in range(1, 6):
        reader.take(f"{_ENCODER}.video_encoder.Conv3D.conv{i}.weight", f"face_encoder.conv{i}.weight")
    for token in ("mu_token", "logvar_token"):
        reader.take(f"{_DECODER}.vae_model.{token}", token)
    encoder = f"{_DECODER}.vae_model.seqTransEncoder.layers.0"
    reader.attention(f"{encoder}.self_attn", f"{encoder}.norm1", "vae_encoder.attention")
    reader.feed_forward(encoder, f"{encoder}.norm2", "vae_encoder.feed_forward")
    for name, place in (_DECODER_LAYERS | (_DECODER_LAYERS_ONLINE if module.online else {})).items():
        reader.attention(f"{name}.self_attn", f"{name}.norm1", f"{place}.attention")
        reader.attention(f"{name}.multihead_attn", f"{name}.norm2", f"{place}.cross")
        reader.feed_forward(name, f"{name}.norm3", f"{place}.feed_forward")
    if module.online:
        for kind in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            reader.take(f"{_DECODER}.lstm.{kind}", f"lstm.{kind}")
    if reader.faults():
        form, other = ("online", "offline") if module.online else ("offline", "online")
        raise CheckpointError(
            f"the state dict is not that of the published Trans-VAE, {form} form: {reader.faults()}. "
            f"If it is the {other} form, set backbone_options={{'online': {not module.online}}}."
        )
    for i in range(1, 6):
        # 3-D kernels of temporal size 1 are 2-D kernels.
        name = f"face_encoder.conv{i}.weight"
        if reader.result[name].ndim == 5:
            reader.result[name] = reader.result[name].squeeze(2)
    return reader.result
