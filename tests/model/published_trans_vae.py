"""Trans-VAE as published, from torch's own layers under the published names; what the model is compared with.

`noise` is what the sampling would have drawn, one (B, d) per window.
"""

import torch
from torch import nn

from emc_fast.nn.positions import sinusoidal_positions


class ConvBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        sizes = [(3, d // 4, 7, 2, 3), (d // 4, d, 7, 2, 3), (d, d, 3, 2, 1), (d, d, 3, 1, 1), (d, d, 3, 2, 1)]
        for i, (a, b, k, s, p) in enumerate(sizes, start=1):
            conv = nn.Conv3d(a, b, (1, k, k), (1, s, s), (0, p, p), bias=False)
            self.add_module(f"conv{i}", conv)

    def forward(self, x):
        def step(i, x):
            return nn.functional.instance_norm(getattr(self, f"conv{i}")(x)).relu()

        x = nn.functional.max_pool3d(step(1, x), (1, 3, 3), (1, 2, 2))
        x = step(3, step(2, x))
        return step(5, x + step(4, x)).mean((-1, -2))


class VideoEncoder(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.Conv3D = ConvBlock(d)
        self.fc = nn.Linear(d, d)

    def forward(self, video):
        return self.fc(self.Conv3D(video.transpose(1, 2)).transpose(1, 2))


class Speaker(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.video_encoder = VideoEncoder(d)
        self.audio_feature_map = nn.Linear(78, d)
        self.fusion_layer = nn.Linear(2 * d, d)

    def forward(self, video, audio):
        return self.fusion_layer(torch.cat((self.video_encoder(video), self.audio_feature_map(audio)), -1))


class Vae(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.linear = nn.Linear(d, d)
        self.seqTransEncoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(d, 4, 2 * d), 1, enable_nested_tensor=False)
        self.mu_token = nn.Parameter(torch.randn(d))
        self.logvar_token = nn.Parameter(torch.randn(d))

    def forward(self, x, noise):
        tokens = torch.stack((self.mu_token, self.logvar_token)).expand(len(x), -1, -1)
        x = self.seqTransEncoder(torch.cat((tokens, self.linear(x)), 1).transpose(0, 1))
        return x[0] + (x[1] / 2).exp() * noise, x[0], x[1]


def decoder(d):
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(d, 4, 2 * d, batch_first=True), 1)


class Positions(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.register_buffer("pe", sinusoidal_positions(5000, d)[:, None])


class Listener(nn.Module):
    def __init__(self, d, online, window):
        super().__init__()
        self.online, self.window = online, window
        self.vae_model = Vae(d)
        if online:
            self.lstm = nn.LSTM(d, d, batch_first=True)
            self.linear_3d = nn.Linear(58, d)
            self.linear_reaction = nn.Linear(d, d)
            self.listener_reaction_decoder_3d = decoder(d)
        self.listener_reaction_decoder_1 = decoder(d)
        self.listener_reaction_decoder_2 = decoder(d)
        self.listener_reaction_3dmm_map_layer = nn.Linear(d, 58)
        self.listener_reaction_emotion_map_layer = nn.Sequential(nn.Linear(d + 58, d), nn.Linear(d, 25))
        self.PE = Positions(d)

    def forward(self, x, noise, past=None):
        def late(n):
            return torch.triu(torch.full((n, n), -torch.inf, dtype=x.dtype), 1)

        length = self.window if self.online else x.shape[1]
        z, mu, logvar = self.vae_model(x, noise)
        hidden = self.PE.pe[:length, 0].expand(len(x), -1, -1)
        hidden = self.listener_reaction_decoder_1(hidden, z[:, None], tgt_mask=late(length))
        hidden = self.listener_reaction_decoder_2(hidden, hidden, tgt_mask=late(length))
        state = hidden
        if self.online and past is not None:
            past = self.linear_3d(past)
            state = torch.cat((past, self.linear_reaction(hidden)), 1)
            state = self.listener_reaction_decoder_3d(state, state, tgt_mask=late(state.shape[1]))[:, -length:]
            start = past[None, :, -1].contiguous()
            state = self.lstm(state, (start, start))[0]
        coefficients = self.listener_reaction_3dmm_map_layer(state)
        emotion = self.listener_reaction_emotion_map_layer(torch.cat((coefficients, hidden), -1))
        return coefficients, emotion, mu, logvar


class PublishedTransVAE(nn.Module):
    def __init__(self, d, *, online=False, window=8):
        super().__init__()
        self.online, self.window = online, window
        self.speaker_behaviour_encoder = Speaker(d)
        self.reaction_decoder = Listener(d, online, window)
        self.fusion = nn.Linear(d + 58 + 25, d)

    def forward(self, video, audio, noise):
        if not self.online:
            coefficients, emotion, mu, logvar = self.reaction_decoder(self.speaker_behaviour_encoder(video, audio), noise[0])
            return coefficients, emotion, [(mu, logvar)]
        clips, frames = audio.shape[:2]
        coefficients, emotion = audio.new_zeros(clips, 0, 58), audio.new_zeros(clips, 0, 25)
        distributions = []
        for i in range(frames // self.window):
            stop = (i + 1) * self.window
            encoded = self.speaker_behaviour_encoder(video[:, :stop], audio[:, :stop])
            past = torch.cat((coefficients, emotion), -1)
            past = torch.cat((past, past.new_zeros(clips, self.window, 83)), 1)
            encoded = self.fusion(torch.cat((encoded, past), -1))
            c, e, mu, logvar = self.reaction_decoder(encoded, noise[i], coefficients if i else None)
            coefficients, emotion = torch.cat((coefficients, c), 1), torch.cat((emotion, e), 1)
            distributions.append((mu, logvar))
        rest = frames - coefficients.shape[1]
        return nn.functional.pad(coefficients, (0, 0, 0, rest)), nn.functional.pad(emotion, (0, 0, 0, rest)), distributions
