"""Modules against small definitions written here in float64, by hand or by torch's own layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from emc_fast.nn import (
    AttentionBlock,
    CompensatoryModalityAlignment,
    DecoderLayer,
    EmotionAddNorm,
    EmotionAwareAttention,
    EmotionMLP,
    EncoderLayer,
    SinusoidalPositions,
)
from emc_fast.nn.noise import clip_seeds, fold_seeds, resolve_seed, seed_variant

D, H, B, T, S = 12, 3, 2, 5, 7


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def attend(block, x, memory, allowed):
    """Softmax attention spelled out head by head, with its output layer; `allowed` (B, T, S) bool."""
    q, k, v = block.query(x), block.key(memory), block.value(memory)
    width = D // block.num_heads
    heads = []
    for h in range(block.num_heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        weights = torch.softmax(scores.masked_fill(~allowed, -math.inf), -1).nan_to_num(0.0)
        heads.append(weights @ v[..., part])
    return block.output(torch.cat(heads, -1))


def define_block(block, x, memory, allowed):
    if block.norm_first:
        n = block.norm(x)
        m = n if memory is x else block.memory_norm(memory)
        return x + attend(block, n, m, allowed)
    return block.norm(x + attend(block, x, memory, allowed))


def allowed_pairs(t, s, causal, window, key_mask):
    late = torch.arange(t)[:, None] + (s - t) - torch.arange(s)[None]
    allowed = torch.ones(t, s, dtype=torch.bool) if not causal else late >= 0
    if window is not None:
        allowed = allowed & (late < window)
    return allowed[None].expand(B, t, s) & key_mask[:, None, :]


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 3)])
def test_emotion_aware_attention_is_its_three_blocks(norm, causal, window):
    ea = randomise(EmotionAwareAttention(D, H, norm=norm))
    f, e = torch.randn(B, T, D).double(), torch.randn(B, S, D).double()
    key_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    emotion_mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 1, 1]]).bool()
    f1 = define_block(ea.features, f, f, allowed_pairs(T, T, causal, window, key_mask))
    e1 = define_block(ea.emotion, e, e, allowed_pairs(S, S, causal, window, emotion_mask))
    expected = define_block(ea.cross, f1, e1, allowed_pairs(T, S, causal, window, emotion_mask))
    span = {"causal": causal, "window": window}
    actual = ea(f, e, key_mask=key_mask, emotion_mask=emotion_mask, **span)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    encoded = ea.encode_emotion(e, key_mask=emotion_mask, **span)
    torch.testing.assert_close(encoded, e1, rtol=1e-10, atol=1e-12)
    again = ea(f, None, encoded=encoded, key_mask=key_mask, emotion_mask=emotion_mask, **span)
    assert torch.equal(again, actual)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["attention", "add_norm"])
def test_draws_share_their_clips_emotion(kind, causal):
    ea = randomise(EmotionAwareAttention(D, H) if kind == "attention" else EmotionAddNorm(D))
    f, e = torch.randn(B * 3, T, D).double(), torch.randn(B, S, D).double()
    emotion_mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 1, 1]]).bool()
    shared = ea(f, e, emotion_mask=emotion_mask, causal=causal)
    repeated = ea(f, e.repeat_interleave(3, 0), emotion_mask=emotion_mask.repeat_interleave(3, 0), causal=causal)
    torch.testing.assert_close(shared, repeated, rtol=1e-10, atol=1e-12)
    short = e[:, :T]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    shared = ea(f, short, key_mask=mask.repeat_interleave(3, 0), emotion_mask=mask)
    if kind == "attention":
        torch.testing.assert_close(shared, ea(f, short, key_mask=mask.repeat_interleave(3, 0)), rtol=1e-10, atol=1e-12)


def test_emotion_aware_attention_takes_the_features_mask_for_the_emotion_of_the_same_frames():
    ea = randomise(EmotionAwareAttention(D, H))
    f, e = torch.randn(B, T, D).double(), torch.randn(B, T, D).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    assert torch.equal(ea(f, e, key_mask=mask), ea(f, e, key_mask=mask, emotion_mask=mask))
    with pytest.raises(ValueError, match="None for both"):
        ea(f, None)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_emotion_aware_attention_has_right_gradients(norm):
    ea = randomise(EmotionAwareAttention(4, 2, norm=norm))
    f = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    e = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = ea.cross.value.weight

    def run(f, e, _):
        return ea(f, e, causal=True)

    assert torch.autograd.gradcheck(run, (f, e, weight))


def test_a_frame_without_any_emotion_to_attend_gets_the_output_bias_alone():
    block = randomise(AttentionBlock(D, H))
    x, memory = torch.randn(B, T, D).double(), torch.randn(B, S, D).double()
    mask = torch.zeros(B, S, dtype=torch.bool)
    expected = block.norm(x + block.output.bias)
    torch.testing.assert_close(block(x, memory, key_mask=mask), expected, rtol=1e-10, atol=1e-12)


def test_add_norm_adds_the_last_frames_and_nothing_where_there_is_no_emotion():
    module = randomise(EmotionAddNorm(D))
    f, e = torch.randn(B, T, D).double(), torch.randn(B, S, D).double()
    mask = torch.rand(B, S) < 0.5
    added = torch.where(mask[..., None], e, 0)[:, S - T :]
    torch.testing.assert_close(module(f, e, emotion_mask=mask), module.norm(f + added))
    with pytest.raises(ValueError, match="None for both"):
        module(f, None)


def torch_attention(ours, theirs):
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([m.weight for m in (ours.query, ours.key, ours.value)]))
        theirs.in_proj_bias.copy_(torch.cat([m.bias for m in (ours.query, ours.key, ours.value)]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())


def torch_feed_forward(ours, theirs, norm):
    theirs.linear1.load_state_dict(ours.expand.state_dict())
    theirs.linear2.load_state_dict(ours.contract.state_dict())
    norm.load_state_dict(ours.norm.state_dict())


def test_encoder_layer_is_torchs():
    ours = randomise(EncoderLayer(D, H, 2 * D))
    theirs = nn.TransformerEncoderLayer(D, H, 2 * D, batch_first=True).double().eval()
    torch_attention(ours.attention, theirs.self_attn)
    theirs.norm1.load_state_dict(ours.attention.norm.state_dict())
    torch_feed_forward(ours.feed_forward, theirs, theirs.norm2)
    x = torch.randn(B, T, D).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    causal = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
    torch.testing.assert_close(ours(x, key_mask=mask), theirs(x.requires_grad_(), src_key_padding_mask=~mask))
    torch.testing.assert_close(ours(x, causal=True), theirs(x, src_mask=causal))
    torch.testing.assert_close(ours(x, rows=2, key_mask=mask), ours(x, key_mask=mask)[:, :2])


def test_decoder_layer_is_torchs_also_for_a_memory_of_one_token():
    ours = randomise(DecoderLayer(D, H, 2 * D))
    theirs = nn.TransformerDecoderLayer(D, H, 2 * D, batch_first=True).double().eval()
    torch_attention(ours.attention, theirs.self_attn)
    torch_attention(ours.cross, theirs.multihead_attn)
    theirs.norm1.load_state_dict(ours.attention.norm.state_dict())
    theirs.norm2.load_state_dict(ours.cross.norm.state_dict())
    torch_feed_forward(ours.feed_forward, theirs, theirs.norm3)
    x, memory = torch.randn(B, T, D).double(), torch.randn(B, S, D).double()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 0]]).bool()
    causal = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
    expected = theirs(x, memory, tgt_mask=causal, memory_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, memory, causal=True, memory_mask=mask), expected)
    one = memory[:, :1]
    expected = theirs(x, one, tgt_mask=causal)
    torch.testing.assert_close(ours(x, one, causal=True), expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, one, causal=True), expected)


def test_decoder_layer_at_inference_leaves_out_what_says_nothing():
    """Rows that are alike stay one until they meet the memory, and one row to attend is attended without a softmax: the numbers stay."""
    layer = randomise(DecoderLayer(D, H, 2 * D))
    x, memory = torch.randn(1, T, D).double(), torch.randn(B, T, D).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 1]]).bool()
    for options in ({}, {"memory_mask": mask}, {"aligned": True}, {"aligned": True, "memory_mask": mask}):
        plain = layer(x.expand(B, -1, -1), memory, causal=True, **options)
        torch.testing.assert_close(layer(x, memory, causal=True, **options), plain)
        with torch.no_grad():
            torch.testing.assert_close(layer(x, memory, causal=True, **options), plain)
    dirty = torch.where(mask[..., None], memory, torch.nan)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, dirty, causal=True, aligned=True, memory_mask=mask), plain)


def test_emotion_mlp_shares_its_last_layer():
    mlp = randomise(EmotionMLP(D))
    face, speech = torch.randn(B, T, 25).double(), torch.randn(B, T, 10).double()
    e_face, e_speech = mlp(face, speech)
    torch.testing.assert_close(e_face, F.linear(F.gelu(mlp.face(face)), mlp.shared.weight, mlp.shared.bias))
    torch.testing.assert_close(e_speech, F.linear(F.gelu(mlp.speech(speech)), mlp.shared.weight, mlp.shared.bias))
    assert mlp(None, speech)[0] is None
    assert mlp(face, None)[1] is None


def test_positions_are_sine_and_cosine_and_go_on_beyond_their_table():
    positions = SinusoidalPositions(6, max_length=4)
    for t, i in ((0, 0), (2, 1), (3, 2), (9, 1)):
        angle = t / 10000 ** (2 * i / 6)
        row = positions(10)[t]
        assert row[2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert row[2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    torch.testing.assert_close(positions(4, offset=3), positions(7)[3:])
    torch.testing.assert_close(positions(2, offset=1), positions(4)[1:3])
    assert not positions.state_dict()


@pytest.mark.parametrize("prior", ["standard", "mean", "learned"])
def test_compensation_is_a_conditional_vae(prior):
    cma = randomise(CompensatoryModalityAlignment(D, latent_dim=4, hidden_dim=9, prior=prior, stream=1))
    u, c = torch.randn(B, T, D).double(), torch.randn(B, T, D).double()
    seed = torch.tensor([5, 6])

    def decode(z):
        weight = torch.cat((cma.from_latent.weight, cma.from_condition.weight), 1)
        hidden = F.gelu(F.linear(torch.cat((z, c), -1), weight, cma.from_condition.bias))
        return cma.to_features(hidden)

    first, last = cma.encoder[0], cma.encoder[2]
    mu, logvar = last(F.gelu(first(torch.cat((u, c), -1)))).split(4, -1)
    made = cma(u, c, seed=seed)
    from emc_fast import ops

    noise = ops.philox_normal((B, T, 4), seed, stream=1, dtype=torch.float64)
    torch.testing.assert_close(made.features, decode(mu + torch.exp(logvar / 2) * noise))
    q = torch.distributions.Normal(mu, torch.exp(logvar / 2))
    p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    if prior == "learned":
        mu_p, logvar_p = cma.prior_network(c).split(4, -1)
        p = torch.distributions.Normal(mu_p, torch.exp(logvar_p / 2))
    torch.testing.assert_close(made.kl.double(), torch.distributions.kl_divergence(q, p).sum(-1), rtol=1e-5, atol=1e-5)

    draws = cma.compensate(c, 3, seed=seed)
    if prior == "mean":
        assert draws.shape == (B, 1, T, D)
        torch.testing.assert_close(draws[:, 0], decode(torch.zeros(B, T, 4).double()))
        return
    assert draws.shape == (B, 3, T, D)
    noise = ops.philox_normal((B, 3, T, 4), seed, stream=1, dtype=torch.float64)
    for k in range(3):
        z = noise[:, k] if prior == "standard" else p.loc + p.scale * noise[:, k]
        torch.testing.assert_close(draws[:, k], decode(z))
    both = torch.tensor([[1, 0, 1, 1, 0]] * B).bool()
    mixed = cma(u, c, both=both, seed=seed).features
    torch.testing.assert_close(mixed, torch.where(both[..., None], made.features, draws[:, 0]))
    tail = cma.compensate(c[:, 2:], 3, seed=seed, frame_offset=2)
    torch.testing.assert_close(tail, draws[:, :, 2:])


def test_dropout_in_training_depends_on_seed_and_place_alone():
    ea = EmotionAwareAttention(D, H, dropout=0.5, stream=64).train()
    f, e = torch.randn(B, T, D), torch.randn(B, T, D)
    seed = torch.tensor([3, 4])
    assert torch.equal(ea(f, e, seed=seed), ea(f, e, seed=seed))
    assert not torch.equal(ea(f, e, seed=seed), ea(f, e, seed=seed + 1))
    alone = ea(f[1:], e[1:], seed=seed[1:])
    torch.testing.assert_close(alone[0], ea(f, e, seed=seed)[1])
    assert torch.equal(ea.eval()(f, e, seed=seed), ea(f, e))


def test_seeds_of_clips_draws_and_variants_are_distinct_and_keep_the_first():
    device = torch.device("cpu")
    seeds = resolve_seed(7, 50, device)
    assert seeds[0] == 7
    folded = fold_seeds(seeds, 10)
    assert torch.equal(folded.view(50, 10)[:, 0], seeds)
    assert torch.equal(fold_seeds(seeds, 4).view(50, 4), folded.view(50, 10)[:, :4])
    everything = torch.cat([folded, *(seed_variant(folded, n) for n in (1, 2, 16, 17, 1 << 20))])
    assert everything.unique().numel() == everything.numel()
    assert torch.equal(clip_seeds(torch.tensor([7]), torch.arange(50)), seeds)
    assert torch.equal(resolve_seed(seeds, 50, device), seeds)
    assert resolve_seed((1 << 64) - 1, 1, device).item() == -1
    # splitmix64's finaliser, from its published definition in Python integers
    mask = (1 << 64) - 1
    z = 3
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    assert (seeds[3].item() & mask) == 7 ^ (z ^ (z >> 31))


@pytest.mark.parametrize("seed", [1.5, True, 1 << 64, torch.zeros(3, dtype=torch.int64), torch.zeros(2)])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises((TypeError, ValueError), match="seed takes"):
        resolve_seed(seed, 2, torch.device("cpu"))


@pytest.mark.parametrize("make", [lambda: AttentionBlock(D, 5), lambda: AttentionBlock(D, H, norm="mid")])
def test_a_bad_block_is_refused(make):
    with pytest.raises(ValueError, match=r"num_heads must divide|norm takes"):
        make()
