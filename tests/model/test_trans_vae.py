import pytest

from emc_fast import EMCConfig, EMCModel


@pytest.mark.parametrize(("online", "count"), [(False, 1_315_891), (True, 1_670_835)])
def test_parameter_count_is_the_published_one(online, count):
    config = EMCConfig(emc=False, input="image", backbone_options={"online": online})
    model = EMCModel(config)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == (0 if online else 27_136)
