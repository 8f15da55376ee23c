"""TRL's `SFTTrainer` with the unchanged processor, collator and model: its loss equals the model's."""

import pytest
import torch
from conftest import build_chat_model
from datasets import Dataset, Image, List
from test_sources import picture

from evotok.data.collators import EvoTokCollator


trl = pytest.importorskip("trl", reason="the extra `train`")


def row(color, answer):
    question = [{"type": "image", "text": None}, {"type": "text", "text": "what is this?"}]
    messages = [{"role": "user", "content": question}]
    messages += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return {"messages": messages, "images": [{"bytes": picture(color), "path": None}]}


ROWS = [row("red", "the red one"), row("blue", "a cat")]


def train(model, processor, folder, monkeypatch, **kwargs):
    """Returns the losses of three steps on both rows."""
    monkeypatch.setenv("CI", "1")  # no telemetry
    arguments = trl.SFTConfig(
        str(folder), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, assistant_only_loss=True,
        logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="no",
    )  # fmt: skip
    rows = Dataset.from_list(ROWS).cast_column("images", List(Image()))
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor, **kwargs)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("ours", [False, True], ids=["its collator", "our collator"])
def test_sft_trainer_has_the_loss_of_the_model(tmp_path, monkeypatch, ours):
    model, processor = build_chat_model()
    collator = EvoTokCollator(processor)
    with torch.no_grad():
        expected = model.train()(**collator(ROWS)).text_loss.item()
    losses = train(model, processor, tmp_path, monkeypatch, **({"data_collator": collator} if ours else {}))
    assert losses[0] == pytest.approx(expected, abs=1e-4)
    assert losses[-1] < losses[0]


def test_sft_trainer_trains_adapters(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    model, processor = build_chat_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    losses = train(model, processor, tmp_path, monkeypatch, peft_config=config)
    assert losses[-1] < losses[0]
    after = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
