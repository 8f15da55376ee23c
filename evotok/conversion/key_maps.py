"""Maps of the names and layouts of tensors between EvoTok ("ours") and the release ("theirs"), a table for each part.

A rule has patterns of both names, with `{}` for what is common (an index, `weight` or `bias`; `{*}` for a whole tail),
and the difference of the layouts. Names of the release are without the prefix of their part, those of the encoder as in
Transformers 5.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Conversion between tensors of ours and one of theirs."""

    from_reference: Callable[[Tensor], tuple[Tensor, ...]]
    to_reference: Callable[..., Tensor]


class Rule(NamedTuple):
    """Patterns of names and the layout; `optional` if theirs may be missing, and ours is zero then."""

    ours: tuple[str, ...]
    theirs: str
    layout: Layout
    optional: bool = False


class Entry(NamedTuple):
    """A rule applied to one tensor of theirs."""

    ours: tuple[str, ...]
    layout: Layout
    optional: bool


def _without_padding(table: Tensor) -> tuple[Tensor]:
    return (table[:-1],)


def _with_padding(table: Tensor) -> Tensor:
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


SAME = Layout(lambda x: (x,), lambda x: x)
QKV = Layout(lambda x: tuple(part.clone() for part in x.chunk(3)), lambda *x: torch.cat(x))
POINTWISE = Layout(lambda x: (x.flatten(1),), lambda x: x[:, :, None, None])  # a Linear as a 1x1 convolution
LEADING_ONE = Layout(lambda x: (x.squeeze(0),), lambda x: x[None])
PADDED = Layout(_without_padding, _with_padding)  # nn.Embedding's padding row, never a code


def _rules(*rows: tuple) -> tuple[Rule, ...]:
    """Builds rules from rows (ours, theirs[, layout[, optional]])."""
    return tuple(
        Rule((ours,) if isinstance(ours, str) else ours, theirs, *cast(Any, rest or (SAME,)))
        for ours, theirs, *rest in rows
    )


_SEMANTIC, _VQKD = "semantic_decoder.layers.{}.", "decoder_vqkd.blocks.{}."
_UP, _BLOCK = "pixel_decoder.up_blocks.{}.", "decoder.conv_blocks.{}."

TOKENIZER_RULES = _rules(
    ("vision_tower.{*}", "encoder_vqkd.{*}"),
    ("to_latent.linear_1.{}", "encode_task_layer.0.{}"),
    ("to_latent.linear_2.{}", "encode_task_layer.2.{}"),
    ("quantizer.codebooks.{}.weight", "quantize.codebooks.{}.weight", PADDED),
    ("quantizer.codebooks.{}.cluster_size", "quantize.codebooks.{}.cluster_size_ema", SAME, True),
    ("quantizer.codebooks.{}.vector_sum", "quantize.codebooks.{}.embed_ema"),
    ("quantizer.codebooks.{}.step", "quantize.codebooks.{}.step", SAME, True),
    ("semantic_decoder.class_token", "decoder_vqkd.cls_token"),
    ("semantic_decoder.position_embedding", "decoder_vqkd.pos_embed"),
    ("semantic_decoder.patch_proj.weight", "decoder_vqkd.patch_embed.proj.weight", POINTWISE),
    ("semantic_decoder.patch_proj.bias", "decoder_vqkd.patch_embed.proj.bias"),
    (_SEMANTIC + "norm1.{}", _VQKD + "norm1.{}"),
    (_SEMANTIC + "norm2.{}", _VQKD + "norm2.{}"),
    (tuple(f"{_SEMANTIC}self_attn.{x}_proj.weight" for x in "qkv"), _VQKD + "attn.qkv.weight", QKV),
    (_SEMANTIC + "self_attn.q_proj.bias", _VQKD + "attn.q_bias"),
    (_SEMANTIC + "self_attn.v_proj.bias", _VQKD + "attn.v_bias"),
    (_SEMANTIC + "self_attn.out_proj.{}", _VQKD + "attn.proj.{}"),
    (_SEMANTIC + "mlp.{}.{}", _VQKD + "mlp.{}.{}"),
    ("semantic_decoder.norm.{}", "decoder_vqkd.fc_norm.{}"),
    ("semantic_decoder.head.linear_1.{}", "decode_task_layer.0.{}"),
    ("semantic_decoder.head.linear_2.{}", "decode_task_layer.2.{}"),
    ("pixel_decoder.latent_proj.{}", "post_quant_conv.{}"),
    ("pixel_decoder.conv_in.{}", "decoder.conv_in.{}"),
    ("pixel_decoder.mid_resnet_1.{*}", "decoder.mid.0.{*}"),
    ("pixel_decoder.mid_attention.norm.{}", "decoder.mid.1.norm.{}"),
    ("pixel_decoder.mid_attention.out_proj.{}", "decoder.mid.1.proj_out.{}"),
    *((f"pixel_decoder.mid_attention.{x}_proj.{{}}", f"decoder.mid.1.{x}.{{}}") for x in "qkv"),
    ("pixel_decoder.mid_resnet_2.{*}", "decoder.mid.2.{*}"),
    (_UP + "resnets.{}.shortcut.{}", _BLOCK + "res.{}.nin_shortcut.{}"),
    (_UP + "resnets.{}.{}.{}", _BLOCK + "res.{}.{}.{}"),
    (_UP + "attentions.{}.norm.{}", _BLOCK + "attn.{}.norm.{}"),
    (_UP + "attentions.{}.out_proj.{}", _BLOCK + "attn.{}.proj_out.{}"),
    *((f"{_UP}attentions.{{}}.{x}_proj.{{}}", f"{_BLOCK}attn.{{}}.{x}.{{}}") for x in "qkv"),
    (_UP + "upsample.{}", _BLOCK + "upsample.conv.{}"),
    ("pixel_decoder.norm_out.{}", "decoder.norm_out.{}"),
    ("pixel_decoder.conv_out.{}", "decoder.conv_out.{}"),
)

_LAYER, _HEAD = "layers.{}.", "head_transformer.blocks.{}."

DEPTH_RULES = _rules(
    ("code_projection.{}", "in_mlp_1.{}"),
    ("backbone_projection.{}", "in_mlp_2.{}"),
    ("position_embeddings.weight", "pos_emb_d", LEADING_ONE),
    (_LAYER + "norm1.{}", _HEAD + "ln1.{}"),
    (_LAYER + "norm2.{}", _HEAD + "ln2.{}"),
    (_LAYER + "self_attn.q_proj.{}", _HEAD + "attn.query.{}"),
    (_LAYER + "self_attn.k_proj.{}", _HEAD + "attn.key.{}"),
    (_LAYER + "self_attn.v_proj.{}", _HEAD + "attn.value.{}"),
    (_LAYER + "self_attn.out_proj.{}", _HEAD + "attn.proj.{}"),
    (_LAYER + "mlp.fc1.{}", _HEAD + "mlp.0.{}"),
    (_LAYER + "mlp.fc2.{}", _HEAD + "mlp.2.{}"),
    ("classifiers.{}.norm.{}", "classifiers.{}.0.{}"),
    ("classifiers.{}.proj.{}", "classifiers.{}.1.{}"),
)

PROJECTOR_RULES = _rules(("linear_1.{}", "0.{}"), ("linear_2.{}", "2.{}"))

LANGUAGE_RULES = _rules(("language_model.{*}", "model.{*}"), ("lm_head.{}", "lm_head.{}"))

# Tensors of a part that are never run, or are constants that are checked elsewhere.
IGNORED = {
    "tokenizer": r"quantize\.codebook_used|scaling_layer\.(shift|scale)|encoder_vqkd\.(post_layernorm|head)\..+"
    r"|encoder_vqkd\.embeddings\.position_ids",
    "depth decoder": "",
    "projector": "",
    "language model": r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
}


def reference_names(rules: tuple[Rule, ...], ours: Iterable[str]) -> dict[str, Entry]:
    """Returns their name -> our names and the layout, for all names of ours.

    Raises:
        AssertionError: a name has no rule.
    """
    entries = {}
    for name in ours:
        rule, index, values = _find(rules, name)
        if index == 0:
            names = tuple(_fill(pattern, values) for pattern in rule.ours)
            entries[_fill(rule.theirs, values)] = Entry(names, rule.layout, rule.optional)
    return entries


def _find(rules: tuple[Rule, ...], name: str) -> tuple[Rule, int, tuple[str, ...]]:
    for rule in rules:
        for index, pattern in enumerate(rule.ours):
            regex = re.escape(pattern).replace(r"\{\*\}", "(.+)").replace(r"\{\}", r"([^.]+)")
            if match := re.fullmatch(regex, name):
                return rule, index, match.groups()
    raise AssertionError(f"no rule for {name}")


def _fill(pattern: str, values: tuple[str, ...]) -> str:
    return pattern.replace("{*}", "{}").format(*values)


def convert_from_reference(
    part: str, rules: tuple[Rule, ...], theirs: dict[str, Tensor], ours: dict[str, Tensor], unused: str, origin: object
) -> dict[str, Tensor]:
    """Converts their tensors into ours.

    Args:
        part: a key of `IGNORED`.
        rules: its table.
        theirs: their tensors, of which only shapes are read; layouts are changed as views where possible.
        ours: our state dict, on any device, for its names and shapes.
        unused: a pattern of further names to ignore.
        origin: file or folder of theirs, for messages.

    Raises:
        ValueError: missing or unknown names, or wrong shapes.
    """
    entries = reference_names(rules, ours)
    missing = [name for name, entry in entries.items() if name not in theirs and not entry.optional]
    if missing:
        raise ValueError(
            f"{origin}: the {part} lacks {_some(missing)}: damaged, or not of the release's format. Copy it again."
        )
    ignored = re.compile("|".join(filter(None, [IGNORED[part], unused])) or "(?!)")
    unknown = [name for name in theirs if name not in entries and not ignored.fullmatch(name)]
    if unknown:
        raise ValueError(
            f"{origin}: the {part} has {_some(unknown)}, which is not in the format: give what the release wrote and "
            "nothing else."
        )
    converted = {}
    for name, entry in entries.items():
        wanted = [ours[our_name] for our_name in entry.ours]
        if name not in theirs:
            converted |= {our_name: torch.zeros_like(ours[our_name], device="cpu") for our_name in entry.ours}
            continue
        shape = entry.layout.to_reference(*(tensor.to("meta") for tensor in wanted)).shape
        if theirs[name].shape != shape:
            raise ValueError(
                f"{origin}: the {part}'s {name} has shape {tuple(theirs[name].shape)} instead of {tuple(shape)}. "
                "Copy it again."
            )
        converted |= dict(zip(entry.ours, entry.layout.from_reference(theirs[name]), strict=True))
    return converted


def convert_to_reference(rules: tuple[Rule, ...], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts our tensors into theirs."""
    return {
        name: entry.layout.to_reference(*(ours[our_name] for our_name in entry.ours)).contiguous()
        for name, entry in reference_names(rules, ours).items()
    }


def select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def add_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds a prefix to the names of tensors."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")
