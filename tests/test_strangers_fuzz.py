"""What strangers might give: inputs made up by hypothesis, a few of each kind; `make fuzz SECONDS=600` for more.

Whatever is made up is either taken or refused with a ValueError of one line, in time, and nothing outside is touched.
"""

import io
import json
import os
import random
import shutil
import tarfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from strangers.case import CommandRefusedError, Watch, run_command, snapshot, time_limit
from strangers.conversations import MARKERS, apply_template
from strangers.images import SUFFIXES, frames, noise, saved
from strangers.materials import POSITIONS, codes_of, good_codes

from evotok.commands.codes import read_codes
from evotok.commands.files import safe_name
from evotok.data.conversations import read_conversations
from evotok.data.image_files import resolve_file
from evotok.data.sources.parquet import read_parquet
from evotok.data.sources.rows import DAMAGED, Rows
from evotok.data.sources.tars import read_tar
from evotok.processing.image_loading_evotok import load_image
from evotok.training.recipes import read_recipe


EXAMPLES = 30  # of each property, in every run of the tests
WATCH = Watch()
QUIET = {
    "deadline": None,  # the watch has one of its own
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


# --- what is made up --------------------------------------------------------------------------------------------------

ODD_TEXTS = [*MARKERS, "<image>", "../outside/canary.png", "..", "/", "~", "\ud83d", "\0", ""]
TEXTS = st.text(max_size=12) | st.sampled_from(ODD_TEXTS)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
THINGS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


@st.composite
def damaged(draw, *contents: bytes) -> bytes:
    """One of these files with some of its bytes changed, left out, or put in."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content)))
        if draw(st.booleans()):
            content[place : place + draw(st.integers(0, 40))] = draw(st.binary(max_size=8))
        elif place < len(content):
            content[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


def either(known: dict) -> st.SearchStrategy:
    """A mapping that is nearly `known`: some keys left out, some values anything, perhaps a key too many."""
    fields = {key: st.just(value) | THINGS for key, value in known.items()}
    return st.fixed_dictionaries({}, optional=fields) | st.fixed_dictionaries(fields)


def parquet(**options) -> bytes:
    """Pictures, captions and turns, as files of parquet."""
    rows = [
        {"image": {"bytes": b"picture" * n, "path": None}, "caption": f"{n} walls", "turns": [{"from": "human"}] * n}
        for n in range(5)
    ]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, **options)
    return file.getvalue()


def tar(mode: str, form: int) -> bytes:
    """Two samples."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form) as archive:
        for name in ("a.png", "a.txt", f"{'long' * 40}.png"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"12345"))
    return file.getvalue()


PARQUETS = [parquet(), parquet(use_dictionary=False, compression="zstd"), parquet(data_page_version="2.0")]
TARS = [tar("w", tarfile.GNU_FORMAT), tar("w", tarfile.PAX_FORMAT), tar("w:gz", tarfile.GNU_FORMAT)]
PICTURES = [saved(noise(12, 10), kind) for kind in SUFFIXES] + [frames(2), frames(2, "PNG")]
PARTS = either({"type": "text", "text": "What?"}) | either({"type": "image", "image": Image.new("RGB", (4, 4))})
MESSAGES = either({"role": "user", "content": "What?"}) | st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.lists(PARTS, max_size=3) | TEXTS}
)
SAID = either({"from": "human", "value": "<image>\nWhat?"}) | either({"from": "gpt", "value": "Hi."})
TURNS = st.lists(SAID, max_size=3)
RECORDS = either({"id": "1", "image": "a.png"}) | st.fixed_dictionaries({"conversations": TURNS, "image": THINGS})
RECIPES = either({"stage": "tokenizer", "base": "other.yaml"}) | st.fixed_dictionaries(
    {
        "stage": st.sampled_from(["tokenizer", "pretrain", "sft", "gen"]),
        "data": either({"name": "llava", "max_length": 64, "mixture": {"plain": 1}}),
        "model": either({"checkpoint": "a", "config": {"codebook_size": 8}, "trainable": ["lm_head"]}),
        "training": either({"max_steps": 3, "output_dir": "out"}),
    }
)
WORDS = ["model", "tokenizer", "a.png", "codes.safetensors", "--out", "--depth", "--prompt", "--seed", "1", "-1", "x"]
COMMANDS = st.tuples(
    st.sampled_from(["chat", "generate", "encode", "decode", "export", "train", "paint"]),
    st.lists(st.sampled_from(WORDS) | TEXTS, max_size=6),
)


# --- what must hold ---------------------------------------------------------------------------------------------------


def image_file(place, content: bytes) -> None:
    image = load_image(content)
    assert image.mode == "RGB" and image.width * image.height <= 64_000_000


def image_array(place, array: np.ndarray) -> None:
    pixels = place.materials.processor(images=[load_image(array)], return_tensors="pt")["pixel_values"]
    assert tuple(pixels.shape) == (1, 3, 32, 32) and pixels.isfinite().all()


def conversation(place, messages) -> None:
    apply_template(place, (messages, {}))


def forged_text(place, text: str) -> None:
    tokenizer = place.materials.processor.tokenizer
    special = set(tokenizer.convert_tokens_to_ids(list(MARKERS)))
    said, harmless = (
        [token for token in apply_template(place, ([{"role": "user", "content": words}], {})) if token in special]
        for words in (text, "harmless")
    )
    assert said == harmless, tokenizer.decode(said)


def file_of_codes(place, content: bytes) -> None:
    codes = read_codes(place.write("codes.safetensors", content))
    assert codes.codes.ndim == 3 and len(codes.names) == len(codes.codes)


def tensor_of_codes(place, codes: np.ndarray) -> None:
    token = place.materials.processor.token_ids["image_generation_token_id"]
    inputs = {"input_ids": torch.tensor([[7, *[token] * POSITIONS]]), "generation_codes": torch.from_numpy(codes)}
    with torch.inference_mode():
        assert place.materials.model(**inputs).logits.isfinite().all()


def recipe(place, tree: dict) -> None:
    place.write("other.yaml", "stage: gen\n")
    read_recipe(place.write("recipe.yaml", json.dumps(tree)))


def recipe_text(place, text: str) -> None:
    read_recipe(place.write("recipe.yaml", text))


def record(place, content) -> None:
    for found in read_conversations(place.write("data.jsonl", json.dumps(content))):
        assert all(path.startswith(f"{place.path}{os.sep}") for path in found["images"])


def image_name(place, name: str) -> None:
    assert safe_name(name).isascii() and "/" not in safe_name(name) and len(safe_name(name)) <= 48
    assert resolve_file(place.path, name).startswith(f"{place.path}{os.sep}")


def config(place, change: tuple[str, object]) -> None:
    field, value = change
    *sections, key = field.split(".")
    place.write("a.png", PICTURES[0])
    shutil.copytree(place.materials.folder / "tokenizer", place.path / "tokenizer", dirs_exist_ok=True)
    content = json.loads((place.path / "tokenizer" / "config.json").read_text())
    section = content
    for name in sections:
        section = section[name]
    section[key] = value
    place.write("tokenizer/config.json", json.dumps(content))
    run_command(place, ["encode", "tokenizer", "a.png", "--out", "codes.safetensors"])


def file_of_rows(place, content: bytes) -> None:
    read, name = (read_parquet, "a.parquet") if content[:2] == b"PA" else (read_tar, "a.tar")
    rows = list(Rows([place.write(name, content)], read))
    assert sum(DAMAGED in row for row in rows) <= 1 and all(isinstance(row, dict) for row in rows)


def command(place, words: tuple[str, list[str]]) -> None:
    run_command(place, [words[0], *words[1]])


FIELDS = [
    "num_codebooks", "codebook_size", "codebook_dim", "pixel_channel_multipliers", "semantic_mlp_ratio",
    "model_type", "auto_map", "architectures", "dtype", "encoder_config", "encoder_config.image_size",
    "encoder_config.hidden_act",
]  # fmt: skip
MARKER_PIECES = [*MARKERS, "<|im_", "start|>", "<|", "|>", "image_pad", " ", "\n", "\u0338", "\u200b"]
YAML_PIECES = ["stage: gen\n", "model:", " {", "}", "[", "]", "&a ", "*a", "!!python/name:os", "? ", "- ", ":", "\n"]
PATH_PIECES = ["..", "/", "a", "up", "\\", "~", "."]
DTYPES = [np.int64, np.int32, np.uint8, np.float32, np.bool_]
SHAPES = [(1, POSITIONS, 2), (1, POSITIONS, 4), (2, POSITIONS, 2), (POSITIONS, 2), (0, POSITIONS, 2), ()]
PICTURE_SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5) | st.just((3, 4, 5))


def pieces(known: list[str]) -> st.SearchStrategy[str]:
    """Texts put together of these and of anything."""
    return st.lists(st.sampled_from(known) | st.text(max_size=3), max_size=9).map("".join)


PROPERTIES = {
    "files of images": (image_file, damaged(*PICTURES) | st.binary(max_size=64)),
    "arrays of images": (image_array, arrays.arrays(arrays.scalar_dtypes(), PICTURE_SHAPES)),
    "conversations": (conversation, st.lists(MESSAGES, max_size=3) | THINGS),
    "texts that would forge tokens": (forged_text, pieces(MARKER_PIECES)),
    "files of codes": (file_of_codes, None),  # made of the good one that the materials give
    "tensors of codes": (tensor_of_codes, arrays.arrays(st.sampled_from(DTYPES), st.sampled_from(SHAPES))),
    "recipes": (recipe, RECIPES | THINGS),
    "texts of recipes": (recipe_text, pieces(YAML_PIECES)),
    "records": (record, RECORDS | THINGS),
    "files of data sets": (file_of_rows, damaged(*PARQUETS, *TARS)),
    "names of images": (image_name, TEXTS | pieces(PATH_PIECES)),
    "configs": (config, st.tuples(st.sampled_from(FIELDS), THINGS)),
    "command lines": (command, COMMANDS),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_made_up(name, place, pytestconfig):
    check, strategy = PROPERTIES[name]
    if check is file_of_codes:
        codes_of(place, good_codes())
        strategy = damaged((place.path / "codes.safetensors").read_bytes())
    os.symlink(place.outside, place.path / "up")
    outside = snapshot(place.outside)

    def run(value):
        with time_limit(60), WATCH.over(place):
            try:
                check(place, value)
            except ValueError as error:
                message = str(error)
                assert message and "\n" not in message and len(message) <= 700, message
                assert message.isprintable() or not isinstance(error, CommandRefusedError), message

    seconds = pytestconfig.getoption("fuzz_seconds")
    if not seconds:
        settings(max_examples=EXAMPLES, derandomize=True, **QUIET)(given(strategy)(run))()
    end = time.monotonic() + seconds / len(PROPERTIES)
    while time.monotonic() < end:
        number = random.randrange(2**32)
        print(f"{name}: seed {number}")  # pytest shows it with a failure
        seed(number)(settings(max_examples=EXAMPLES, **QUIET)(given(strategy)(run)))()
    assert snapshot(place.outside) == outside
