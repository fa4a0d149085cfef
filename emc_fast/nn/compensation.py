"""Compensatory modality alignment (CMA): a conditional VAE that makes one modality's features from the other's."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..losses import gaussian_kl


class Compensation(NamedTuple):
    """What training takes from a CMA: the reproduced stream (B, T, d) and the KL (B, T) of each frame to the prior, float32."""

    features: Tensor
    kl: Tensor


class CompensatoryModalityAlignment(nn.Module):
    """One direction of CMA (eqs. 6-7, 16-18), frame by frame.

    posterior: (mu, logvar) = E([u, c]); reproduction: u_hat = D([z, c]), where u is the modality to be reproduced and c the other
    one. In training z = mu + exp(logvar / 2) * eps. Where u is missing, z comes from the prior: N(0, I), its mean, or
    (mu_p, logvar_p) = P(c). E, D and P are a linear layer, GELU and a linear layer.

    Args:
        d_model: width d of both streams.
        latent_dim: width of z; None = d_model.
        hidden_dim: hidden width of E, D and P; None = d_model.
        prior: `standard`, `mean` or `learned`.
        stream: noise stream of z.
    """

    def __init__(
        self, d_model: int, *, latent_dim: int | None = None, hidden_dim: int | None = None, prior: str = "standard", stream: int = 0
    ) -> None:
        super().__init__()
        if prior not in ("standard", "mean", "learned"):
            raise ValueError(f"prior takes 'standard', 'mean' or 'learned'; got {prior!r}")
        self.latent_dim = latent_dim or d_model
        hidden = hidden_dim or d_model
        self.prior = prior
        self.stream = stream
        self.encoder = nn.Sequential(nn.Linear(2 * d_model, hidden), nn.GELU(), nn.Linear(hidden, 2 * self.latent_dim))
        # The first layer of the decoder, cut into its two halves: the condition's is computed once for all draws of z.
        self.from_latent = nn.Linear(self.latent_dim, hidden, bias=False)
        self.from_condition = nn.Linear(d_model, hidden)
        self.to_features = nn.Linear(hidden, d_model)
        self.prior_network = None
        if prior == "learned":
            self.prior_network = nn.Sequential(nn.Linear(d_model, hidden), nn.GELU(), nn.Linear(hidden, 2 * self.latent_dim))

    @property
    def deterministic(self) -> bool:
        """True where a missing modality is made without noise (the prior's mean)."""
        return self.prior == "mean"

    def posterior(self, target: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar), each (B, T, latent_dim), of the modality to be reproduced, given both."""
        mu, logvar = self.encoder(torch.cat((target, condition), dim=-1)).chunk(2, dim=-1)
        return mu, logvar

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """Features (B, K, T, d) of K latents z (B, K, T, latent_dim) under one condition (B, T, d)."""
        return self.to_features(F.gelu(self.from_latent(z) + self.from_condition(condition)[:, None]))

    def sample_prior(self, condition: Tensor, num_samples: int, *, seed: Tensor | None, frame_offset: int = 0) -> Tensor:
        """z (B, K, T, latent_dim) from the prior; K is 1 where the prior's mean is taken."""
        shape = (condition.shape[0], num_samples, condition.shape[1], self.latent_dim)
        if self.prior == "mean":
            return condition.new_zeros(shape[0], 1, *shape[2:])
        if self.prior_network is None:
            return ops.philox_normal(
                shape, seed, stream=self.stream, frame_offset=frame_offset, dtype=condition.dtype, device=condition.device
            )
        mu, logvar = self.prior_network(condition).chunk(2, dim=-1)
        mu, logvar = mu[:, None].expand(shape), logvar[:, None].expand(shape)
        return ops.reparameterize(mu, logvar, seed=seed, stream=self.stream, frame_offset=frame_offset)[0]

    def compensate(self, condition: Tensor, num_samples: int = 1, *, seed: Tensor | None = None, frame_offset: int = 0) -> Tensor:
        """The missing modality's features from the other's.

        Args:
            condition: (B, T, d), the modality that is there.
            num_samples: draws K.
            seed: int64 (1,) or (B,).
            frame_offset: number of the first frame in the clip, for the noise.

        Returns:
            (B, K, T, d); (B, 1, T, d) where the prior's mean is taken, since all draws are then equal.
        """
        return self.decode(self.sample_prior(condition, num_samples, seed=seed, frame_offset=frame_offset), condition)

    def forward(
        self, target: Tensor, condition: Tensor, *, both: Tensor | None = None, seed: Tensor | None = None, frame_offset: int = 0
    ) -> Compensation:
        """Reproduce a modality that is there, as training does.

        Args:
            target: (B, T, d), the modality to be reproduced; any finite value where it is missing.
            condition: (B, T, d), the other modality.
            both: (B, T) bool, frames where both are there; in the others z comes from the prior. None = all.
            seed: int64 (1,) or (B,).
            frame_offset: number of the first frame in the clip, for the noise.

        Returns:
            The reproduction, and the KL of the posterior to the prior, summed over the latent; meaningless where `both` is False.
        """
        mu, logvar = self.posterior(target, condition)
        z, kl = ops.reparameterize(mu, logvar, seed=seed, stream=self.stream, frame_offset=frame_offset)
        if self.prior_network is not None:
            kl = gaussian_kl((mu, logvar), self.prior_network(condition).chunk(2, dim=-1))
        if both is not None:
            z = torch.where(both[..., None], z, self.sample_prior(condition, 1, seed=seed, frame_offset=frame_offset)[:, 0].to(z.dtype))
        return Compensation(self.decode(z[:, None], condition)[:, 0], kl)


class CompensationRows(NamedTuple):
    """Frame by frame what both directions' losses are made of: alignment and KL, (B, T), summed over channels.

    `counted` (B, T) bool are the frames that count, None = all.
    """

    align: Tensor
    kl: Tensor
    counted: Tensor | None


def join_windows(windows: list[tuple[int, CompensationRows]], frames: int) -> CompensationRows:
    """The rows of a clip of so many frames, from windows by their first frame.

    Where windows overlap and each has been encoded anew, a frame has the mean over the windows in which it counts, and so counts once.
    """
    if len(windows) == 1:
        return windows[0][1]
    count: Tensor | int = 0
    sums: list[Tensor | int] = [0, 0]
    for first, (align, kl, counted) in windows:
        there = torch.ones_like(align, dtype=torch.bool) if counted is None else counted
        around = (first, frames - first - align.shape[1])
        count = count + F.pad(there.to(align.dtype), around)
        sums = [total + F.pad(torch.where(there, rows, 0), around) for total, rows in zip(sums, (align, kl), strict=True)]
    assert isinstance(count, Tensor)
    align, kl = (total / count.clamp(min=1) for total in sums)
    return CompensationRows(align, kl, count > 0)
