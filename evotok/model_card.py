"""The model card of EvoTok-mini, rendered from `results.json` and `config.json` of its folder.

Every measured number in it is one of the file's; what is not measured yet is left out. Results of `evotok eval` that
lie beside them go in too (`evotok/suite_sections.py`).
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from evotok.commands.files import new_files
from evotok.modeling_evotok.configuration_evotok import EvoTokConfig
from evotok.suite_sections import QUESTIONS, by_the_harness, never_seen, read_suites, table


TAGS = ["evotok", "image-tokenizer", "residual-vector-quantization", "text-to-image", "image-text-to-text"]
METADATA = ModelCardData(
    language="en",
    license="apache-2.0",
    library_name="transformers",
    pipeline_tag="any-to-any",
    tags=[*TAGS, "emoji"],
)
PROMPTS = {"train": "seen in training", "new_pair": "unseen pairs of thing and style"}

USAGE = """\
```python
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

import evotok  # or, without the package: trust_remote_code=True in both calls below

model = AutoModelForMultimodalLM.from_pretrained("assets/evotok-mini")
processor = AutoProcessor.from_pretrained("assets/evotok-mini")
to_tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}

# text -> image
chat = [{"role": "user", "content": "a frog, noto style"}]
inputs = processor.apply_chat_template(chat, generation_mode="image", **to_tensors)
generator = torch.Generator().manual_seed(0)
codes = model.generate(**inputs, generation_mode="image", guidance_scale=7.5, generator=generator)
image = processor.post_process_image_generation(model.decode_image_tokens(codes))[0]
image.save("frog.png")

# image -> text
chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]}]
inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **to_tensors)
tokens = model.generate(**inputs, max_new_tokens=16)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

# image <-> codes
inputs = processor(images=image, return_tensors="pt")
codes = model.model.vq_model.encode(inputs["pixel_values"])  # (1, positions, levels)
pixels = model.model.vq_model.decode_pixels(codes, depth=2)  # any prefix of the levels
```"""


def read_results(path: Path) -> dict[str, Any]:
    """What a results file holds.

    Raises:
        ValueError: it is not there, or no such file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results, dict) and isinstance(results.get("sections"), dict):
            return results
        reason = "no results of `evotok measure`"
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file: run `evotok measure` on the checkpoint first.") from None
    except ValueError as error:
        reason = f"damaged ({error})"
    raise ValueError(f"{path}: {reason}: delete it and run `evotok measure` again.")


def write_card(folder: Path) -> None:
    """Render `README.md` of a checkpoint from its `results.json`.

    Raises:
        ValueError: there are no results.
    """
    results = read_results(folder / "results.json")
    suites = read_suites(folder, results["checkpoint_sha256"])
    card = render_card(results, EvoTokConfig.from_pretrained(folder), suites)
    with new_files(folder, overwrite=True) as reserve:
        reserve("README.md").write_text(card, encoding="utf-8")


def render_card(results: dict[str, Any], config: EvoTokConfig, suites: dict[str, dict[str, Any]]) -> str:
    """The card as Markdown with a YAML head, ending in a line break.

    Args:
        suites: what `read_suites` found.
    """
    parts = [
        f"---\n{METADATA.to_yaml()}\n---\n\n# EvoTok-mini",
        _what_it_is(results, config),
        f"## How to use it\n\n{USAGE}",
        _training(results),
        "## What it reaches\n\nA target is what was aimed at before training. Held-out drawings were never trained on.",
        _tokenizer(results),
        _questions(results),
        by_the_harness(suites),
        _text_to_image(results),
        never_seen(suites),
        _how_measured(results),
        _licences(),
        _limits(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _target(results: dict[str, Any], name: str, digits: int = 2) -> list[str]:
    """Cells: the target, and whether it is met."""
    target = results.get(f"{name}_target")
    return ["", ""] if target is None else [f"{target:.{digits}f}", "yes" if results[name] >= target else "**no**"]


def _what_it_is(results: dict[str, Any], config: EvoTokConfig) -> str:
    vq, text, depth = config.vq_config, config.text_config, config.depth_decoder_config
    counts = {name: f"{count / 1e6:.1f} M" for name, count in results["parameters"].items()}
    grid = f"{vq.image_size} px, {vq.grid_size} x {vq.grid_size} positions"
    codes = (
        f"{vq.num_codebooks} residual levels of {vq.codebook_size:,} codes, {vq.num_pixel_codebooks} of them for pixels"
    )
    layers = f"{text.num_hidden_layers} layers, {text.hidden_size} wide"
    depth_layers = f"{depth.num_hidden_layers} layers, {depth.hidden_size} wide"
    rows = [
        ("image tokenizer", f"{grid}, {codes}", counts["tokenizer"]),
        ("language model", f"{text.model_type}, {layers}, {text.vocab_size:,} tokens", counts["language_model"]),
        ("depth decoder", f"{depth_layers}, writes {depth.num_codebooks} codes a position", counts["depth_decoder"]),
        ("all", "with projectors", counts["all"]),
    ]
    return f"""\
A small multimodal model that answers questions about {vq.image_size} px emoji and draws them from text: one checkpoint
for both, trained from nothing by the recipes of its repository. It is EvoTok at a size at which everything can be tried
on a laptop: the same code as the large configuration, with smaller numbers.

{table(("part", "size", "parameters"), rows)}"""


def _training(results: dict[str, Any]) -> str:
    data = results["data"]
    return f"""\
## How it was trained

`make mini` repeats it, stage by stage, from the recipes in `configs/mini/`:

1. `tokenizer.yaml`: reconstruction, commitment, and the cosine of decoded semantics to features of a frozen
   EfficientNet-Lite0 (ImageNet), on drawings as they are, moved and scaled ones, and scenes.
2. `pretrain.yaml`: a language model with a BPE vocabulary of its own learns names, groups and styles from the
   tokenizer's semantics.
3. `sft.yaml`: every kind of question, on single emoji and on scenes of one to four.
4. `gen-pretrain.yaml`: drawing from text with dropped captions for classifier-free guidance, a share of questions
   kept. Half of the codes shown are exchanged for others, so that the prompt is read.
5. `gen.yaml`: the same with a fifth of the codes exchanged.

The emoji world has {data["concepts"]:,} things in five styles; the language model learns the names of
{data["familiar"]:,} of them. Held out: some things altogether (*new concept*), some styles of things that are seen in
other styles (*new pair*), and all of one style. The rules stand in `assets/emoji/emoji.json`."""


def _tokenizer(results: dict[str, Any]) -> str:
    if "codebook_usage_min" not in results:
        return ""
    rows = [
        [f"PSNR at depth {_depth(name)}, dB", f"{results[name]:.2f}", *_target(results, name, 1)]
        for name in _by_depth(results, "psnr_new_concept_depth")
    ]
    rows += [
        [f"semantic cosine at depth {_depth(name)}", _share(results[name]), "", ""]
        for name in _by_depth(results, "semantic_cosine_new_concept_depth")
    ]
    average = results["semantic_cosine_new_concept_baseline"]
    rows.append(["semantic cosine of average features (baseline)", _share(average), "", ""])
    usage = results["codebook_usage_min"]
    rows.append(["codes in use, least used level", _share(usage), *_target(results, "codebook_usage_min")])
    rises = [
        f"{what} {'rises' if _rises(results, prefix) else '**does not rise**'} with every depth measured"
        for what, prefix in (("PSNR", "psnr_new_concept_depth"), ("the cosine", "semantic_cosine_new_concept_depth"))
    ]
    return f"""\
### Image tokenizer, {results["psnr_new_concept_n"]:,} drawings of things never seen

{table(("", "value", "target", "met"), rows)}

{rises[0]}, {rises[1]}. Usage is counted over {results["codebook_usage_n"]:,} drawings of all splits."""


def _by_depth(results: dict[str, Any], prefix: str) -> list[str]:
    names = [name for name in results if name.startswith(prefix) and name.removeprefix(prefix).isdecimal()]
    return sorted(names, key=_depth)


def _depth(name: str) -> int:
    return int(name.rpartition("depth")[2])


def _rises(results: dict[str, Any], prefix: str) -> bool:
    values = [results[name] for name in _by_depth(results, prefix)]
    return all(a < b for a, b in pairwise(values))


def _questions(results: dict[str, Any]) -> str:
    names = [name for name in QUESTIONS if f"{name}_n" in results]
    if not names:
        return ""
    rows = []
    for name in names:
        value, baseline = results[name], results[f"{name}_baseline"]
        beaten = "yes" if value > baseline else "**no**"
        count = f"{results[f'{name}_n']:,}"
        rows.append([QUESTIONS[name], count, _share(value), *_target(results, name), _share(baseline), beaten])
    header = ("question", "n", "accuracy", "target", "met", "commonest answer", "beaten")
    return f"""\
### Questions about held-out drawings

{table(header, rows)}

Greedy answers, exact match but for case, space and punctuation."""


def _text_to_image(results: dict[str, Any]) -> str:
    if not results.get("t2i_table"):
        return ""
    rows = []
    for split, prompts in PROMPTS.items():
        for scale in ("7.5", "1"):
            name = f"t2i_top5_{split}_cfg{scale}"
            if name not in results:
                continue
            others = (f"t2i_top1_{split}_cfg{scale}", f"{name}_same_style")
            cells = [_share(results[name]), *_target(results, name), *(_share(results[other]) for other in others)]
            rows.append([prompts, f"CFG {scale}", f"{results[f'{name}_n']:,}", *cells])
        top5, top1 = (_share(results[f"t2i_{top}_{split}_ceiling"]) for top in ("top5", "top1"))
        rows.append([prompts, "the drawings themselves, through the tokenizer", "", top5, "", "", top1, ""])
    header = ("prompts", "pictures", "n", "top-5", "target", "met", "top-1", "top-5 in that style")
    return f"""\
### Text to image

{table(header, rows)}

Prompts name a thing and a style (`a frog, noto style`). A picture counts when its thing is among the five (one) nearest
of {results["data"]["concepts"]:,}, by cosine of pooled EfficientNet-Lite0 features, in a gallery of all of them in the
four styles trained on (the last column: in the style asked for only). Chance is {results["t2i_top5_chance"]:.4f}.
{_guidance_helps(results)}

Top-5 over guidance scales, with the plausibility guard `guidance_min_p` of this checkpoint and without (0, the paper's
plain guidance):

{_guidance_table(results["t2i_table"])}"""


def _guidance_helps(results: dict[str, Any]) -> str:
    said = []
    for split, prompts in PROMPTS.items():
        guided, plain = (results.get(f"t2i_top5_{split}_cfg{scale}") for scale in ("7.5", "1"))
        if guided is not None and plain is not None:
            said.append(f"{prompts} {guided:.3f} against {plain:.3f}, {'' if guided > plain else '**not** '}better")
    return f"CFG 7.5 against CFG 1: {'; '.join(said)}." if said else ""


def _guidance_table(cells_measured: list[dict[str, Any]]) -> str:
    scales = sorted({row["guidance_scale"] for row in cells_measured})
    cells = {(row["split"], row["guidance_min_p"], row["guidance_scale"]): row for row in cells_measured}
    rows = []
    for split, guard in dict.fromkeys((split, guard) for split, guard, _ in cells):
        found = [cells.get((split, guard, scale)) for scale in scales]
        shown = ["" if row is None else f"{row['top5']:.3f} (n {row['images']})" for row in found]
        rows.append([PROMPTS.get(split, split), f"{guard:g}", *shown])
    return table(("prompts", "guidance_min_p", *(f"CFG {scale:g}" for scale in scales)), rows)


def _how_measured(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    rows = []
    for name, section in results["sections"].items():
        settings = ", ".join(f"{key} {value}" for key, value in section["settings"].items() if value is not None)
        done = "" if section["finished"] else " (cut off)"
        rows.append([name + done, settings, str(section["threads"]), f"{section['seconds']:,.0f}"])
    return f"""\
### How this was measured

`evotok measure` writes `results.json`, and this card from it. Weights (sha256) `{results["checkpoint_sha256"][:16]}`,
data `{results["data_sha256"][:16]}`; {versions}.

{table(("section", "settings", "threads", "seconds"), rows)}"""


def _licences() -> str:
    return """\
## Data and licences

The weights are Apache-2.0. They were trained on art rendered at 64 px: Noto Emoji (Google, Apache-2.0), Twemoji
(Twitter, Inc. and other contributors, CC-BY-4.0) and Fluent Emoji, flat and 3D (Microsoft, MIT); names and groups are
emojibase's (MIT). OpenMoji (CC-BY-SA-4.0) was only used to measure. Full attributions: `assets/emoji/LICENSES.md`. The
frozen EfficientNet-Lite0 (Apache-2.0) that taught the semantics is not part of this checkpoint."""


def _limits(results: dict[str, Any]) -> str:
    return f"""\
## Limits

- It knows emoji, {results["data"]["familiar"]:,} names and the sentences of its recipes, in English. Photographs,
  other words and open conversation are out of its reach.
- It draws one emoji at a time. Of scenes and coloured backgrounds no picture passes `evotok eval emoji-geneval`, and
  few would after the image tokenizer alone: emoji of 32 px are too small for it (`docs/results/emoji-geneval`).
- Prompts *seen in training* measure how well drawings were learnt by heart, *unseen pairs* whether anything was
  understood beyond that.
- The network that judges pictures is the one that taught the tokenizer its semantics (here its last maps, averaged over
  the picture): it is no independent judge, and rewards what can be recognised, not what is beautiful.
- It draws trademarks and faces as the emoji sets do and was not tested for bias."""
