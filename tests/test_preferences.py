"""Preferences: batches of pairs, and the dpo stage, on one process and on two."""

import json
import math

import pytest
import torch
import yaml
from conftest import build_chat_model
from test_sources import picture, write_parquet
from test_training import TRAINING, history, losses, needs_deepspeed, run, zero3

from evotok import EvoTokForConditionalGeneration
from evotok.data.collators import PreferenceCollator
from evotok.training.train import main


pytest.importorskip("trl", reason="the dpo stage needs the extra `train`")


def pair(question="what is this?", answer="a cat", rejected="the red one", images=1):
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [picture()] * images, "rejected": rejected}


@pytest.fixture(scope="module")
def processor():
    return build_chat_model()[1]


def answers(processor, batch):
    """Returns the text that the mask of each row marks."""
    rows = zip(batch["input_ids"], batch["completion_mask"].bool(), strict=True)
    return [processor.decode(ids[mask]) for ids, mask in rows]


def test_preference_collator_marks_the_last_answers(processor):
    several = pair("and this?", "a dog", "<|im_end|>a cat")
    several["messages"] = pair()["messages"] + several["messages"]
    several["images"] *= 2
    batch = PreferenceCollator(processor)([pair(), several])
    assert answers(processor, batch) == [
        "a cat<|im_end|>", "a dog<|im_end|>", "the red one<|im_end|>", "< |im_end|>a cat<|im_end|>",
    ]  # fmt: skip
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask", "pixel_values"}
    assert batch["pixel_values"].shape == (6, 3, 32, 32)
    prompt = (batch["completion_mask"] == 0) & (batch["attention_mask"] == 1)
    for better, rejected in ((0, 2), (1, 3)):
        assert torch.equal(*(batch["input_ids"][row][prompt[row]] for row in (better, rejected)))


def test_preference_collator_skips_both_rows_of_a_pair(processor):
    corrupt = pair() | {"images": [b"no picture"]}
    collator = PreferenceCollator(processor, max_length=60)
    batch = collator([pair(), corrupt, pair("what is this? " * 20)])
    assert answers(processor, batch) == ["a cat<|im_end|>", "the red one<|im_end|>"]
    assert collator.skipped == {"image": 1, "target": 1}
    assert torch.equal(collator([corrupt])["input_ids"], batch["input_ids"]), "the last good pair is repeated"


def test_preference_collator_skips_pairs_whose_last_answer_is_truncated(processor):
    early = pair()["messages"]
    late = [{"role": "user", "content": "what is this? " * 20}, {"role": "assistant", "content": "a dog"}]
    collator = PreferenceCollator(processor, max_length=60)
    batch = collator([pair(), pair() | {"messages": [*early, *late]}])
    assert answers(processor, batch) == ["a cat<|im_end|>", "the red one<|im_end|>"]
    assert collator.skipped == {"target": 1}


def test_preference_collator_refuses_rows_without_two_texts(processor):
    collator = PreferenceCollator(processor)
    with pytest.raises(ValueError, match="row 3: no text under `rejected`"):
        collator([pair() | {"rejected": None, "id": 3}])
    drawn = pair("a cat", [{"type": "image"}], images=0) | {"images": [picture()]}
    for record in (drawn, pair() | {"messages": pair()["messages"][:1]}):
        with pytest.raises(ValueError, match="texts are compared"):
            collator([record])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Writes a recipe of the stage on questions about scenes, from a tiny random model."""
    folder = tmp_path_factory.mktemp("dpo")
    for part in build_chat_model():
        part.save_pretrained(folder / "sft")
    data = {"mixture": {"name": 0.5, "count": 0.3, "yes_no_name": 0.2}}
    sections = {"model": {"checkpoint": str(folder / "sft")}, "data": data, "training": TRAINING | {"bf16": False}}
    (folder / "dpo.yaml").write_text(yaml.safe_dump({"stage": "dpo"} | sections))
    return folder / "dpo.yaml"


def test_dpo_trains_the_parts_of_its_stage(recipe, tmp_path):
    assert main([str(recipe), f"training.output_dir={tmp_path}"]) == 0
    log = history(tmp_path)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the model still equals its reference
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen"} <= set(log[0])
    folders = recipe.parent / "sft", tmp_path
    before, after = (EvoTokForConditionalGeneration.from_pretrained(folder).state_dict() for folder in folders)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert any("language_model" in name for name in moved) and any("semantic_projector" in name for name in moved)
    assert not any(part in name for name in moved for part in ("vq_model", "depth_decoder", "pixel_projector"))
    assert not (tmp_path / "README.md").exists(), "TRL's card describes a model of text"


@needs_deepspeed
def test_dpo_under_zero3_on_two_processes_equals_one(recipe, tmp_path):
    """Policy and reference are sharded, the tokenizer is not, and the saved weights are complete."""
    one, two, steps = tmp_path / "one", tmp_path / "two", ["training.optim=adamw_torch", "training.max_steps=3"]
    assert main([str(recipe), f"training.output_dir={one}", *steps]) == 0
    engine = [f"training.deepspeed={zero3(tmp_path)}", "training.per_device_train_batch_size=2"]
    run([recipe, f"training.output_dir={two}", *steps, *engine], nproc=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    whole, gathered = (EvoTokForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (one, two))
    assert whole.keys() == gathered.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(gathered[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


def test_dpo_trains_adapters_on_a_stream_and_resumes(recipe, tmp_path):
    """The reference is the model without its adapters; a row without image and a corrupt image are skipped."""
    pytest.importorskip("peft")
    row = {"question": "what is this?", "chosen": "a cat", "rejected": "a dog"}
    image = {"bytes": picture(), "path": None}
    rows = [row | {"image": image} for _ in range(12)]
    rows[0]["image"], rows[1]["image"] = None, {"bytes": b"no picture", "path": None}
    write_parquet(tmp_path / "pairs/a.parquet", rows)
    content = yaml.safe_load(recipe.read_text())
    sources = [{"source": "rlaif-v", "path": str(tmp_path / "pairs")}]
    content["data"] = {"name": "mixture", "sources": sources, "pool_batches": 2}
    content["model"]["trainable"] = ["semantic_projector", "language_model"]
    content["lora"] = {"r": 4}
    path = tmp_path / "dpo.yaml"
    path.write_text(yaml.safe_dump(content))
    words = [str(path), f"training.output_dir={tmp_path / 'run'}"]
    assert main([*words, "training.max_steps=3"]) == 0
    assert main(words) == 0
    log = history(tmp_path / "run")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and log[5]["loss"] < log[0]["loss"]
    assert log[2]["skipped_image"] >= 1 and log[2]["skipped_malformed"] >= 1
    config = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert config["modules_to_save"] == ["semantic_projector"]


def test_dpo_refuses_mistakes_in_one_line(recipe, tmp_path, capsys):
    for word, message in (
        ("model.checkpoint=null", "the dpo stage starts from a model that answers"),
        ("data.mixture={conversation: 1.0}", "unknown kind 'conversation' in the mixture: choose among name,"),
        ("data.name=llava", "'llava' is not one of world, mixture, which the stage dpo reads"),
        ("preference.betta=1", "Did you mean 'beta'?"),
    ):
        assert main([str(recipe), f"training.output_dir={tmp_path}", word]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    content = yaml.safe_load(recipe.read_text())
    content["data"] = {"name": "mixture", "sources": [{"source": "llava-next", "path": str(tmp_path)}]}
    path = tmp_path / "dpo.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main([str(path), f"training.output_dir={tmp_path}"]) == 2
    assert "'llava-next' has no rejected answers: the stage dpo reads rlaif-v." in capsys.readouterr().err
