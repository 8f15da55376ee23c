"""The plan: numbers that can be worked out by hand, what it says of the shipped recipes, and memory of a real run."""

import json
from pathlib import Path

import pytest
import torch
from conftest import save_language_model
from drills import Server
from test_training import needs_deepspeed, recipes, zero3  # noqa: F401 - a fixture
from torch import nn

from evotok.cli import main
from evotok.commands.plan import FRAMEWORK_BYTES
from evotok.training.planning.gpus import GPUS
from evotok.training.planning.memory import Engine, communication, estimate
from evotok.training.planning.plan import find_config, make_plan
from evotok.training.planning.profile import Profile, count_flops, profile_step
from tools.measure_memory import CASES, measure, predict


ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


class Tower(nn.Module):
    """Linear layers whose step can be counted by hand."""

    def __init__(self, width, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x.sum()

    def activation_checkpointing_disable(self):
        """As models of Transformers have it."""


def test_a_step_is_counted_as_by_hand():
    with torch.device("meta"):
        tower = Tower(256, 4)
        inputs = torch.empty(512, 256)
    matmul = 2 * 512 * 256 * 256
    assert count_flops(tower, lambda model: model(inputs)) == 4 * matmul * 3 - matmul  # no gradient of the first input
    row, weight = 4 * 512 * 256, 4 * 256 * 256
    profile = profile_step(tower, lambda model: model(inputs), checkpointing=False)
    # The outputs of four relus are saved. In the last layer's backward the gradients of its relu, of that one's input
    # and of the weight are alive besides; kept, the gradients of all weights are there when the activations are gone.
    assert 4 * row < profile.released <= 6 * row + weight
    assert profile.released <= profile.held <= profile.released + 3 * weight


def test_zero_shares_out_what_it_says():
    profile = Profile(released=100, held=100 + 2 * 1000)
    engine = {"parameters": 2000, "trainable": 1000, "width": 2, "processes": 4}
    zero0, zero1, zero2, zero3 = (estimate(Engine(**engine, stage=stage), profile) for stage in range(4))
    assert (zero0.weights, zero0.gradients, zero0.optimizer) == (4000, 2000, 12000)
    assert (zero1.weights, zero1.gradients, zero1.optimizer) == (4000, 2000, 3000)
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == (4000, 500, 3000)
    assert (zero3.weights, zero3.gradients, zero3.optimizer) == (1000, 500, 3000)
    in_full = [estimate(Engine(**engine | {"width": 4}, stage=stage), profile).optimizer for stage in (0, 1)]
    assert in_full == [8000, 3000]
    offloaded = estimate(Engine(**engine, stage=2, offload=True), profile)
    assert (offloaded.gradients, offloaded.optimizer) == (0, 0)
    assert estimate(Engine(**engine, stage=0, offload=True), profile) == zero0, "without sharding nothing is offloaded"
    plain = estimate(Engine(**engine | {"width": 4, "processes": 1}, stage=None), profile)
    assert (plain.weights, plain.gradients, plain.optimizer) == (8000, 4000, 8000)


def test_what_is_sent():
    assert communication(1000, 1000, stage=2, processes=1) == 0
    assert communication(1000, 1000, stage=2, processes=4) == 2 * 1000 * 2 * 3 / 4
    assert communication(1000, 1000, stage=3, processes=4) == 1.5 * communication(1000, 1000, 2, 4)
    assert communication(1000, 1000, 3, 4, forwards=2) == 2 * communication(1000, 1000, 2, 4)


SIZES = {"paper": (16, "h100"), "low-memory": (1, "rtx4090")}
# The mixture of both kinds is as large as each of them, but takes twice as long to plan.
PAPER = [
    pytest.param(path, marks=[pytest.mark.slow] * (path.stem == "unified"), id=path.relative_to(CONFIGS).as_posix())
    for path in sorted((CONFIGS / "paper").rglob("*.yaml"))
]


@pytest.mark.parametrize("path", PAPER)
def test_every_recipe_fits_the_gpus_it_is_written_for(path):
    """By its own budget, on 16 H100 or one GPU of 24 GB, with room for the framework; its batch is the one it says."""
    gpus, gpu = SIZES[path.parent.name]
    plan = make_plan(path, [], None, GPUS[gpu], 0.4)
    assert plan.gpus == gpus and plan.batch == plan.recipe_batch == {"tokenizer": 256, "dpo": 64}.get(path.stem, 128)
    memory = plan.memory[plan.checkpointing, plan.stage]
    assert memory.total + FRAMEWORK_BYTES < GPUS[gpu].memory
    if gpus > 1:
        return
    assert plan.checkpointing and plan.stage == 2 and plan.offload
    if path.stem == "gen":
        assert plan.parts["adapters and copies"][1] > 160e6 and plan.parts["language model"][1] == 0
        assert plan.trainable == pytest.approx(161_480_704 + 12_966_912 + 817_027_072, rel=1e-3)


def test_the_paper_fits_its_16_gpus():
    plan = make_plan(CONFIGS / "paper/gen.yaml", [], 16, GPUS["h100"], 0.4)
    assert plan.parameters == 8_853_349_003 and plan.batch == 128
    outside = plan.parts["image tokenizer"][0]  # no engine sees it: fp32
    assert plan.memory[True, 2].weights == 2 * (plan.parameters - outside) + 4 * outside
    assert plan.code_bytes == (1_281_167 + 5_000_000 + 65_000_000 + 92_256 + 80_000) * 2048
    # 6 operations a parameter and token: the language model on 316 tokens, the depth decoder on 256 x 4.
    by_hand = 6 * (7.07e9 * 316 + 6 * 12 * 2560**2 * 256 * 4 + 4 * 2560 * 32768 * 256) + 2 * 291e6 * 256
    assert plan.flops_a_sample == pytest.approx(by_hand, rel=0.1)
    assert plan.days(32) < plan.days(16)


def test_preferences_take_two_rows_and_two_models():
    """A sample has two answers; what they are compared with is another model, or the same one without its adapters."""
    batch = ["training.per_device_train_batch_size=4"]
    sft, dpo = (make_plan(CONFIGS / f"paper/{name}.yaml", batch, 16, GPUS["h100"], 0.4) for name in ("sft", "dpo"))
    assert dpo.tokens_a_sample == 2 * sft.tokens_a_sample and dpo.parts == sft.parts
    assert dpo.flops_a_sample == pytest.approx(2 * (4 / 3) * sft.flops_a_sample, rel=0.02)
    weights = [plan.memory[True, 3].weights for plan in (sft, dpo)]
    shared, _ = dpo.parts["image tokenizer"]
    assert weights[1] - weights[0] == pytest.approx(2 * (dpo.parameters - shared) / 16)
    # What they are compared with is gathered once more, beside forward, backward and what learns.
    engine = dpo.parameters - shared, dpo.trainable
    assert dpo.sent_a_step(16, 3) - communication(*engine, 3, 16) == pytest.approx(2 * engine[0] * 15 / 16)
    assert dpo.sent_a_step(16, 2) == communication(*engine, 2, 16)


def test_the_tokenizer_stays_in_fp32_under_an_engine():
    """Autocast's copies come on top; gradients and optimizer alone are shared out, and sent in fp32."""
    path = CONFIGS / "paper/tokenizer.yaml"
    plan = make_plan(path, ["training.deepspeed=configs/deepspeed/zero2.json"], 16, GPUS["h100"], 0.4)
    assert plan.stage == 2 and {stage for _, stage in plan.memory} == {None, 1, 2}
    plain, sharded = plan.memory[False, None], plan.memory[False, 2]
    assert plain.weights == sharded.weights == (4 + 2) * plan.parameters + plan.average_bytes
    assert (sharded.gradients, sharded.optimizer) == (4 * plan.trainable / 16, 12 * plan.trainable / 16)
    assert plan.sent_a_step(16, 2) == 2 * 4 * plan.trainable * 15 / 16
    with pytest.raises(ValueError, match="ZeRO-3, which shards weights"):
        make_plan(path, ["training.deepspeed=configs/deepspeed/zero3.json"], 16, GPUS["h100"], 0.4)


def test_what_the_recipe_says_is_among_what_is_planned():
    plan = make_plan(CONFIGS / "mini/gen.yaml", [], 1, GPUS["a10"], 0.4)
    assert plan.stage is None and {stage for _, stage in plan.memory} == {None, 0, 1, 2, 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    return Server(tmp_path_factory.mktemp("logs"))


LORA = "lora={r: 64}"


@pytest.mark.parametrize(
    "engine, lora",
    [
        pytest.param("", "", id="plain"),
        pytest.param("", LORA, id="plain, adapters"),
        pytest.param("zero2", "", marks=needs_deepspeed, id="zero2"),
        pytest.param("zero2", LORA, marks=needs_deepspeed, id="zero2, adapters"),
        pytest.param("zero3", "", marks=[needs_deepspeed, pytest.mark.slow], id="zero3"),
        pytest.param("zero3", LORA, marks=needs_deepspeed, id="zero3, adapters"),
    ],
)
def test_a_checkpoint_takes_the_bytes_that_were_planned(server, recipes, tmp_path, engine, lora):  # noqa: F811
    """Within 5%: 3 million parameters on two processes, half of them frozen."""
    save_language_model(tmp_path / "language", hidden_size=256)
    words = [f"model.language_model_checkpoint={tmp_path / 'language'}"]
    words.append("model.config.depth_decoder_config.hidden_size=256")
    words += ["training.max_steps=1", "training.save_steps=1", f"training.output_dir={tmp_path}"]
    if engine:
        files = {"zero2": CONFIGS / "deepspeed/zero2.json", "zero3": zero3(tmp_path)}
        words.append(f"training.deepspeed={files[engine]}")
    words += [lora] if lora else []
    recipe = recipes / "sft.yaml"
    ended = server.run(recipe, *words)
    assert ended.codes == [0, 0], ended.said[-3000:]
    files = [path for path in (tmp_path / "checkpoint-1").rglob("*") if path.is_file()]
    plan = make_plan(recipe, words, 2, GPUS["h100"], 0.4)
    planned = plan.checkpoint_bytes
    if engine == "zero2" and not lora:
        # From a GPU what is frozen is copied to be written a second time; on a CPU both are the same bytes.
        planned -= 4 * (plan.parameters - plan.trainable - plan.parts["image tokenizer"][0])
    assert sum(path.stat().st_size for path in files) == pytest.approx(planned, rel=0.05)


def test_an_average_of_the_weights_is_counted():
    path = CONFIGS / "mini/tokenizer.yaml"
    plain, averaged = (
        make_plan(path, [f"optimizer.average_decay={decay}"], 1, GPUS["a10"], 0.4) for decay in (0.0, 0.999)
    )
    assert averaged.memory[False, None].weights - plain.memory[False, None].weights == 4 * plain.parameters
    assert averaged.checkpoint_bytes - plain.checkpoint_bytes == 4 * plain.parameters


def test_the_config_is_found_without_any_checkpoint():
    from evotok.training.recipes import read_recipe

    path = CONFIGS / "mini/gen.yaml"
    config = find_config(read_recipe(path), path)
    assert config.text_config.hidden_size == 256 and config.text_config.vocab_size == 1024
    assert config.image_token_id < 1024
    assert config.vq_config.image_size == 64 and config.vq_config.encoder_config.num_hidden_layers == 6
    assert config.vq_config.semantic_feature_dim == config.vq_config.encoder_config.hidden_size == 192
    with pytest.raises(ValueError, match="no recipe beside it makes it"):
        find_config(read_recipe(path, ["model.checkpoint=nowhere"]), path)


def test_stand_ins_are_not_planned():
    for stage in ("vision", "language"):
        with pytest.raises(ValueError, match=f"stage {stage} trains a stand-in"):
            make_plan(CONFIGS / f"mini/{stage}.yaml", [], 1, GPUS["a10"], 0.4)


def test_the_command_prints_a_plan(capsys):
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
    assert "samples a step, on all GPUs" in out and "in the recipe, which" not in out
    assert main(["plan", recipe, "--gpus", "4", "--gpu", "a10"]) == 0
    assert "A step has 128 samples here, but 32 in the recipe, which its steps" in capsys.readouterr().out
    assert main(["plan", recipe, "--gpu", "abacus"]) == 2
    assert "not one of h200" in capsys.readouterr().err
    assert main(["plan", recipe, "--mfu", "2"]) == main(["plan", recipe, "--mfu", "0"]) == 2


def test_memory_of_a_real_run_is_within_15_percent():
    """One case; `python -m tools.measure_memory` runs them all."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from Linux's /proc")
    case = CASES["plain-checkpointing"]
    assert predict(case) == pytest.approx(measure(case), rel=0.15)
