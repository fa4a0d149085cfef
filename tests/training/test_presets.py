from __future__ import annotations

import dataclasses

import torch

from emc_fast import EMCConfig, EMCModel
from emc_fast.training import TrainConfig, demo_config


def reaction(model: EMCModel, order: torch.Tensor) -> torch.Tensor:
    """Mean reaction to one clip whose frames are shown in another order."""
    random = torch.Generator().manual_seed(1)
    clip = {name: torch.rand(1, len(order), width, generator=random)[:, order] for name, width in STREAMS.items()}
    with torch.no_grad():
        return model.eval()(**clip, seed=torch.zeros(1, dtype=torch.int64)).reaction_emotion


STREAMS = {"face": 58, "speech": 78, "face_emotion": 25, "speech_emotion": 10}


def test_with_positions_a_reaction_depends_on_when_something_was_shown():
    order, backwards = torch.arange(12), torch.arange(11, -1, -1)
    for positions, differ in ((True, True), (False, False)):
        torch.manual_seed(0)
        model = EMCModel(EMCConfig(d_model=16, num_heads=2, emotion_positions=positions))
        same = torch.allclose(reaction(model, order), reaction(model, backwards), atol=1e-5)
        assert same is not differ


def test_the_demonstration_gives_the_models_what_they_need_to_hear_the_speaker(tmp_path):
    config, alone = demo_config("corpus", tmp_path), demo_config("corpus", tmp_path, emc=False)
    assert config.model.window is not None
    assert config.model.backbone_options["logvar_offset"] < 0
    assert dataclasses.replace(alone, model=config.model) == config
    assert TrainConfig.from_dict(config.to_dict()) == config
    narrow = EMCModel(config.model).eval()
    assert not narrow.backbone.coefficient_head.weight.any()
    out = narrow(**{name: torch.rand(1, 8, width) for name, width in STREAMS.items()}, seed=0)
    assert float(out.distribution[0].logvar.detach().mean()) < -3
