from __future__ import annotations

import dataclasses

import pytest
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


def test_a_backbone_brings_its_published_recipe_and_what_is_given_overrides_it(monkeypatch, tmp_path):
    import json

    import emc_fast.training
    from emc_fast.cli.train import command
    from emc_fast.training import presets, recipe

    monkeypatch.setitem(presets.RECIPES, "trans_vae", {"lr": 0.5, "epochs": 3, "model": {"d_model": 32, "num_heads": 2}})
    recipe("trans_vae")["model"]["d_model"] = 1  # a copy
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"data": "corpus", "epochs": 7, "model": {"num_heads": 8}}))
    seen = []

    def stand_in(config, **_):
        seen.append(config)
        raise InterruptedError

    monkeypatch.setattr(emc_fast.training, "train", stand_in)
    with pytest.raises(InterruptedError):
        command(out=tmp_path / "run", config=file, backbone="trans_vae", batch_size=9)
    (config,) = seen
    assert (config.lr, config.epochs, config.batch_size) == (0.5, 7, 9)
    assert (config.model.d_model, config.model.num_heads) == (32, 8)


def test_a_step_in_the_learning_rate():
    from emc_fast.training.trainer import learning_rate

    config = TrainConfig("corpus", "run", lr=1.0, schedule="step", drop_at=0.09, drop=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates == [1.0] * 9 + [0.1] * 91
    with pytest.raises(ValueError, match="drop_at is 0; a number above 0"):
        TrainConfig("corpus", "run", drop_at=0)
    with pytest.raises(ValueError, match="optimizer is 'sgd'; one of adamw, adam is taken"):
        TrainConfig("corpus", "run", optimizer="sgd")
