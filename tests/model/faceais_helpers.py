"""What the tests of FaceAIS share: small options, masks, and a builder."""

import torch
from model_helpers import build

LEVELS, BLOCK, CONTEXT, SPEECH = (4, 3, 3), 4, 8, 6
OPTIONS = {
    "layers": 2, "context": CONTEXT, "block": BLOCK, "vocabulary": 40, "speech_factor": 2, "levels": LEVELS,
    "tokenizer_width": 12, "tokenizer_heads": 2, "tokenizer_layers": 2,
}  # fmt: skip
SMALL = OPTIONS | {"layers": 1, "tokenizer_layers": 1, "speech_factor": 1}


def faceais(**fields):
    """A small model that listens: gates open, and a tokenizer that tells faces apart."""
    options = fields.pop("options", SMALL)
    model = build(backbone="faceais", backbone_options=options, **fields)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.8)
        if name.endswith(("to_code.weight", "output.weight", "contract.weight")):
            parameter.data.mul_(10)
    return model


def random_masks(batch, length, seed=0):
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[-1] = False  # one clip has nothing at all
    mask[0] = True
    return mask
