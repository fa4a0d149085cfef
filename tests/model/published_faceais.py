"""FaceAIS as published, in formulas on a state dict with the published names, one clip at a time; what the model is compared with.

Sequences are (T, d); `keys` are the frames (T,) that may be attended.
"""

import itertools
import math

import torch
import torch.nn.functional as F

GROUPS = [range(5), range(5, 8), range(8, 10), range(10, 18), range(18, 20), range(20, 22), range(22, 26), range(26, 43),
          range(43, 45), range(45, 49), range(49, 52), range(52, 55), range(55, 58)]  # fmt: skip


def shapes(*, width, layers, vocabulary, context, speech, factor, tokenizer_width, tokenizer_layers, block, numbers):
    """Published names and shapes of both parts, as the predictor's checkpoint has them."""
    made = {}

    def layer(name, d, *, bias, cross=False):
        sizes = {
            "ln_1": (d,),
            "attn.c_attn": (3 * d, d),
            "attn.c_proj": (d, d),
            "ln_2": (d,),
            "mlp.c_fc": (4 * d, d),
            "mlp.c_proj": (d, 4 * d),
        }
        if cross:
            sizes |= {"ln_3": (d,), "attn_cross.x_c_attn": (d, d), "attn_cross.y_c_attn": (2 * d, d), "attn_cross.c_proj": (d, d)}
            made[f"{name}.gated_alpha"] = ()
        for part, size in sizes.items():
            made[f"{name}.{part}.weight"] = size
            if bias:
                made[f"{name}.{part}.bias"] = size[:1]

    def linear(name, into, out, *, bias=True):
        made[f"{name}.weight"] = (out, into)
        if bias:
            made[f"{name}.bias"] = (out,)

    d = width
    for stack in ("sp_cm_transformer.h_sound", "sp_cm_transformer.h_face", "sp_cm_transformer.h",
                  "lt_cm_transformer.h_speaker", "lt_cm_transformer.h_listener", "lt_cm_transformer.h"):  # fmt: skip
        for i in range(layers):
            layer(f"model.{stack}.{i}", d, bias=True, cross=stack.endswith(".h"))
    for name, rows in (("sp_cm_transformer.wte_sound", 322), ("sp_cm_transformer.wpe_sound", context * factor),
                       ("sp_cm_transformer.wte_face", vocabulary + 2), ("sp_cm_transformer.wpw_face", context),
                       ("lt_cm_transformer.wte", vocabulary + 2), ("lt_cm_transformer.wpe", context)):  # fmt: skip
        made[f"model.{name}.weight"] = (rows, d)
    for name in ("sp_cm_transformer.ln_f", "lt_cm_transformer.ln_f"):
        made |= {f"model.{name}.weight": (d,), f"model.{name}.bias": (d,)}
    linear("model.wav2vec2_c_proj", speech, d)
    linear("model.lm_head", d, vocabulary + 2, bias=False)

    d, start = tokenizer_width, "face_tokenizer.model"
    for part in ("encoder", "decoder_to_3dmm", "decoder_to_emotion"):
        for i in range(tokenizer_layers):
            layer(f"{start}.{part}.h.{i}", d, bias=False)
        made[f"{start}.{part}.ln_f.weight"] = (d,)
    for part, into in (("encoder", 58), ("decoder_to_3dmm", d)):
        linear(f"{start}.{part}.wfe", into, d)
        made[f"{start}.{part}.wpe.weight"] = (block, d)
    linear(f"{start}.quantize.quantize.project_in", d, numbers)
    linear(f"{start}.quantize.quantize.project_out", numbers, d)
    linear(f"{start}.lm_head_3dmm", d, 58, bias=False)
    linear(f"{start}.lm_head_emotion", d, 25, bias=False)
    return made


class Published:
    """The formulas over a state dict without its program's prefixes."""

    def __init__(self, tensors, *, heads, tokenizer_heads, levels, block):
        self.w, self.heads, self.tokenizer_heads, self.levels, self.block = tensors, heads, tokenizer_heads, levels, block

    def linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def attend(self, query, key, value, keys, heads):
        size = query.shape[-1] // heads
        out = torch.zeros_like(query)
        for h, t in itertools.product(range(heads), range(len(query))):
            part = slice(h * size, (h + 1) * size)
            seen = [s for s in range(len(key)) if keys is None or keys[s]]
            if seen:
                weights = torch.softmax(key[seen][:, part] @ query[t, part] / math.sqrt(size), 0)
                out[t, part] = weights @ value[seen][:, part]
        return out

    def self_attention(self, name, x, keys, heads):
        return self.linear(f"{name}.c_proj", self.attend(*self.linear(f"{name}.c_attn", x).chunk(3, -1), keys, heads))

    def mlp(self, name, x):
        return self.linear(f"{name}.c_proj", F.gelu(self.linear(f"{name}.c_fc", x)))

    def layer(self, name, x, keys, heads):
        x = x + self.self_attention(f"{name}.attn", self.norm(f"{name}.ln_1", x), keys, heads)
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.ln_2", x))

    def cross_layer(self, name, x, y, keys, memory_keys):
        found = self.self_attention(f"{name}.attn", self.norm(f"{name}.ln_1", x), keys, self.heads)
        query = self.linear(f"{name}.attn_cross.x_c_attn", self.norm(f"{name}.ln_1", found))
        key, value = self.linear(f"{name}.attn_cross.y_c_attn", self.norm(f"{name}.ln_3", y)).chunk(2, -1)
        other = self.linear(f"{name}.attn_cross.c_proj", self.attend(query, key, value, memory_keys, self.heads))
        x = x + found + self.w[f"{name}.gated_alpha"] * other
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.ln_2", x))

    def layers(self, name):
        return itertools.takewhile(lambda i: f"{name}.{i}.ln_1.weight" in self.w, itertools.count())

    def stack(self, name, x, keys, heads):
        for i in self.layers(name):
            x = self.layer(f"{name}.{i}", x, keys, heads)
        return x

    def cross_stack(self, name, x, y, keys, memory_keys):
        for i in self.layers(name):
            x = self.cross_layer(f"{name}.{i}", x, y, keys, memory_keys)
            y, memory_keys = x, keys  # the published loop hands each layer's output on as both streams
        return x

    # Tokenizer

    def quantize(self, z):
        """Levels counted from 0, one number after the other."""
        found = []
        for value, levels in zip(z, self.levels, strict=True):
            reach, offset = (levels - 1) * 1.001 / 2, 0.5 if levels % 2 == 0 else 0.0
            found.append(round(math.tanh(float(value) + math.atanh(offset / reach)) * reach - offset) + levels // 2)
        return found

    def tokens(self, face, keys=None):
        """Tokens of a face (T, 58), block by block; frames that are not in `keys` have whatever stands there."""
        found = []
        for start in range(0, len(face), self.block):
            x = face[start : start + self.block]
            seen = None if keys is None else keys[start : start + self.block]
            x = self.linear("encoder.wfe", x) + self.w["encoder.wpe.weight"][: len(x)]
            x = self.norm("encoder.ln_f", self.stack("encoder.h", x, seen, self.tokenizer_heads))
            for z in self.linear("quantize.quantize.project_in", x):
                place, token = 1, 0
                for level, levels in zip(self.quantize(z), self.levels, strict=True):
                    token, place = token + level * place, place * levels
                found.append(token)
        return torch.tensor(found)

    def code(self, token):
        numbers = []
        for levels in self.levels:
            token, level = divmod(int(token), levels)
            numbers.append((level - levels // 2) / (levels // 2))
        return numbers

    def reaction(self, tokens):
        """Coefficients (T, 58) and emotion (T, 25) of tokens (T,)."""
        pieces = []
        dtype = self.w["encoder.wpe.weight"].dtype
        for start in range(0, len(tokens), self.block):
            codes = torch.tensor([self.code(t) for t in tokens[start : start + self.block]], dtype=dtype)
            x = self.linear("decoder_to_3dmm.wfe", self.linear("quantize.quantize.project_out", codes))
            x = x + self.w["decoder_to_3dmm.wpe.weight"][: len(x)]
            faces = [
                self.linear(head, self.norm(f"{part}.ln_f", self.stack(f"{part}.h", x, None, self.tokenizer_heads)))
                for part, head in (("decoder_to_3dmm", "lm_head_3dmm"), ("decoder_to_emotion", "lm_head_emotion"))
            ]
            pieces.append(torch.cat(faces, -1))
        return torch.cat(pieces).split((58, 25), -1)

    # Predictor

    def encode(self, tokens, speech, face_keys, speech_keys, *, first):
        """Both of the speaker's stacks, (T,) tokens and (T, factor * width) speech; `first` is the position of the first frame."""
        rows = torch.tensor([int(t) + 2 if face_keys is None or face_keys[i] else 0 for i, t in enumerate(tokens)])
        face = self.w["sp_cm_transformer.wte_face.weight"][rows] + self.w["sp_cm_transformer.wpw_face.weight"][first : first + len(rows)]
        face = self.stack("sp_cm_transformer.h_face", face, face_keys, self.heads)
        width = self.w["wav2vec2_c_proj.weight"].shape[1]
        factor = speech.shape[1] // width
        places = self.w["sp_cm_transformer.wpe_sound.weight"][first * factor :][: len(speech) * factor]
        sound = self.linear("wav2vec2_c_proj", speech.reshape(-1, width)) + places
        sound = F.max_pool1d(sound.T[None], factor)[0].T
        return face, self.stack("sp_cm_transformer.h_sound", sound, speech_keys, self.heads)

    def logits(self, fused, past, keys, past_keys, *, frames, context):
        """Logits over all rows of the head for a patch; `past` are the listener's tokens before it."""
        if len(past):
            rows = torch.tensor([int(t) + 2 if past_keys is None or past_keys[i] else 0 for i, t in enumerate(past)])
        else:
            rows, past_keys = torch.zeros(self.block, dtype=torch.int64), [False] * self.block
        x = self.w["lt_cm_transformer.wte.weight"][rows] + self.w["lt_cm_transformer.wpe.weight"][context - len(rows) :]
        x = self.stack("lt_cm_transformer.h_listener", x, past_keys, self.heads)
        speaker = self.stack("lt_cm_transformer.h_speaker", fused, keys, self.heads)
        x = self.cross_stack("lt_cm_transformer.h", x, speaker, past_keys, keys)
        x = self.norm("lt_cm_transformer.ln_f", x)
        return self.linear("lm_head", x[len(x) - self.block :][:frames])
