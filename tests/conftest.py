"""Tiny models shared by the tests: 32 px images of 4 x 4 positions, 4 levels of 32 codes, 2 of them for pixels."""

import pytest
import torch

from evotok import EvoTokConfig, EvoTokForConditionalGeneration, EvoTokProcessor
from evotok.training.text_tokenizer import train_text_tokenizer


torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-seconds", type=float, default=0.0, help="make up bad inputs for so long, in all, instead of a few"
    )


IMAGE, DRAW, START, END, PAD = 120, 121, 122, 123, 0
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
    """A configuration that builds in milliseconds; `text` changes fields of the language model's."""
    return EvoTokConfig(
        vq_config=dict(TINY_VQ),
        depth_decoder_config=dict(TINY_DEPTH),
        text_config=TINY_TEXT | (text or {}),
        image_token_id=IMAGE,
        image_generation_token_id=DRAW,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **kwargs,
    )


def build_tiny_model(config: EvoTokConfig | None = None, seed: int = 0) -> EvoTokForConditionalGeneration:
    """A random model in evaluation mode whose codebooks spread, so that images get many different codes."""
    torch.manual_seed(seed)
    model = EvoTokForConditionalGeneration(config or tiny_config()).eval()
    for codebook in model.model.vq_model.quantizer.codebooks:
        codebook.weight.data.normal_()
    model.model.vq_model.to_latent.linear_2.weight.data.normal_()
    return model


def build_chat_model(image_size: int = 32):
    """A tiny random model and a processor with a text tokenizer that go together; emoji are of 64 px."""
    tokenizer = train_text_tokenizer(["what is this? a cat, a dog, the red one"] * 4, vocab_size=300)
    positions = (image_size // TINY_VQ["encoder_config"]["patch_size"]) ** 2
    processor = EvoTokProcessor.from_parts(tokenizer, image_size=image_size, num_image_tokens=positions)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = tiny_config({"vocab_size": len(tokenizer), "max_position_embeddings": 512} | ids)
    config.vq_config.encoder_config.image_size = image_size
    for name, token_id in processor.token_ids.items():
        setattr(config, name, token_id)
    return build_tiny_model(config), processor


def parse_command(words: list[str]) -> dict:
    """The values of the arguments of `evotok COMMAND ...`, which is not run."""
    import typer

    from evotok.cli import root

    [name, *rest] = words
    return typer.main.get_command(root).commands[name].make_context(name, rest).params


@pytest.fixture(scope="session")
def tiny_model() -> EvoTokForConditionalGeneration:
    """Shared: a test that changes it builds its own instead."""
    return build_tiny_model()


@pytest.fixture
def fresh_model() -> EvoTokForConditionalGeneration:
    """The same weights as `tiny_model`, for a test that changes or trains it."""
    return build_tiny_model()


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    """Four random images (4, 3, 32, 32) in [-1, 1]."""
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="session")
def materials(tmp_path_factory):
    """Checkpoints that the cases of `strangers/` are made of, and a page."""
    from strangers.materials import Materials

    materials = Materials(tmp_path_factory.mktemp("materials"))
    yield materials
    materials.close()


@pytest.fixture
def place(tmp_path, materials, monkeypatch):
    """The current folder of a case of `strangers/`."""
    from strangers.case import Place

    place = Place(tmp_path, materials)
    monkeypatch.chdir(place.path)
    return place


@pytest.fixture(scope="session")
def app_page():
    """The page of `evotok app` with the embedded mini model, being served; its address is `url`."""
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    from evotok.app.server import serve
    from evotok.commands.app import listen
    from evotok.commands.checkpoints import load_multimodal

    with serve(*load_multimodal("mini"), listen("127.0.0.1", None)) as served:
        yield served
