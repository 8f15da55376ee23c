"""DeepSpeed: its configuration for the tokenizer, and checks of checkpoints that a run resumes from."""

from types import SimpleNamespace

import pytest

from evotok.training.deepspeed_setup import check_engine, prepare_engine, read_engine, tokenizer_engine
from evotok.training.recipes import Recipe
from evotok.training.tokenizer.stage import tokenizer_arguments


ENGINES = {"no engine": [], "DeepSpeed without ZeRO-3": ["latest"]}
ENGINES["ZeRO-3"] = ["latest", "global_step2/zero_pp_rank_0_mp_rank_00_model_states.pt"]


def test_tokenizer_engine_computes_in_autocast_with_fp32_weights():
    fields = tokenizer_engine({"deepspeed": "configs/deepspeed/zero2.json", "bf16": True, "max_steps": 3})
    assert fields["bf16"] is False and fields["max_steps"] == 3 and fields["deepspeed"]["bf16"] == {"enabled": False}
    assert fields["deepspeed"]["torch_autocast"]["dtype"] == "bfloat16"
    assert "torch_autocast" not in tokenizer_engine({"deepspeed": "configs/deepspeed/zero2.json"})["deepspeed"]


def test_tokenizer_refuses_unsuitable_engines(tmp_path):
    """No process group is started, which `evotok train` would do."""
    with pytest.raises(ValueError, match="ZeRO-3, which shards weights, .*zero2.json, or leave it out"):
        tokenizer_engine({"deepspeed": "configs/deepspeed/zero3.json"})
    with pytest.raises(ValueError, match="training.fp16: .*give bf16"):
        tokenizer_engine({"deepspeed": "configs/deepspeed/zero2.json", "fp16": True})
    recipe = Recipe("tokenizer")
    recipe.loss.adversarial_adaptive = True
    with pytest.raises(ValueError, match="loss.adversarial_adaptive: not under DeepSpeed"):
        tokenizer_arguments(recipe, {"deepspeed": "configs/deepspeed/zero2.json"})
    (tmp_path / "other.json").write_text("{}")
    for name in ("nowhere.json", str(tmp_path / "other.json")):
        with pytest.raises(ValueError, match=f"{name}: no DeepSpeed configuration with a zero_optimization stage"):
            read_engine(name)


@pytest.mark.parametrize("before", ENGINES)
@pytest.mark.parametrize("now", ENGINES)
def test_check_engine_refuses_checkpoints_of_another_engine(tmp_path, before, now):
    for name in ENGINES[before]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("global_step2")
    config = SimpleNamespace(is_zero3=lambda: now == "ZeRO-3")
    arguments = SimpleNamespace(fsdp=None, deepspeed=now != "no engine", hf_deepspeed_config=config)
    if before == now:
        check_engine(arguments, str(tmp_path))
        return
    with pytest.raises(ValueError, match=f"written under {before}, but this run is under {now}: restore the former"):
        check_engine(arguments, str(tmp_path))


def test_prepare_engine_requires_a_universal_checkpoint(tmp_path):
    for rank in (0, 1):
        (tmp_path / f"rng_state_{rank}.pth").touch()
    (tmp_path / "latest").write_text("global_step2")
    config = SimpleNamespace(config={})
    prepare_engine(SimpleNamespace(world_size=2, hf_deepspeed_config=config), str(tmp_path))
    arguments = SimpleNamespace(world_size=1, hf_deepspeed_config=config)
    with pytest.raises(ValueError, match="written by 2 processes, this run has 1: python -m deepspeed.checkpoint"):
        prepare_engine(arguments, str(tmp_path))
    (tmp_path / "latest_universal").touch()
    prepare_engine(arguments, str(tmp_path))
    assert config.config == {"checkpoint": {"load_universal": True}}
