"""Saving and loading: safetensors and JSON, checked against each other; nothing is ever unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .config import EMCConfig
from .errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS, CONFIG = "model.safetensors", "config.json"


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


class CheckpointMixin:
    """The two hooks of huggingface_hub's mixin, and the checks that it leaves out. Stands before that mixin among the bases."""

    config: EMCConfig

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_file

        assert isinstance(self, nn.Module)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        # Written aside and renamed: a reader never sees half a file.
        aside = save_directory / (WEIGHTS + ".partial")
        save_file(tensors, aside, metadata={"format": "pt", "emc_fast_config": self.config.digest()})
        os.replace(aside, save_directory / WEIGHTS)
        aside = save_directory / (CONFIG + ".partial")
        aside.write_text(json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(aside, save_directory / CONFIG)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """A model from a directory written by `save_pretrained`, or from the Hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a directory with config.json and model.safetensors, or the name of a Hub repository.
            **kwargs: `map_location` (device, default cpu), and those of huggingface_hub (`revision`, `cache_dir`, `token`, ...).

        Raises:
            CheckpointError: a file that is missing, damaged, or made for another configuration, by name.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_dir():
            read_config(path / CONFIG)
        elif path.is_absolute() or path.exists():
            raise CheckpointError(f"{path} is not a checkpoint directory (one with {CONFIG} and {WEIGHTS})")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        config: Any = None,
        **unknown: Any,
    ) -> Self:
        for name in ("proxies", "resume_download"):  # handed over by releases before 1.0, and not needed
            unknown.pop(name, None)
        if unknown:
            raise TypeError(f"from_pretrained takes no {', '.join(sorted(unknown))}")
        if config is None:
            raise CheckpointError(f"{model_id} has no {CONFIG}, so there is no telling what model it holds")
        if os.path.isdir(model_id):
            file = os.path.join(model_id, WEIGHTS)
        else:
            from huggingface_hub import hf_hub_download

            file = hf_hub_download(
                repo_id=model_id, filename=WEIGHTS, revision=revision, cache_dir=cache_dir,
                force_download=force_download, token=token, local_files_only=local_files_only,
            )  # fmt: skip
        model = cls(config)  # type: ignore[call-arg]
        assert isinstance(model, nn.Module)
        model.to(map_location)
        tensors, digest = read_weights(file, map_location)
        load_checked(model, tensors, file)
        if digest is not None and digest != model.config.digest():
            raise CheckpointError(
                f"{file} was saved with another configuration ({digest}) than the {CONFIG} beside it ({model.config.digest()}); "
                "restore the file that it was saved with"
            )
        return model.eval()


def read_config(file: Path) -> EMCConfig:
    """The configuration in a JSON file; a `CheckpointError` names the file and what is wrong with it."""
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: not a checkpoint directory, or an incomplete one")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise CheckpointError("it holds no JSON object")
        return EMCConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be used: {error}") from error


def read_weights(file: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], str | None]:
    """Tensors by name and the digest of the configuration that they were saved with (None if not recorded)."""
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(file):
        raise CheckpointError(f"{file} is missing: the checkpoint is incomplete")
    try:
        with safe_open(file, framework="pt", device=device) as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}, (reader.metadata() or {}).get("emc_fast_config")  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error
