import errno
import json
import os
import resource
import shutil

import pytest
import torch
from model_helpers import build, make_batch
from safetensors.torch import load_file, save_file

from emc_fast import EMCModel
from emc_fast.config import digest_of
from emc_fast.errors import CheckpointError


@pytest.fixture
def saved(tmp_path):
    model = build(norm="pre", backbone_options={"online": True, "window": 4})
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_what_is_loaded_is_what_was_saved(saved):
    model, path = saved
    again = EMCModel.from_pretrained(path)
    assert again.config == model.config
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    batch = make_batch()
    assert torch.equal(model(**batch, seed=1).reaction_3dmm, again(**batch, seed=1).reaction_3dmm)
    assert sorted(p.name for p in path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again.save_pretrained(path)
    assert EMCModel.from_pretrained(str(path)).config == model.config


def test_frozen_and_half_precision_models_are_saved(tmp_path):
    model = build().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    # Weights are stored as they are and loaded into a float32 model.
    loaded = EMCModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.backbone.past_fusion.weight, model.backbone.past_fusion.weight.float())
    assert not loaded.backbone.past_fusion.weight.requires_grad


def edit(path, change):
    file = path / "config.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def reweigh(path, change, **metadata):
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata=metadata)


DAMAGES = {
    "truncated weights": (
        lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-100]),
        "model.safetensors is damaged",
    ),
    "no safetensors": (lambda p: (p / "model.safetensors").write_bytes(b"garbage" * 10), "model.safetensors is damaged"),
    "empty weights": (lambda p: (p / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no config": (lambda p: (p / "config.json").unlink(), "config.json is missing"),
    "truncated config": (lambda p: (p / "config.json").write_text('{"backbone": "tr'), "config.json cannot be used"),
    "config of a list": (lambda p: (p / "config.json").write_text("[]"), "config.json cannot be used: it holds no JSON object"),
    "unknown field": (lambda p: edit(p, lambda c: c.update(colour=1)), "config.json cannot be used.*colour"),
    "bad field": (lambda p: edit(p, lambda c: c.update(norm="mid")), "config.json cannot be used.*norm"),
    "another width": (lambda p: edit(p, lambda c: c.update(d_model=32)), r"should be \(32"),
    "another form": (lambda p: edit(p, lambda c: c.update(emc=False)), "has unknown emc"),
    "another choice of the same shapes": (lambda p: edit(p, lambda c: c.update(causal=True)), "saved with another configuration"),
    "a tensor less": (lambda p: reweigh(p, lambda t: t.pop("backbone.mu_token")), "lacks backbone.mu_token"),
    "a tensor more": (lambda p: reweigh(p, lambda t: t.update(extra=torch.zeros(1))), "unknown extra"),
    "pickle only": (
        lambda p: (torch.save(load_file(p / "model.safetensors"), p / "pytorch_model.bin"), (p / "model.safetensors").unlink()),
        "model.safetensors is missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_error_that_names_it(saved, damage):
    _, path = saved
    harm, message = DAMAGES[damage]
    harm(path)
    with pytest.raises(CheckpointError, match=message):
        EMCModel.from_pretrained(path)


def test_a_checkpoint_of_a_version_with_fewer_options_is_read(saved):
    """Its digest is that of the file as it was written; what it lacks takes its default."""
    model, directory = saved
    values = model.config.to_dict()
    del values["emotion_positions"], values["backbone_options"]["zero_start"]
    (directory / "config.json").write_text(json.dumps(values))
    reweigh(directory, lambda _: None, format="pt", emc_fast_config=digest_of(values))
    assert EMCModel.from_pretrained(directory).config == model.config
    (directory / "config.json").write_text(json.dumps(values | {"dropout": 0.3}))
    with pytest.raises(CheckpointError, match="saved with another configuration"):
        EMCModel.from_pretrained(directory)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a checkpoint directory"):
        EMCModel.from_pretrained(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match="file is not a checkpoint directory"):
        EMCModel.from_pretrained(file)


def test_a_write_that_fails_leaves_the_old_weights(saved, monkeypatch):
    model, path = saved
    before = (path / "model.safetensors").read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(path)
    assert (path / "model.safetensors").read_bytes() == before
    shutil.rmtree(path)


def test_a_name_is_looked_for_on_the_hub(saved, monkeypatch):
    model, path = saved
    asked = []

    def download(repo_id, name, **kwargs):
        asked.append((repo_id, name, kwargs))
        return str(path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert EMCModel.from_pretrained("lab/reactions", revision="v2").config == model.config
    assert asked == [("lab/reactions", name, {"revision": "v2"}) for name in ("config.json", "model.safetensors")]
    with pytest.raises(TypeError, match="revision"):
        EMCModel.from_pretrained(path, revision="v2")


def test_what_the_hub_does_not_have_is_one_error(tmp_path):
    with pytest.raises(CheckpointError, match="'lab/reactions' is no directory here, it is not in the Hub's cache"):
        EMCModel.from_pretrained("lab/reactions", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="'no/such/place' is neither a directory here nor the name of a Hub repository"):
        EMCModel.from_pretrained("no/such/place")


def test_what_is_pushed_is_a_checkpoint(monkeypatch):
    import huggingface_hub

    model, pushed = build(), {}

    def create(api, repo_id, **kwargs):
        pushed.update(repo_id=repo_id, **kwargs)
        return huggingface_hub.RepoUrl(f"https://hub.invalid/{repo_id}", endpoint="https://hub.invalid")

    def upload(api, *, repo_id, folder_path, **kwargs):
        card = huggingface_hub.ModelCard.load(f"{folder_path}/README.md")
        pushed.update(config=EMCModel.from_pretrained(folder_path).config, card=card.data, **kwargs)
        return "the commit"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert model.push_to_hub("lab/reactions", private=True, revision="next") == "the commit"
    assert (pushed["repo_id"], pushed["private"], pushed["revision"], pushed["config"]) == ("lab/reactions", True, "next", model.config)
    assert (pushed["card"].library_name, pushed["card"].tags) == ("emc_fast", ["facial-reaction-generation"])


def test_a_card_that_the_user_wrote_stays(saved):
    model, path = saved
    (path / "README.md").write_text("mine")
    model.save_pretrained(path)
    assert (path / "README.md").read_text() == "mine"
    assert not list(path.glob("*.partial"))


def test_a_device_may_be_a_torch_device(saved):
    model, path = saved
    again = EMCModel.from_pretrained(path, map_location=torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_have_the_mode_that_the_umask_allows(tmp_path, umask):
    before = os.umask(umask)
    try:
        build().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == dict.fromkeys(
        ("README.md", "config.json", "model.safetensors"), oct(0o666 & ~umask)
    )


def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors") as caught:
            build().save_pretrained(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert not list((tmp_path / "model").iterdir())
