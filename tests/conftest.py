"""Tiny models shared by the tests: 32 px images of 4 x 4 positions, 4 levels of 32 entries, 2 of them for pixels."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from evotok import EvoTokConfig, EvoTokForConditionalGeneration, EvoTokProcessor
from evotok.data.world.conversations import corpus
from evotok.data.world.icons import load_world
from evotok.training.backbones.text_tokenizer import train_text_tokenizer


# Several tests run at a time, and threads of one process wait for each other in loops that take the others' cores. Sums
# of one process are compared with those of two under torchrun, which sets one thread as well.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-seconds", type=float, default=0.0, help="generate untrusted inputs for this time instead of a few"
    )


IMAGE, GENERATED, START, END, PAD = 120, 121, 122, 123, 0
POSITIONS = 16

TINY_VQ = {
    "encoder_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "vision_use_head": False,
    },
    "codebook_size": 32,
    "codebook_dim": 8,
    "num_codebooks": 4,
    "num_pixel_codebooks": 2,
    "pixel_latent_channels": 8,
    "pixel_base_channels": 8,
    "pixel_channel_multipliers": [1, 1, 1, 1],
    "pixel_num_res_blocks": 1,
    "pixel_norm_groups": 4,
    "semantic_hidden_size": 16,
    "semantic_num_hidden_layers": 1,
    "semantic_num_attention_heads": 2,
    "semantic_feature_dim": 16,
}
TINY_DEPTH = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
TINY_TEXT = {
    "model_type": "qwen2",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": PAD,
}


def tiny_config(text: dict | None = None, **kwargs) -> EvoTokConfig:
    """Returns a configuration that builds in milliseconds; `text` changes fields of the language model's."""
    return EvoTokConfig(
        vq_config=dict(TINY_VQ),
        depth_decoder_config=dict(TINY_DEPTH),
        text_config=TINY_TEXT | (text or {}),
        image_token_id=IMAGE,
        image_generation_token_id=GENERATED,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **kwargs,
    )


def build_tiny_model(config: EvoTokConfig | None = None, seed: int = 0) -> EvoTokForConditionalGeneration:
    """Builds a random model in evaluation mode whose codebooks spread, so that images have many different codes."""
    torch.manual_seed(seed)
    model = EvoTokForConditionalGeneration(config or tiny_config()).eval()
    for codebook in model.model.vq_model.quantizer.codebooks:
        codebook.weight.data.normal_()
    model.model.vq_model.to_latent.linear_2.weight.data.normal_()
    return model


def build_chat_model(image_size: int = 32):
    """Builds a tiny random model and a matching processor with a text tokenizer; images of the world have 64 px."""
    tokenizer = train_text_tokenizer(["what is this? a cat, a dog, the red one"] * 4, vocab_size=300)
    positions = (image_size // TINY_VQ["encoder_config"]["patch_size"]) ** 2
    processor = EvoTokProcessor.from_parts(tokenizer, image_size=image_size, num_image_tokens=positions)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = tiny_config({"vocab_size": len(tokenizer), "max_position_embeddings": 512} | ids)
    config.vq_config.encoder_config.image_size = image_size
    for name, token_id in processor.token_ids.items():
        setattr(config, name, token_id)
    return build_tiny_model(config), processor


def save_chat_model(folder):
    """Saves a model and a processor of `build_chat_model` as a checkpoint; returns the processor."""
    model, processor = build_chat_model()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


def parse_command(words: list[str]) -> dict:
    """Returns the argument values of `evotok COMMAND ...`, which is not run."""
    import typer

    from evotok.cli import root

    [name, *rest] = words
    return typer.main.get_command(root).commands[name].make_context(name, rest).params


def save_vision_tower(folder, seed: int = 0) -> None:
    """Saves a tiny random vision tower for images of the world, as the vision stage does."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = SiglipVisionConfig(image_size=64, patch_size=8, vision_use_head=False, **sizes)
    SiglipVisionModel(config).save_pretrained(folder)


def save_language_model(folder, **fields) -> None:
    """Saves a tiny random language model with a BPE of the world's texts, as the language stage does."""
    tokenizer = train_text_tokenizer(corpus(load_world(), 200), vocab_size=400)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    sizes = {name: value for name, value in TINY_TEXT.items() if name != "model_type"}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**sizes | {"vocab_size": 448} | ids | fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def world():
    """Returns the embedded world."""
    return load_world()


@pytest.fixture
def shown(monkeypatch):
    """Records the scenes, emoji and chroma that data sets of the world show; scenes are not rendered, which is fast."""
    from evotok.data.world import conversations, icons, images, preferences

    found = {"scenes": [], "emoji": [], "chroma": []}
    blank = np.zeros((64, 64, 3), np.uint8)

    def render(world, scene, warp=None):
        found["scenes"].append(scene)
        return blank

    def render_with_masks(world, scene, warp=None, chroma=1.0):
        found["chroma"].append(chroma)
        return render(world, scene), [np.full((item.size, item.size), 255, np.uint8) for item in scene.objects]

    def place_emoji(world, rng, emoji, style, place=images.place_emoji):
        found["emoji"].append((emoji, style))
        return place(world, rng, emoji, style)

    def emoji_image(world, emoji, style):
        found["emoji"].append((emoji, style))
        return Image.fromarray(blank)

    for module in (conversations, images, preferences):
        monkeypatch.setattr(module, "render", render)
    for module in (conversations, images):
        monkeypatch.setattr(module, "place_emoji", place_emoji)
    monkeypatch.setattr(images, "render_with_masks", render_with_masks)
    monkeypatch.setattr(icons.World, "emoji_image", emoji_image)
    return found


@pytest.fixture(scope="session")
def tiny_model() -> EvoTokForConditionalGeneration:
    """Returns a model shared by all tests; a test that changes it builds its own."""
    return build_tiny_model()


@pytest.fixture
def fresh_model() -> EvoTokForConditionalGeneration:
    """Returns a model with the weights of `tiny_model`, for a test that changes or trains it."""
    return build_tiny_model()


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    """Returns four random images (4, 3, 32, 32) in [-1, 1]."""
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="session")
def materials(tmp_path_factory):
    """Yields the checkpoints and the page that the cases of `untrusted/` share."""
    from untrusted.materials import Materials

    materials = Materials(tmp_path_factory.mktemp("materials"))
    yield materials
    materials.close()


@pytest.fixture
def workspace(tmp_path, materials, monkeypatch):
    """Returns the current folder of a case of `untrusted/`."""
    from untrusted.case import Workspace

    workspace = Workspace(tmp_path, materials)
    monkeypatch.chdir(workspace.path)
    return workspace


@pytest.fixture(scope="session")
def app_page():
    """Serves the page of `evotok app` with the embedded mini model; its address is `url`."""
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    from evotok.app.server import serve
    from evotok.commands.app import listen
    from evotok.commands.checkpoints import load_multimodal

    with serve(*load_multimodal("mini"), listen("127.0.0.1", None)) as served:
        yield served
