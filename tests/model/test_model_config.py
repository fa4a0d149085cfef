import json

import pytest

from emc_fast import EMCConfig
from emc_fast.errors import CheckpointError


def test_a_configuration_survives_json_and_has_a_digest_of_its_own():
    config = EMCConfig(backbone_options={"online": True, "window": 16}, cma_latent_dim=8)
    again = EMCConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.digest() == config.digest()
    assert hash(again) == hash(config)
    assert EMCConfig().digest() != EMCConfig(norm="pre").digest()
    # What seeds, caches and checkpoints refer to must not drift by itself.
    assert EMCConfig().digest() == "6eaeedc83d2b57ec"


def test_equal_numbers_have_equal_digests():
    assert EMCConfig(l_align=1).digest() == EMCConfig(l_align=1.0).digest()
    assert EMCConfig(backbone_options={"div_p": 10}).digest() == EMCConfig(backbone_options={"div_p": 10.0}).digest()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "lstm"}, "backbone takes one of .*trans_vae; got 'lstm'"),
        ({"norm": "mid"}, "norm takes one of post, pre"),
        ({"ea": True}, "ea takes one of"),
        ({"emc": 1}, "emc takes True or False"),
        ({"d_model": 0}, "d_model takes a positive integer"),
        ({"d_model": 128.0}, "d_model takes a positive integer"),
        ({"num_heads": 3}, "num_heads must divide d_model"),
        ({"d_model": 9, "num_heads": 3}, "d_model must be even"),
        ({"cma_latent_dim": -1}, "positive integer or None"),
        ({"dropout": 1.0}, "dropout < 1"),
        ({"dropout": -0.1}, "dropout takes a finite number"),
        ({"l_kl": float("nan")}, "l_kl takes a finite number"),
        ({"fps": 0}, "fps > 0"),
        ({"window": 5}, "set causal=True"),
        ({"backbone_options": {"windw": 3}}, "online, window, kl_p, div_p, pose_weight, logvar_offset, zero_start, memory; got windw"),
        ({"backbone_options": {"window": 0}}, "positive integer"),
        ({"backbone_options": {"online": "yes"}}, "True or False"),
        ({"backbone_options": {"kl_p": -1}}, "not negative"),
        ({"backbone_options": [1]}, "takes a dict"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        EMCConfig(**fields)


def test_unknown_fields_of_a_file_are_refused_by_name():
    with pytest.raises(CheckpointError, match="does not know: colour"):
        EMCConfig.from_dict({"colour": "red"})
