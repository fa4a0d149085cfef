"""Trans-VAE's image encoder: five convolutions over each frame, normalised over the whole clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def clip_instance_norm(x: Tensor, mask: Tensor | None, *, eps: float = 1e-5) -> Tensor:
    """InstanceNorm without affine: per clip and channel over (T, H, W), biased variance.

    Args:
        x: (B, T, C, H, W).
        mask: (B, T) bool, frames that the statistics count; None = all. A clip without one keeps mean 0 and variance 0.
        eps: added to the variance.

    Returns:
        Same shape; every frame is normalised, counted or not.
    """
    if mask is None:
        mean = x.mean((1, 3, 4), keepdim=True)
        variance = (x - mean).square().mean((1, 3, 4), keepdim=True)
        return (x - mean) * torch.rsqrt(variance + eps)
    chosen = mask[:, :, None, None, None]
    count = (mask.sum(1) * (x.shape[3] * x.shape[4])).clamp(min=1).to(x.dtype)[:, None, None, None, None]
    mean = torch.where(chosen, x, 0).sum((1, 3, 4), keepdim=True) / count
    centred = x - mean
    variance = torch.where(chosen, centred, 0).square().sum((1, 3, 4), keepdim=True) / count
    return centred * torch.rsqrt(variance + eps)


class VideoEncoder(nn.Module):
    """Images (B, T, 3, H, W) to features (B, T, d).

    Every convolution works on single frames (its temporal kernel is 1), so it runs as a 2-D convolution over B * T images;
    time enters only through the normalisation, whose statistics cover (T, H, W) of the clip: the features of a frame change when
    the clip gets longer.

    Args:
        d_model: width d; the first convolution has d / 4 channels.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, d_model // 4, 7, stride=2, padding=3, bias=False)
        self.conv2 = nn.Conv2d(d_model // 4, d_model, 7, stride=2, padding=3, bias=False)
        self.conv3 = nn.Conv2d(d_model, d_model, 3, stride=2, padding=1, bias=False)
        self.conv4 = nn.Conv2d(d_model, d_model, 3, stride=1, padding=1, bias=False)
        self.conv5 = nn.Conv2d(d_model, d_model, 3, stride=2, padding=1, bias=False)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a clip.

        Args:
            images: (B, T, 3, H, W), H and W at least 16; published input is 224 x 224 in [-1, 1].
            mask: (B, T) bool, frames that the clip's statistics count; None = all.

        Returns:
            (B, T, d).
        """
        batch, frames = images.shape[:2]

        def layer(conv: nn.Conv2d, x: Tensor) -> Tensor:
            y = conv(x)
            y = clip_instance_norm(y.view(batch, frames, *y.shape[1:]), mask)
            return F.relu(y.flatten(0, 1))

        x = layer(self.conv1, images.flatten(0, 1))
        x = F.max_pool2d(x, 3, stride=2)
        x = layer(self.conv3, layer(self.conv2, x))
        x = x + layer(self.conv4, x)
        x = layer(self.conv5, x).mean((-2, -1))
        return self.output(x.view(batch, frames, -1))
