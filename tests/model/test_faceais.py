"""FaceAIS against the published formulas, clip by clip."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from faceais_helpers import BLOCK, CONTEXT, LEVELS, OPTIONS, SPEECH, faceais, random_masks
from model_helpers import make_batch
from published_faceais import GROUPS, Published, shapes
from safetensors.torch import save_file

from emc_fast import EMCConfig, EMCModel, ops
from emc_fast.backbones import faceais_predictor, faceais_tokenizer
from emc_fast.backbones.base import Past, Segment
from emc_fast.backbones.categorical import Categorical
from emc_fast.backbones.faceais_tokenizer import face_error
from emc_fast.backbones.official_faceais import map_faceais
from emc_fast.backbones.quantization import FiniteScalarQuantizer
from emc_fast.checkpoint import read_published
from emc_fast.errors import CheckpointError
from emc_fast.ops import streams

FULL_SHAPES = {"width": 360, "layers": 8, "vocabulary": 2048, "context": 256, "speech": 512, "factor": 2,
               "tokenizer_width": 252, "tokenizer_layers": 12, "block": 32, "numbers": 4}  # fmt: skip
SMALL_SHAPES = {"width": 16, "layers": 2, "vocabulary": 40, "context": CONTEXT, "speech": SPEECH, "factor": 2,
                "tokenizer_width": 12, "tokenizer_layers": 2, "block": BLOCK, "numbers": 3}  # fmt: skip
UNUSED = ("model.sp_cm_transformer.wte_sound.", "model.sp_cm_transformer.ln_f.")


@pytest.fixture
def pair():
    """The original model and the published formulas with the same random weights, through the published names, in float64."""
    generator = torch.Generator().manual_seed(3)
    tensors = {n: 0.4 * torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes(**SMALL_SHAPES).items()}
    model = faceais(emc=False, double=True, speech_dim=2 * SPEECH, options=OPTIONS)
    model.load_official_faceais(tensors)
    plain = {re.sub(r"^(face_tokenizer\.)?model\.", "", name): tensor for name, tensor in tensors.items()}
    return model, Published(plain, heads=2, tokenizer_heads=2, levels=LEVELS, block=BLOCK)


# Names, shapes, counts


def test_published_names_and_shapes_are_the_models(monkeypatch):
    # Drawing initial values is slow for tensors that hold none.
    for module in (faceais_predictor, faceais_tokenizer):
        monkeypatch.setattr(module, "init_like_gpt", lambda *_: None)
    for kind in (torch.nn.Linear, torch.nn.Embedding):
        monkeypatch.setattr(kind, "reset_parameters", lambda _: None)
    with torch.device("meta"):
        options = {"speech_factor": 2}
        config = EMCConfig(backbone="faceais", emc=False, d_model=360, num_heads=12, speech_dim=1024, backbone_options=options)
        model = EMCModel(config)
        published = {name: torch.empty(shape) for name, shape in shapes(**FULL_SHAPES).items()}
    mapped = map_faceais(model.backbone, published)
    assert {n: t.shape for n, t in mapped.items()} == {n: t.shape for n, t in model.backbone.state_dict().items()}
    used = sum(math.prod(shape) for name, shape in shapes(**FULL_SHAPES).items() if not name.startswith(UNUSED))
    assert sum(p.numel() for p in model.parameters()) == used
    tokenizer = sum(p.numel() for p in model.backbone.tokenizer.parameters())
    # 36 layers of 12 d^2 + 2 d; three last LayerNorms; two inputs with positions; codes; heads
    d = 252
    assert tokenizer == 36 * (12 * d * d + 2 * d) + 3 * d + (58 + 1 + 32) * d + (d + 1 + 32) * d + (4 * d + 4) + 5 * d + (58 + 25) * d
    assert {p.requires_grad for p in model.backbone.tokenizer.parameters()} == {False}


def test_a_state_dict_that_does_not_fit_is_named(tmp_path):
    tensors = {n: torch.zeros(s) for n, s in shapes(**SMALL_SHAPES).items()}
    model = faceais(speech_dim=2 * SPEECH, options=OPTIONS)
    before = model.backbone.refine.weight.clone()
    ours = {n: t for n, t in tensors.items() if n.startswith("model.")}
    theirs = {n.removeprefix("face_tokenizer."): t for n, t in tensors.items() if n.startswith("face_")}
    torch.save({"state_dict": ours, "epoch": 91}, tmp_path / "predictor.ckpt")
    save_file(theirs, tmp_path / "tokenizer.safetensors")
    model.load_official_faceais(*(read_published(tmp_path / name) for name in ("predictor.ckpt", "tokenizer.safetensors")))
    assert torch.equal(model.backbone.refine.weight, before)
    assert not model.backbone.listener.head.weight.any()
    with pytest.raises(CheckpointError, match=r"lacks decoder_to_3dmm\..*a tokenizer's"):
        model.load_official_faceais(ours)
    with pytest.raises(CheckpointError, match="unknown model2"):
        model.load_official_faceais(tensors | {"model2": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"head\.weight is \(7, 16\)"):
        model.load_official_faceais(tensors | {"model.lm_head.weight": torch.zeros(7, 16)})
    torch.save({"state_dict": ours, "when": Path()}, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="damaged, or holds more than tensors"):
        read_published(tmp_path / "bad.ckpt")


# Quantisation


def test_every_code_is_reached_and_keeps_its_index():
    quantizer = FiniteScalarQuantizer((8, 5, 5, 5))
    assert quantizer.codes == 1000
    line = torch.linspace(-4, 4, 81)
    numbers = quantizer(line[:, None].expand(-1, 4))
    inputs = [[float(line[numbers[:, i] == level][0]) for level in numbers[:, i].unique()] for i in range(4)]
    assert [len(z) for z in inputs] == [8, 5, 5, 5]
    found = quantizer.indices(quantizer(torch.tensor(list(itertools.product(*inputs)))))
    assert torch.equal(found.sort().values, torch.arange(1000))
    everything = torch.arange(1000)
    table = quantizer.table()
    assert torch.equal(quantizer.indices(table), everything)
    assert table.abs().max() == 1
    # eight levels lie at -1, -.75 ... .75, five at -1, -.5 ... 1; the first number runs fastest
    assert table[1].tolist() == [-0.75, -1, -1, -1]
    assert table[8].tolist() == [-1, -0.5, -1, -1]
    assert torch.equal(quantizer(torch.zeros(4)), torch.zeros(4))
    assert quantizer(torch.full((4,), 1e4)).tolist() == [0.75, 1, 1, 1]


def test_the_gradient_goes_through_the_rounding():
    quantizer = FiniteScalarQuantizer((8, 5))
    z = torch.tensor([[0.3, -0.7]], dtype=torch.float64, requires_grad=True)
    quantizer(z).sum().backward()
    reach = torch.tensor([3.5 * 1.001, 2 * 1.001], dtype=torch.float64)
    shift = torch.atanh(torch.tensor([0.5, 0.0], dtype=torch.float64) / reach)
    expected = reach * (1 - torch.tanh(z.detach() + shift) ** 2) / torch.tensor([4.0, 2.0])
    torch.testing.assert_close(z.grad, expected)


def test_the_tokenizers_loss_is_the_sum_over_groups():
    prediction, target = torch.randn(3, 1, 7, 58), torch.randn(3, 7, 58)
    mask = random_masks(3, 7)
    expected = sum((prediction[:, 0] - target)[mask][:, list(group)].abs().mean() for group in GROUPS)
    torch.testing.assert_close(face_error(prediction, target, mask), expected)


# The published formulas, clip by clip


def test_tokens_and_reactions_are_the_published_ones(pair):
    model, published = pair
    tokenizer = model.backbone.tokenizer
    face = 3 * torch.randn(3, 10, 58, dtype=torch.float64)
    mask = random_masks(3, 10)
    found = tokenizer.tokens(face, mask)
    for row in range(3):
        keys = mask[row].tolist()
        assert torch.equal(found[row][mask[row]], published.tokens(face[row], keys)[mask[row]])
    assert len(found.unique()) > 3
    tokens = torch.randint(36, (3, 10))
    embedded = tokenizer.embed(tokenizer.quantizer.from_indices(tokens, torch.float64))
    reaction = tokenizer.decode(embedded)
    for row in range(3):
        for actual, expected in zip(reaction, published.reaction(tokens[row]), strict=True):
            torch.testing.assert_close(actual[row], expected)


def window(begin, stop, speaker):
    """First and one past the last frame of the speaker for a patch."""
    if speaker == "patch" or begin == 0:
        return max(0, begin + BLOCK - CONTEXT), stop
    return max(0, begin - CONTEXT), begin


@pytest.mark.parametrize("speaker", ["patch", "past"])
@pytest.mark.parametrize(("begin", "stop"), [(0, 4), (4, 8), (8, 12), (12, 14)])
def test_one_step_is_the_published_one_for_each_clip_by_itself(pair, begin, stop, speaker):
    """Masks of a batch belong to their clips: every clip's logits are those of the formulas on it alone."""
    model, published = pair
    backbone, clips = model.backbone, 3
    backbone.options = dataclasses.replace(backbone.options, speaker=speaker)
    first, heard = window(begin, stop, speaker)
    length = heard - first
    segment = Segment(begin // BLOCK, first, begin, stop, None if heard == stop else heard)
    assert backbone.segments(14)[segment.index] == segment
    face, speech = 3 * torch.randn(clips, length, 58, dtype=torch.float64), torch.randn(clips, length, 2 * SPEECH, dtype=torch.float64)
    face_mask, speech_mask, key_mask = (random_masks(clips, length, seed) for seed in range(3))
    past_tokens, past_mask = torch.randint(36, (clips, begin)), random_masks(clips, begin, 3)
    codes = backbone.tokenizer.quantizer.from_indices(past_tokens, torch.float64)
    past = Past(torch.zeros(clips, begin, 58), torch.zeros(clips, begin, 25), codes, past_mask) if begin else None
    with torch.no_grad():
        u_face, u_speech = backbone.encode(face, speech, face_mask=face_mask, speech_mask=speech_mask, seed=None)
        fused = backbone.fuse(u_face, u_speech, key_mask=key_mask, seed=None)
        z = backbone.distribution(fused, segment=segment, draws=1, key_mask=key_mask, past=past, seed=None)
    place = CONTEXT - -(-length // BLOCK) * BLOCK
    for row in range(clips):
        keys, heard, common = (mask[row].tolist() for mask in (face_mask, speech_mask, key_mask))
        expected_face, expected_speech = published.encode(published.tokens(face[row], keys), speech[row], keys, heard, first=place)
        torch.testing.assert_close(u_face[row], expected_face)
        torch.testing.assert_close(u_speech[row], expected_speech)
        expected = published.cross_stack("sp_cm_transformer.h", expected_face, expected_speech, common, common)
        torch.testing.assert_close(fused[row], expected)
        logits = published.logits(
            expected, past_tokens[row][-CONTEXT:], common, past_mask[row][-CONTEXT:].tolist(), frames=stop - begin, context=CONTEXT
        )
        torch.testing.assert_close(z.logits[row, 0], logits[:, 2:38])


def test_a_cross_modal_stack_may_read_the_other_stream_in_every_layer():
    torch.manual_seed(1)
    first, every = (faceais(emc=False, options=OPTIONS | {"speech_factor": 1, "cross_reads": reads}) for reads in ("first", "all"))
    every.load_state_dict(first.state_dict())
    batch = make_batch(2, 8)
    results = [m(batch["face"], batch["speech"], seed=1).distribution[0].logits for m in (first, every)]
    assert not torch.allclose(*results)


# Drawing


def test_a_clip_draws_the_same_tokens_in_any_batch_and_any_number_of_draws():
    z = Categorical(torch.randn(3, 1, 5, 20))
    seeds = torch.tensor([4, 5, 6])
    options = {"top_k": 8, "temperature": 1.0, "frame_offset": 7}
    tokens, one_hot = z.draw(4, seed=seeds, **options)
    assert one_hot is None
    alone, _ = Categorical(z.logits[1:2]).draw(2, seed=seeds[1:2], **options)
    assert torch.equal(tokens[1:2, :2], alone)
    later, _ = Categorical(z.logits[:, :, 2:]).draw(4, seed=seeds, top_k=8, temperature=1.0, frame_offset=9)
    assert torch.equal(tokens[:, :, 2:], later)
    best = z.logits.topk(8, -1).indices
    assert (tokens[..., None] == best).any(-1).all()
    assert torch.equal(z.draw(1, seed=seeds, top_k=1, temperature=1.0, frame_offset=0)[0], z.logits.argmax(-1))


def test_tokens_are_drawn_by_their_probabilities():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    z = Categorical(logits.expand(1, 1, 20_000, 5))
    for top_k, temperature in ((None, 1.0), (3, 1.0), (None, 0.5)):
        tokens, _ = z.draw(1, seed=torch.tensor([9]), top_k=top_k, temperature=temperature, frame_offset=0)
        kept = torch.where(logits < logits.topk(top_k or 5).values[-1], -torch.inf, logits) / temperature
        share = torch.bincount(tokens.flatten(), minlength=5) / tokens.numel()
        torch.testing.assert_close(share, torch.softmax(kept, -1), rtol=0, atol=0.015)  # 4 standard deviations


def test_the_draw_passes_the_gradient_of_its_probabilities():
    logits = torch.randn(2, 1, 3, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, dtype=torch.float64)
    tokens, one_hot = Categorical(logits).draw(1, top_k=None, temperature=2.0, seed=torch.tensor([1, 2]), frame_offset=0)
    torch.testing.assert_close((one_hot @ weights).detach(), weights[tokens])
    (grad,) = torch.autograd.grad((one_hot @ weights).sum(), logits)
    (expected,) = torch.autograd.grad((torch.softmax(logits / 2, -1) @ weights).sum(), logits)
    torch.testing.assert_close(grad, expected)


def test_cross_entropy_and_fusion_loss():
    real, face, speech = (Categorical(torch.randn(3, 1, 5, 7)) for _ in range(3))
    tokens, mask = torch.randint(7, (3, 5)), random_masks(3, 5)
    expected = torch.nn.functional.cross_entropy(real.logits[:, 0][mask], tokens[mask])
    torch.testing.assert_close(real.cross_entropy(tokens, mask), expected)
    logits = [z.logits[:, 0][mask] for z in (real, face, speech)]
    expected = ops.fusion_kl_categorical(*logits, reduction="sum")
    torch.testing.assert_close(real.fusion_loss(face, speech, mask=mask, reduction="mean"), expected / mask.sum())
    torch.testing.assert_close(real.fusion_loss(face, speech, mask=mask, reduction="paper_sum"), expected / 3)


@pytest.mark.parametrize("speaker", ["patch", "past"])
def test_generation_is_the_loop_of_the_formulas(pair, speaker):
    """Patch after patch: each drawn from what was drawn before, to the clip's last frame."""
    model, published = pair
    model.backbone.options = dataclasses.replace(model.backbone.options, speaker=speaker)
    total = 10
    face, speech = 3 * torch.randn(1, total, 58, dtype=torch.float64), torch.randn(1, total, 2 * SPEECH, dtype=torch.float64)
    seed = torch.tensor([11])
    with torch.no_grad():
        output = model(face, speech, seed=seed, num_samples=2)
    for draw in range(2):
        past = torch.empty(0, dtype=torch.int64)
        for begin in range(0, total, BLOCK):
            stop = min(begin + BLOCK, total)
            first, heard = window(begin, stop, speaker)
            place = CONTEXT - -(-(heard - first) // BLOCK) * BLOCK
            both = published.encode(published.tokens(face[0, first:heard]), speech[0, first:heard], None, None, first=place)
            fused = published.cross_stack("sp_cm_transformer.h", *both, None, None)
            logits = published.logits(fused, past[-CONTEXT:], None, None, frames=stop - begin, context=CONTEXT)[:, 2:38]
            shape = (1, 2, stop - begin, 36)
            noise = ops.philox_uniform(shape, seed, stream=streams.LATENT, frame_offset=begin, dtype=torch.float64)[0, draw]
            past = torch.cat((past, (logits - torch.log(-torch.log(noise))).argmax(-1)))
        coefficients, emotion = published.reaction(past)
        torch.testing.assert_close(output.reaction_3dmm[0, draw], coefficients)
        torch.testing.assert_close(output.reaction_emotion[0, draw], emotion)
