"""What the model's tests share: small models and random batches."""

import torch

from emc_fast import EMCConfig, EMCModel


def small(**fields):
    """A configuration small enough to run many of."""
    fields = {"d_model": 16, "num_heads": 2} | fields
    return EMCConfig(**fields)


def build(*, double=False, train=False, **fields):
    """A small model with weights of a fixed seed, in evaluation unless told."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = EMCModel(small(**fields))
        # Initial biases and LayerNorms are zeros and ones; other values leave less room for a forgotten one.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model = model.double() if double else model
    return model.train(train)


def make_batch(clips=3, frames=12, *, targets=False, double=False, image=False, seed=2):
    """Random streams by the names of `EMCModel.forward`."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if double else torch.float32

    def normal(*shape):
        return torch.randn(clips, frames, *shape, generator=generator, dtype=dtype)

    batch = {
        "face": normal(3, 32, 32) if image else normal(58),
        "speech": normal(78),
        "face_emotion": normal(25),
        "speech_emotion": normal(10),
    }
    if targets:
        batch |= {"target_3dmm": normal(58), "target_emotion": normal(25)}
    return batch


def rows(batch, index):
    """Some clips of a batch."""
    return {name: value[index] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def frames(batch, stop):
    """The first frames of a batch."""
    return {name: value[:, :stop] if value.ndim > 1 else value for name, value in batch.items()}


ONLINE = {"online": True, "window": 4}


def reactions(model, batch, **kwargs):
    with torch.no_grad():
        output = model(**batch, **kwargs)
    return torch.cat((output.reaction_3dmm, output.reaction_emotion), -1)


def holes(batch, *, clips=3, length=12, seed=5):
    """The batch with random frames missing, never both streams of one clip throughout."""
    generator = torch.Generator().manual_seed(seed)
    face = torch.rand(clips, length, generator=generator) < 0.6
    speech = torch.rand(clips, length, generator=generator) < 0.6
    face[:, 0] = True
    speech[:, 1] = True
    return batch | {"face_available": face, "speech_available": speech}


def poisoned(batch, value=float("nan")):
    """The batch with `value` in every frame that is marked unavailable."""
    batch = dict(batch)
    for name in ("face", "speech"):
        missing = ~batch[f"{name}_available"][..., None]
        batch[name] = batch[name].masked_fill(missing, value)
        batch[f"{name}_emotion"] = batch[f"{name}_emotion"].masked_fill(missing, value)
    return batch
