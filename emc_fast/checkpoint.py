"""Saving and loading: safetensors and JSON, checked against each other; nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._version import __version__
from .config import EMCConfig, digest_of
from .errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def load_checked(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load exactly the tensors that a module has; otherwise a `CheckpointError` that names `source` and what differs."""
    own = module.state_dict()

    def some(names: list[str]) -> str:
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    faults = []
    if missing := sorted(set(own) - set(tensors)):
        faults.append(f"it lacks {some(missing)}")
    if unknown := sorted(set(tensors) - set(own)):
        faults.append(f"it has unknown {some(unknown)}")
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} and should be {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(tensors))
        if own[name].shape != tensors[name].shape
    ]
    if shapes:
        faults.append(some(shapes))
    if faults:
        raise CheckpointError(f"{source} does not fit this configuration: {'; '.join(faults)}")
    module.load_state_dict(dict(tensors))


def save_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the mode that any other new file has here; a full disk is an `OSError` that names the file.

    safetensors makes its files readable to their owner alone, whatever the umask, and reports the system's errors as its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file.unlink(missing_ok=True)
    file.touch()  # what mode the umask or the folder's access list gives cannot be asked for, only seen
    mode = file.stat().st_mode & 0o777
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise CheckpointError(f"{file} cannot be written: {error}") from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
    with suppress(PermissionError):  # a file system without modes
        file.chmod(mode)


class CheckpointMixin:
    """`save_pretrained`, `from_pretrained` and `push_to_hub` as users of huggingface_hub know them.

    The Hub's own mixin would be a base class, and importing it takes longer than everything else of this package: here the Hub is imported
    when it is used.
    """

    config: EMCConfig

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config.json, model.safetensors and a model card to a directory, made if it is not there.

        Each file is written aside and renamed: a reader never sees half of one, and what stood there before stays if a write fails.
        """
        assert isinstance(self, nn.Module)
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        metadata = {"format": "pt", "emc_fast_config": self.config.digest()}
        config = json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n"
        _replace(directory / WEIGHTS, lambda aside: save_tensors(aside, tensors, metadata))
        _replace(directory / CONFIG, lambda aside: aside.write_text(config, encoding="utf-8"))
        if not (directory / CARD).exists():  # the user may have written a better one
            _replace(directory / CARD, lambda aside: aside.write_text(_card(self.config), encoding="utf-8"))

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, commit_message: str = "Upload model", **kwargs: Any
    ) -> str:
        """Upload what `save_pretrained` writes to a repository on the Hub, made if it is not there; returns the commit's address.

        Args:
            repo_id: "user/name".
            private: whether a new repository is private; None = as the account has it.
            token: of the account; None = the one that `hf auth login` stored.
            commit_message: of the commit.
            **kwargs: those of `huggingface_hub.HfApi.upload_folder` (`revision`, `create_pr`, ...).
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as directory:
            self.save_pretrained(directory)
            commit = api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message=commit_message, **kwargs)
        return str(commit)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *, map_location: str | torch.device = "cpu", **kwargs: Any) -> Self:
        """A model from a directory written by `save_pretrained`, or from the Hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a directory with config.json and model.safetensors, or the name of a Hub repository.
            map_location: device of the model.
            **kwargs: for a Hub repository those of `huggingface_hub.hf_hub_download` (`revision`, `cache_dir`, `token`, ...).

        Raises:
            CheckpointError: a file that is missing, damaged, or made for another configuration, by name.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_dir():
            config_file, weights_file = path / CONFIG, path / WEIGHTS
            if kwargs:
                raise TypeError(f"from_pretrained takes no {', '.join(sorted(kwargs))} for a directory")
        elif path.is_absolute() or path.exists():
            raise CheckpointError(f"{path} is not a checkpoint directory (one with {CONFIG} and {WEIGHTS})")
        else:
            config_file, weights_file = _download(str(pretrained_model_name_or_path), **kwargs)
        model = cls(read_config(config_file))  # type: ignore[call-arg]
        assert isinstance(model, nn.Module)
        model.to(map_location)
        tensors, digest = read_weights(weights_file, map_location)
        load_checked(model, tensors, str(weights_file))
        # As the file has it: an earlier version wrote fewer fields than this one fills in.
        if digest is not None and digest not in (model.config.digest(), digest_of(_read_values(config_file))):
            raise CheckpointError(
                f"{weights_file} was saved with another configuration ({digest}) than the {CONFIG} beside it ({model.config.digest()}); "
                "restore the file that it was saved with"
            )
        return model.eval()


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    aside = file.with_name(file.name + ".partial")
    try:
        write(aside)
        os.replace(aside, file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _card(config: EMCConfig) -> str:
    kind = f"{config.backbone} {'with EMC' if config.emc else 'without EMC'}"
    first = ""
    if ":" in config.backbone:  # from outside of this package, and nothing is imported because a checkpoint names it
        first = f"from emc_fast.backbones import use_backbone\n\nuse_backbone({config.backbone!r})  # imports that module\n"
    return f"""---
library_name: emc_fast
tags:
- facial-reaction-generation
---

A model of facial reactions ({kind}), saved by emc_fast {__version__}.

```python
from emc_fast import EMCModel
{first}
model = EMCModel.from_pretrained("this directory or repository")
```
"""


def _download(repo_id: str, **kwargs: Any) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return tuple(Path(hf_hub_download(repo_id, name, **kwargs)) for name in (CONFIG, WEIGHTS))  # type: ignore[return-value]
    except HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is neither a directory here nor the name of a Hub repository ({error})") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{repo_id!r} is no directory here, and the Hub has no such repository (or not for this token)") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{repo_id!r} is no directory here, it is not in the Hub's cache, and the Hub cannot be reached") from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"the Hub repository {repo_id!r} is no checkpoint: it lacks {CONFIG} or {WEIGHTS}") from error


def read_config(file: Path) -> EMCConfig:
    """The configuration in a JSON file; a `CheckpointError` names the file and what is wrong with it."""
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: not a checkpoint directory, or an incomplete one")
    try:
        return EMCConfig.from_dict(_read_values(file))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be used: {error}") from error


def _read_values(file: Path) -> dict[str, Any]:
    values = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise CheckpointError("it holds no JSON object")
    return values


def read_weights(file: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], str | None]:
    """Tensors by name and the digest of the configuration that they were saved with (None if not recorded)."""
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(file):
        raise CheckpointError(f"{file} is missing: the checkpoint is incomplete")
    try:
        # safetensors takes a device by its name only.
        with safe_open(file, framework="pt", device=str(device) if isinstance(device, torch.device) else device) as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}, (reader.metadata() or {}).get("emc_fast_config")  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error


def read_published(file: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of somebody else's: safetensors, or what `torch.save` wrote, with the dict itself or under `state_dict`.

    Nothing is unpickled but tensors and plain containers (`weights_only=True`); a file that needs more is a `CheckpointError`, as is
    one that is absent or damaged.
    """
    import pickle

    if str(file).endswith(".safetensors"):
        return read_weights(file)[0]
    if not os.path.isfile(file):
        raise CheckpointError(f"{file} is missing")
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{file} is damaged, or holds more than tensors, which is not unpickled here ({str(error).splitlines()[0]}). "
            "Where its origin is trusted, save its state dict alone as safetensors"
        ) from error
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(f"{file} holds no state dict: names with a tensor each are taken")
    return dict(values)
