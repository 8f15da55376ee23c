"""The release's checkpoint format and forward pass, written down once more: plain functions on plain dicts of tensors.

Random tiny files in that format, and what its models compute with them, for the tests of the conversion. Nothing here
uses our modules.
"""

import argparse
import json
import math

import torch
import torch.nn.functional as F


# Release: width 1024, 24 layers, 32,768 codes of 32, 256 px. Here everything is small but the depths and the heads.
SIZES = {
    "width": 32, "encoder_layers": 3, "mlp": 48, "patch": 16, "image": 64, "codes": 61, "dim": 8, "latent": 12,
    "widths": (64, 32, 32, 32, 32), "depth_width": 80, "hidden": 24,
}  # fmt: skip
ENCODER_HEADS, SEMANTIC_HEADS, DEPTH_HEADS, LEVELS, PIXEL_LEVELS = 16, 12, 40, 16, 4


def _random(shape, generator, scale=1.0):
    return torch.randn(*shape, generator=generator) * scale


class _Maker(dict):
    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def weight(self, name, *shape, bias=True):
        fan_in = math.prod(shape[1:])
        self[name + ".weight"] = _random(shape, self.generator, 1.3 / math.sqrt(fan_in))
        if bias:
            self[name + ".bias"] = _random(shape[:1], self.generator, 0.2)

    def norm(self, name, width):
        self[name + ".weight"] = 1 + _random((width,), self.generator, 0.2)
        self[name + ".bias"] = _random((width,), self.generator, 0.2)

    def raw(self, name, *shape, scale=0.5):
        self[name] = _random(shape, self.generator, scale)


def make_tokenizer(seed=0, **changes):
    """Builds the state dict of section 1."""
    s, make = SIZES | changes, _Maker(seed)
    width, dim, grid = s["width"], s["dim"], s["image"] // s["patch"]
    encoder = "encoder_vqkd.vision_model."
    make.weight(encoder + "embeddings.patch_embedding", width, 3, s["patch"], s["patch"])
    make.raw(encoder + "embeddings.position_embedding.weight", grid**2, width)
    for i in range(s["encoder_layers"]):
        layer = f"{encoder}encoder.layers.{i}."
        for name in ("layer_norm1", "layer_norm2"):
            make.norm(layer + name, width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            make.weight(layer + "self_attn." + name, width, width)
        make.weight(layer + "mlp.fc1", s["mlp"], width)
        make.weight(layer + "mlp.fc2", width, s["mlp"])
    make.norm(encoder + "post_layernorm", width)
    make.raw(encoder + "head.probe", 1, 1, width)
    make.raw(encoder + "head.attention.in_proj_weight", 3 * width, width)
    make.raw(encoder + "head.attention.in_proj_bias", 3 * width)
    make.weight(encoder + "head.attention.out_proj", width, width)
    make.norm(encoder + "head.layernorm", width)
    make.weight(encoder + "head.mlp.fc1", s["mlp"], width)
    make.weight(encoder + "head.mlp.fc2", width, s["mlp"])
    make.weight("encode_task_layer.0", width, width)
    make.weight("encode_task_layer.2", dim, width)
    for level in range(LEVELS):
        book = f"quantize.codebooks.{level}."
        make.raw(book + "weight", s["codes"] + 1, dim, scale=0.9 * 0.8**level)
        make[book + "cluster_size_ema"] = torch.rand(s["codes"], generator=make.generator) * 5
        make.raw(book + "embed_ema", s["codes"], dim)
        make[book + "step"] = torch.tensor(70 + level)
    make["quantize.codebook_used"] = torch.zeros(131072, LEVELS)
    make["scaling_layer.shift"] = torch.full((1, 3, 1, 1), 0.5)
    make["scaling_layer.scale"] = torch.full((1, 3, 1, 1), 0.5)
    inner = width // SEMANTIC_HEADS * SEMANTIC_HEADS
    make.raw("decoder_vqkd.cls_token", 1, 1, width)
    make.raw("decoder_vqkd.pos_embed", 1, grid**2 + 1, width)
    make.weight("decoder_vqkd.patch_embed.proj", width, dim, 1, 1)
    for i in range(3):
        block = f"decoder_vqkd.blocks.{i}."
        for name in ("norm1", "norm2"):
            make.norm(block + name, width)
        make.weight(block + "attn.qkv", 3 * inner, width, bias=False)
        make.raw(block + "attn.q_bias", inner)
        make.raw(block + "attn.v_bias", inner)
        make.weight(block + "attn.proj", width, inner)
        make.weight(block + "mlp.fc1", 4 * width, width)
        make.weight(block + "mlp.fc2", width, 4 * width)
    make.norm("decoder_vqkd.fc_norm", width)
    make.weight("decode_task_layer.0", width, width)
    make.weight("decode_task_layer.2", width, width)
    make.weight("post_quant_conv", s["latent"], dim, 1, 1)
    _make_pixel_decoder(make, s["latent"], s["widths"])
    return dict(make)


def _make_pixel_decoder(make, latent, widths):
    def res_block(name, before, after):
        make.norm(name + ".norm1", before)
        make.weight(name + ".conv1", after, before, 3, 3)
        make.norm(name + ".norm2", after)
        make.weight(name + ".conv2", after, after, 3, 3)
        if before != after:
            make.weight(name + ".nin_shortcut", after, before, 1, 1)

    def attention(name, width):
        make.norm(name + ".norm", width)
        for part in ("q", "k", "v", "proj_out"):
            make.weight(f"{name}.{part}", width, width, 1, 1)

    before = widths[0]
    make.weight("decoder.conv_in", before, latent, 3, 3)
    res_block("decoder.mid.0", before, before)
    attention("decoder.mid.1", before)
    res_block("decoder.mid.2", before, before)
    for i, width in enumerate(widths):
        for j in range(3):
            res_block(f"decoder.conv_blocks.{i}.res.{j}", before, width)
            before = width
            if i == 0:
                attention(f"decoder.conv_blocks.0.attn.{j}", width)
        if i < len(widths) - 1:
            make.weight(f"decoder.conv_blocks.{i}.upsample.conv", width, width, 3, 3)
    make.norm("decoder.norm_out", before)
    make.weight("decoder.conv_out", 3, before, 3, 3)


def make_depth(seed=1, **changes):
    """Builds the state dict of section 2, without the prefix."""
    s, make = SIZES | changes, _Maker(seed)
    width = s["depth_width"]
    make.weight("in_mlp_1", width, s["dim"])
    make.weight("in_mlp_2", width, s["hidden"])
    make.raw("pos_emb_d", 1, PIXEL_LEVELS, width)
    for i in range(6):
        block = f"head_transformer.blocks.{i}."
        for name in ("ln1", "ln2"):
            make.norm(block + name, width)
        for name in ("key", "query", "value", "proj"):
            make.weight(block + "attn." + name, width, width)
        make.weight(block + "mlp.0", 4 * width, width)
        make.weight(block + "mlp.2", width, 4 * width)
    for i in range(LEVELS):
        make.norm(f"classifiers.{i}.0", width)
        make.weight(f"classifiers.{i}.1", s["codes"], width)
    return dict(make)


def make_projector(in_features, seed=2, **changes):
    make, hidden = _Maker(seed), (SIZES | changes)["hidden"]
    make.weight("0", hidden, in_features)
    make.weight("2", hidden, hidden)
    return dict(make)


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def arguments(**values):
    return argparse.Namespace(**({"teacher": "siglip_64", "lr": 1e-4, "betas": (0.9, 0.95), "resume": None} | values))


def save_tokenizer(path, state, **args):
    content = {"model": state, "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-4}]}, "steps": 7}
    torch.save(content | {"args": arguments(**args)}, path)


def save_language_model(folder, tensors, config, form="safetensors", shards=1):
    """Writes a folder as Transformers 4 does: safetensors or .bin, with an index if there are several shards."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        mine = {name: tensors[name].contiguous() for name in names[shard::shards]}
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{shard + 1:05d}-of-{shards:05d}.{suffix}"
        save_file(mine, folder / file, {"format": "pt"}) if form == "safetensors" else torch.save(mine, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


# --- what the release computes ----------------------------------------------------------------------------------------


def _linear(p, name, x):
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def _layer_norm(p, name, x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], eps)


def _group_norm(p, name, x):
    return F.group_norm(x, 32, p[name + ".weight"], p[name + ".bias"], 1e-6)


def _conv(p, name, x, **kwargs):
    return F.conv2d(x, p[name + ".weight"], p[name + ".bias"], **kwargs)


def _attention(q, k, v, heads, mask=None):
    """Computes attention by loops over heads: (B, N, I) each -> (B, N, I)."""
    size, outputs = q.shape[-1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = (q[..., part] * size**-0.5) @ k[..., part].transpose(1, 2)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        outputs.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(outputs, -1)


def _tanh_layer(p, name, x):
    return _linear(p, name + ".2", torch.tanh(_linear(p, name + ".0", x)))


def latents(p, pixels, heads=ENCODER_HEADS):
    """Computes latents (section 1.1, steps 2 to 4): (B, 3, H, W) -> (B, N, C)."""
    x = (((pixels + 1) * 127.5).clamp(0, 255) / 255 - p["scaling_layer.shift"]) / p["scaling_layer.scale"]
    e = "encoder_vqkd.vision_model."
    x = _conv(p, e + "embeddings.patch_embedding", x, stride=p[e + "embeddings.patch_embedding.weight"].shape[-1])
    x = x.flatten(2).transpose(1, 2) + p[e + "embeddings.position_embedding.weight"]
    layers = 1 + max(int(name.split(".")[4]) for name in p if name.startswith(e + "encoder.layers."))
    for i in range(layers - 1):
        layer = f"{e}encoder.layers.{i}."
        normed = _layer_norm(p, layer + "layer_norm1", x)
        q, k, v = (_linear(p, f"{layer}self_attn.{name}_proj", normed) for name in "qkv")
        x = x + _linear(p, layer + "self_attn.out_proj", _attention(q, k, v, heads))
        normed = _layer_norm(p, layer + "layer_norm2", x)
        x = x + _linear(p, layer + "mlp.fc2", F.gelu(_linear(p, layer + "mlp.fc1", normed), approximate="tanh"))
    return _tanh_layer(p, "encode_task_layer", x)


def encode(p, pixels):
    """Computes codes (B, N, 16) and the sums of the first 4 and of all 16 entries, (B, N, C) each."""
    residual = latents(p, pixels)
    total, codes, pixel_sum = torch.zeros_like(residual), [], None
    for level in range(LEVELS):
        book = p[f"quantize.codebooks.{level}.weight"][:-1]
        chosen = (residual[:, :, None] - book).square().sum(-1).argmin(-1)
        total, residual = total + book[chosen], residual - book[chosen]
        codes.append(chosen)
        pixel_sum = total if level == PIXEL_LEVELS - 1 else pixel_sum
    return torch.stack(codes, -1), pixel_sum, total


def semantics(p, features):
    """Computes semantics (section 1.3): (B, N, C) -> (B, N, D)."""
    d = "decoder_vqkd."
    x = F.linear(features, p[d + "patch_embed.proj.weight"][:, :, 0, 0], p[d + "patch_embed.proj.bias"])
    x = torch.cat([p[d + "cls_token"].expand(len(x), -1, -1), x], 1) + p[d + "pos_embed"]
    for i in range(3):
        block = f"{d}blocks.{i}."
        weight = p[block + "attn.qkv.weight"]
        bias = torch.cat([p[block + "attn.q_bias"], torch.zeros(len(weight) // 3), p[block + "attn.v_bias"]])
        q, k, v = F.linear(_layer_norm(p, block + "norm1", x), weight, bias).chunk(3, -1)
        x = x + _linear(p, block + "attn.proj", _attention(q, k, v, SEMANTIC_HEADS))
        x = x + _linear(p, block + "mlp.fc2", F.gelu(_linear(p, block + "mlp.fc1", _layer_norm(p, block + "norm2", x))))
    return _tanh_layer(p, "decode_task_layer", _layer_norm(p, d + "fc_norm", x[:, 1:]))


def pixels_of(p, features, size=None):
    """Computes pixels (section 1.4): (B, N, C) -> (B, 3, H, W), resized to `size` if it is given."""
    side = math.isqrt(features.shape[1])
    x = _conv(p, "post_quant_conv", features.transpose(1, 2).reshape(len(features), -1, side, side))

    def res_block(name, x):
        h = _conv(p, name + ".conv1", F.silu(_group_norm(p, name + ".norm1", x)), padding=1)
        h = _conv(p, name + ".conv2", F.silu(_group_norm(p, name + ".norm2", h)), padding=1)
        return h + (_conv(p, name + ".nin_shortcut", x) if name + ".nin_shortcut.weight" in p else x)

    def attention(name, x):
        normed = _group_norm(p, name + ".norm", x)
        q, k, v = (_conv(p, f"{name}.{part}", normed).flatten(2).transpose(1, 2) for part in "qkv")
        mixed = _attention(q, k, v, 1).transpose(1, 2).reshape(x.shape)
        return x + _conv(p, name + ".proj_out", mixed)

    x = _conv(p, "decoder.conv_in", x, padding=1)
    x = res_block("decoder.mid.2", attention("decoder.mid.1", res_block("decoder.mid.0", x)))
    i = 0
    while f"decoder.conv_blocks.{i}.res.0.conv1.weight" in p:
        for j in range(3):
            x = res_block(f"decoder.conv_blocks.{i}.res.{j}", x)
            x = attention(f"decoder.conv_blocks.0.attn.{j}", x) if i == 0 else x
        if f"decoder.conv_blocks.{i}.upsample.conv.weight" in p:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = _conv(p, f"decoder.conv_blocks.{i}.upsample.conv", x, padding=1)
        i += 1
    x = _conv(p, "decoder.conv_out", F.silu(_group_norm(p, "decoder.norm_out", x)), padding=1)
    return x if size is None else F.interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=False)


def depth_logits(p, hidden, code_vectors):
    """Computes logits (section 2): (M, H), entries (M, 4, C) -> (M, 4, K)."""
    tokens = [_linear(p, "in_mlp_2", hidden)]
    tokens += [_linear(p, "in_mlp_1", code_vectors[:, :d].sum(1)) for d in range(1, PIXEL_LEVELS)]
    x = torch.stack(tokens, 1) + p["pos_emb_d"]
    mask = torch.ones(PIXEL_LEVELS, PIXEL_LEVELS, dtype=torch.bool).tril()
    for i in range(6):
        block = f"head_transformer.blocks.{i}."
        normed = _layer_norm(p, block + "ln1", x, 1e-5)
        q, k, v = (_linear(p, f"{block}attn.{name}", normed) for name in ("query", "key", "value"))
        x = x + _linear(p, block + "attn.proj", _attention(q, k, v, DEPTH_HEADS, mask))
        x = x + _linear(p, block + "mlp.2", F.gelu(_linear(p, block + "mlp.0", _layer_norm(p, block + "ln2", x, 1e-5))))
    heads = (
        _linear(p, f"classifiers.{d}.1", _layer_norm(p, f"classifiers.{d}.0", x[:, d], 1e-5))
        for d in range(PIXEL_LEVELS)
    )
    return torch.stack(list(heads), 1)


def project(p, x):
    return _linear(p, "2", F.gelu(_linear(p, "0", x)))
