"""`evotok plan`: numbers computed by hand, plans of the shipped recipes, sizes of real runs."""

import json
from pathlib import Path

import pytest
import torch
from conftest import save_language_model
from drills import Server
from test_training import ROOT, needs_deepspeed, recipes, zero3  # noqa: F401 - a fixture
from torch import nn

from evotok.cli import main
from evotok.commands.plan import FRAMEWORK_BYTES
from evotok.training.planning.configs import find_config
from evotok.training.planning.gpus import GPUS
from evotok.training.planning.memory import Sharding, communication, estimate
from evotok.training.planning.plan import make_plan
from evotok.training.planning.profile import Profile, count_flops, profile_step
from evotok.training.recipes import read_recipe
from tools.measure_memory import CASES, measure, predict


CONFIGS = ROOT / "configs"
TOKENIZER = "image tokenizer"


class Tower(nn.Module):
    """Linear layers, with a step that can be counted by hand."""

    def __init__(self, width, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x.sum()

    def activation_checkpointing_disable(self):
        """Disables activation checkpointing, as models of Transformers do."""


def plan(path, *words, gpus=None, gpu="h100"):
    return make_plan(CONFIGS / path, list(words), gpus, GPUS[gpu], 0.4)


def test_profile_and_flops_equal_hand_computed_values():
    with torch.device("meta"):
        tower = Tower(256, 4)
        inputs = torch.empty(512, 256)
    matmul = 2 * 512 * 256 * 256
    assert count_flops(tower, lambda model: model(inputs)) == 4 * matmul * 3 - matmul  # no gradient of the first input
    row, weight = 4 * 512 * 256, 4 * 256 * 256
    profile = profile_step(tower, lambda model: model(inputs), checkpointing=False)
    # The outputs of four relus are saved. In the backward pass of the last layer the gradients of its relu, of its
    # input and of its weight are live, too; if kept, the gradients of all weights are, when activations are freed.
    assert 4 * row < profile.released <= 6 * row + weight
    assert profile.released <= profile.held <= profile.released + 3 * weight


def test_estimate_shards_by_zero_stage():
    profile = Profile(released=100, held=100 + 2 * 1000)
    fields = {"parameters": 2000, "trainable": 1000, "width": 2, "processes": 4}
    zero0, zero1, zero2, zero3 = (estimate(Sharding(**fields, stage=stage), profile) for stage in range(4))
    assert (zero0.weights, zero0.gradients, zero0.optimizer) == (4000, 2000, 12000)
    assert (zero1.weights, zero1.gradients, zero1.optimizer) == (4000, 2000, 3000)
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == (4000, 500, 3000)
    assert (zero3.weights, zero3.gradients, zero3.optimizer) == (1000, 500, 3000)
    fp32 = [estimate(Sharding(**fields | {"width": 4}, stage=stage), profile).optimizer for stage in (0, 1)]
    assert fp32 == [8000, 3000]
    offloaded = estimate(Sharding(**fields, stage=2, offload=True), profile)
    assert (offloaded.gradients, offloaded.optimizer) == (0, 0)
    assert estimate(Sharding(**fields, stage=0, offload=True), profile) == zero0, "only sharded state is offloaded"
    plain = estimate(Sharding(**fields | {"width": 4, "processes": 1}, stage=None), profile)
    assert (plain.weights, plain.gradients, plain.optimizer) == (8000, 4000, 8000)


def test_communication_depends_on_the_zero_stage():
    assert communication(1000, 1000, stage=2, processes=1) == 0
    assert communication(1000, 1000, stage=2, processes=4) == 2 * 1000 * 2 * 3 / 4
    assert communication(1000, 1000, stage=3, processes=4) == 1.5 * communication(1000, 1000, 2, 4)
    assert communication(1000, 1000, 3, 4, forwards=2) == 2 * communication(1000, 1000, 2, 4)


# The others differ from these in data and parts; unified takes twice as long to plan.
FAST = ("tokenizer", "low-memory/gen")
PAPER = [path.relative_to(CONFIGS).as_posix() for path in sorted((CONFIGS / "paper").rglob("*.yaml"))]


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] * (path[6:-5] not in FAST)) for path in PAPER]
)
def test_recipes_fit_their_gpus(path):
    """These are 16 H100 or one GPU of 24 GB, with room for the framework; the batch is the same on all."""
    gpus, gpu = (1, "rtx4090") if "low-memory" in path else (16, "h100")
    found = plan(path, gpu=gpu)
    batch = {"tokenizer": 256, "dpo": 64}.get(Path(path).stem, 128)
    assert found.gpus == gpus and found.batch == found.recipe_batch == batch
    assert found.memory[found.checkpointing, found.stage].total + FRAMEWORK_BYTES < GPUS[gpu].memory
    if path.endswith("low-memory/gen.yaml"):
        assert found.checkpointing and found.stage == 2 and found.offload
        assert found.model.parts["adapters and copies"][1] > 160e6 and found.model.parts["language model"][1] == 0
        assert found.trainable == pytest.approx(161_480_704 + 12_966_912 + 817_027_072, rel=1e-3)


def test_plan_of_the_paper_equals_hand_computed_values():
    found = plan("paper/gen.yaml", gpus=16)
    assert found.parameters == 8_853_349_003 and found.batch == 128
    outside = found.model.parts[TOKENIZER][0]  # in fp32, outside of DeepSpeed
    assert found.memory[True, 2].weights == 2 * (found.parameters - outside) + 4 * outside
    assert found.code_bytes == (1_281_167 + 5_000_000 + 65_000_000 + 92_256 + 80_000) * 2048
    # 6 operations a parameter and token: the language model on 316 tokens, the depth decoder on 256 x 4.
    by_hand = 6 * (7.07e9 * 316 + 6 * 12 * 2560**2 * 256 * 4 + 4 * 2560 * 32768 * 256) + 2 * 291e6 * 256
    assert found.model.flops_a_row == pytest.approx(by_hand, rel=0.1)
    assert found.days(32) < found.days(16)


def test_plan_of_adapters_without_an_engine_counts_rounded_matrices_once():
    words = ["training.deepspeed=null", "training.gradient_checkpointing=true"]
    found = plan("paper/low-memory/gen.yaml", *words)
    # 28 layers of Qwen2.5: q, k, v with biases, o, gate, up and down.
    layer = 3584 * (3584 + 512 + 512) + 3584 + 2 * 512 + 3584 * 3584 + 3 * 3584 * 18944
    assert found.model.rounded == 28 * layer
    others = found.parameters - 28 * layer
    assert found.memory[True, None].weights == pytest.approx(2 * 28 * layer + 6 * others)


def test_plan_of_the_image_tokenizer_equals_hand_computed_values():
    found = plan("paper/tokenizer.yaml", gpus=1).model
    encoder = 2 * 256 * 290e6 + 23 * 4 * 256**2 * 1024
    search = 2 * 256 * 32768 * 32 * 16
    # Convolutions of the pixel decoder at 16 to 256 pixels; parameters of the semantic decoder at 256 positions.
    decoders = 3 * (248e9 + 2 * 256 * 40.1e6)
    # Gradients count twice; the teacher is one more encoder.
    assert found.flops_a_row == pytest.approx(4 * encoder + search + decoders, rel=0.02)


def test_plan_of_preferences_counts_two_answers_and_the_reference():
    batch = "training.per_device_train_batch_size=4"
    sft, dpo = (plan(f"paper/{name}.yaml", batch, gpus=16) for name in ("sft", "dpo"))
    assert dpo.model.tokens_a_row == 2 * sft.model.tokens_a_row and dpo.model.parts == sft.model.parts
    assert dpo.model.flops_a_row == pytest.approx(2 * (4 / 3) * sft.model.flops_a_row, rel=0.02)
    weights = [found.memory[True, 3].weights for found in (sft, dpo)]
    shared, _ = dpo.model.parts[TOKENIZER]
    assert weights[1] - weights[0] == pytest.approx(2 * (dpo.parameters - shared) / 16)
    # The reference is gathered once more, beside forward, backward and the trained weights.
    counts = dpo.parameters - shared, dpo.trainable
    assert dpo.sent_a_step(16, 3) - communication(*counts, 3, 16) == pytest.approx(2 * counts[0] * 15 / 16)
    assert dpo.sent_a_step(16, 2) == communication(*counts, 2, 16)


def test_plan_of_the_tokenizer_keeps_fp32_under_deepspeed():
    """Autocast's copies are additional; only gradients and optimizer are sharded, and sent in fp32."""
    path = "paper/tokenizer.yaml"
    found = plan(path, "training.deepspeed=configs/deepspeed/zero2.json", gpus=16)
    assert found.stage == 2 and {stage for _, stage in found.memory} == {None, 1, 2}
    plain, sharded = found.memory[False, None], found.memory[False, 2]
    assert plain.weights == sharded.weights == (4 + 2) * found.parameters + 4 * found.parameters  # the EMA
    assert (sharded.gradients, sharded.optimizer) == (4 * found.trainable / 16, 12 * found.trainable / 16)
    assert found.sent_a_step(16, 2) == 2 * 4 * found.trainable * 15 / 16
    with pytest.raises(ValueError, match="ZeRO-3, which shards weights"):
        plan(path, "training.deepspeed=configs/deepspeed/zero3.json", gpus=16)


LORA = "lora={r: 64}"


@pytest.mark.parametrize(
    ("engine", "lora"),
    [
        pytest.param("", "", id="plain"),
        pytest.param("zero2", LORA, marks=needs_deepspeed, id="zero2, adapters"),
        pytest.param("zero3", "", marks=needs_deepspeed, id="zero3"),
    ],
)
def test_checkpoint_of_a_real_run_has_the_planned_bytes(recipes, tmp_path, engine, lora):  # noqa: F811
    """The tolerance is 5%: 3 million parameters on two processes, half of them frozen."""
    save_language_model(tmp_path / "language", hidden_size=256)
    words = [f"model.language_model_checkpoint={tmp_path / 'language'}"]
    words.append("model.config.depth_decoder_config.hidden_size=256")
    words += ["training.max_steps=1", "training.save_steps=1", f"training.output_dir={tmp_path}"]
    if engine:
        files = {"zero2": CONFIGS / "deepspeed/zero2.json", "zero3": zero3(tmp_path)}
        words.append(f"training.deepspeed={files[engine]}")
    words += [lora] if lora else []
    ended = Server(tmp_path).run(recipes / "sft.yaml", *words)
    assert ended.codes == [0, 0], ended.output[-3000:]
    files = [path for path in (tmp_path / "checkpoint-1").rglob("*") if path.is_file()]
    found = make_plan(recipes / "sft.yaml", words, 2, GPUS["h100"], 0.4)
    assert sum(path.stat().st_size for path in files) == pytest.approx(found.checkpoint_bytes, rel=0.05)


def test_find_config_requires_no_checkpoint():
    path = CONFIGS / "mini/gen.yaml"
    config = find_config(read_recipe(path), path)
    assert config.text_config.hidden_size == 256 and config.text_config.vocab_size == 1024
    assert config.image_token_id < 1024
    assert config.vq_config.image_size == 64 and config.vq_config.encoder_config.num_hidden_layers == 6
    assert config.vq_config.semantic_feature_dim == config.vq_config.encoder_config.hidden_size == 192
    with pytest.raises(ValueError, match="no recipe beside it has that output_dir"):
        find_config(read_recipe(path, ["model.checkpoint=nowhere"]), path)


def test_stages_of_minutes_are_not_planned():
    for stage in ("vision", "language"):
        with pytest.raises(ValueError, match=f"the stage {stage} takes minutes: plan another stage"):
            plan(f"mini/{stage}.yaml", gpus=1)


def test_plan_command_prints_a_plan(capsys):
    recipe = str(CONFIGS / "mini/tokenizer.yaml")
    assert main(["plan", recipe, "--gpus", "1", "--gpu", "a10"]) == 0
    out = capsys.readouterr().out
    for words in ("pixel_decoder", "Memory on one GPU", "operations a step", "512"):
        assert words in out
    assert main(["plan", recipe, "--gpus", "1", "--gpu", "a10", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert f"{facts['parameters']['all']['all']:,}" in out and f"{facts['days']:,.1f}" in out
    [chosen] = [row for row in facts["memory"] if row["chosen"]]
    assert chosen["fits"] and f"{chosen['total'] / 1e9:.1f}" in out
    assert [row["gpus"] for row in facts["scaling"]] == [2**n for n in range(10)]
    assert "rows a step, on all GPUs" in out and "in the recipe, which" not in out
    words = ["optimizer.average_decay=0.999", "model.config.codebook_restart_threshold=1000"]
    assert main(["plan", recipe, *words, "--gpus", "4", "--gpu", "a10"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "A step has 128 rows here, but 32 in the recipe, for which its steps" in out
    assert "most are replaced at every step" in out
    assert main(["plan", recipe, "--gpu", "abacus"]) == 2
    assert "not one of h200" in capsys.readouterr().err
    assert main(["plan", recipe, "--mfu", "2"]) == main(["plan", recipe, "--mfu", "0"]) == 2


def test_memory_of_a_real_run_is_within_15_percent_of_the_plan():
    """This is one case; `python -m tools.measure_memory` runs all."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from Linux's /proc")
    case = CASES["plain-checkpointing"]
    assert predict(case) == pytest.approx(measure(case), rel=0.15)
