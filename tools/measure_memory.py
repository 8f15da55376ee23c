"""Compares planned memory with that of real processes: small models trained for two steps on this machine's CPU.

    python -m tools.measure_memory             # all cases, some minutes
    python -m tools.measure_memory plain       # cases whose name contains the word
    python -m tools.measure_memory --json docs/results/training/memory.json

Each case is a run of the Trainer, under torchrun and DeepSpeed where the case is sharded. Its memory is the highest
resident memory of a later step less that before the model was built; the planned memory is that of `estimate`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from evotok.eval.benchmarks.meters import resident_bytes, restart_peak
from evotok.eval.benchmarks.report import save_row
from evotok.modeling_evotok.configuration_evotok import EvoTokConfig, EvoTokVQConfig
from evotok.modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from evotok.modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from evotok.training.deepspeed_setup import unsharded_weights
from evotok.training.multimodal.stages import freeze_all_but
from evotok.training.planning.memory import Sharding, estimate
from evotok.training.planning.profile import ATTENTION, BatchShape, profile_step, run_multimodal, run_tokenizer
from evotok.training.stages import STAGES


class Case(NamedTuple):
    """One run: ZeRO stage or None, activation checkpointing, bf16, number of processes, and whether the image tokenizer
    is trained, and not the multimodal model."""

    stage: int | None
    checkpointing: bool
    half: bool = False
    processes: int = 1
    tokenizer: bool = False


CASES = {
    "plain": Case(None, False),
    "plain-checkpointing": Case(None, True),
    "zero0": Case(0, False, processes=2),
    "zero0-bf16-checkpointing": Case(0, True, half=True, processes=2),
    "zero1": Case(1, False, processes=2),
    "zero1-bf16-checkpointing": Case(1, True, half=True, processes=2),
    "zero2": Case(2, False, processes=2),
    "zero2-bf16-checkpointing": Case(2, True, half=True, processes=2),
    "zero3": Case(3, False, processes=2),
    "zero3-bf16-checkpointing": Case(3, True, half=True, processes=2),
    "tokenizer-plain": Case(None, False, tokenizer=True),
    "tokenizer-zero1": Case(1, False, processes=2, tokenizer=True),
    "tokenizer-zero2-bf16": Case(2, False, half=True, processes=2, tokenizer=True),
}
IMAGES = 8
ROWS = BatchShape(batch=4, length=200, labels=64, input_images=2, generated_images=2)
MARGIN = 0.15


def small_config() -> EvoTokConfig:
    """Returns a config of about 85 million parameters: large beside a process, small enough for some steps on a CPU."""
    return EvoTokConfig(
        vq_config={
            "encoder_config": {
                "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32,
                "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
                "vision_use_head": False,
            },
            "codebook_size": 2048, "codebook_dim": 16, "num_codebooks": 4, "num_pixel_codebooks": 4,
            "pixel_latent_channels": 8, "pixel_base_channels": 8, "pixel_channel_multipliers": [1, 1, 1, 1],
            "pixel_num_res_blocks": 1, "pixel_norm_groups": 4, "semantic_hidden_size": 16,
            "semantic_num_hidden_layers": 1, "semantic_num_attention_heads": 2, "semantic_feature_dim": 16,
        },
        depth_decoder_config={
            "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 8,
            "hidden_dropout": 0.0,
        },
        text_config={
            "model_type": "qwen2", "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2304,
            "num_hidden_layers": 8, "num_attention_heads": 12, "num_key_value_heads": 4,
            "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
        },
        image_token_id=2, image_generation_token_id=3, vision_start_token_id=4, vision_end_token_id=5,
    )  # fmt: skip


def small_tokenizer() -> EvoTokVQConfig:
    """Returns a tokenizer config of about 60 million parameters."""
    return EvoTokVQConfig(
        encoder_config={
            "model_type": "siglip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6,
            "num_attention_heads": 12, "image_size": 64, "patch_size": 8, "vision_use_head": False,
        },
        codebook_size=2048, codebook_dim=16, num_codebooks=4, num_pixel_codebooks=2, pixel_latent_channels=64,
        pixel_base_channels=32, pixel_channel_multipliers=[1, 2, 4, 4], pixel_num_res_blocks=1, pixel_norm_groups=8,
        semantic_hidden_size=768, semantic_num_hidden_layers=2, semantic_num_attention_heads=12,
        semantic_feature_dim=768,
    )  # fmt: skip


def predict(case: Case) -> float:
    """Returns the planned bytes."""
    with torch.device("meta"):
        model = _build(case, torch.float32)
    count = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)
    if case.tokenizer:
        model.set_attn_implementation(ATTENTION)
        profile = profile_step(model.train(), lambda m: run_tokenizer(m, IMAGES), case.checkpointing)
        bucket = model.config.hidden_size**2
    else:
        if case.half:
            model.to(torch.bfloat16)
        for part in (model.model.language_model, model.depth_decoder):
            part.set_attn_implementation(ATTENTION)
        profile = profile_step(model.train(), lambda m: run_multimodal(m, ROWS), case.checkpointing)
        bucket = model.config.text_config.hidden_size**2
    width = 2 if case.half else 4
    sharding = Sharding(*count, width, case.stage, case.processes, bucket, autocast=case.tokenizer)
    return estimate(sharding, profile).total


def _build(case: Case, dtype: torch.dtype) -> PreTrainedModel:
    if case.tokenizer:
        return EvoTokVQModel._from_config(small_tokenizer(), dtype=dtype)
    model = EvoTokForConditionalGeneration._from_config(small_config(), dtype=dtype)
    freeze_all_but(model, list(STAGES["unified"].trainable))
    return model


def measure(case: Case) -> float:
    """Returns the bytes of a run, of the process with the most."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.close()
        command = [sys.executable, "-m"]
        if case.processes > 1:
            command += ["torch.distributed.run", f"--nproc-per-node={case.processes}", f"--master-port={port}", "-m"]
        command += [__spec__.name, "case", json.dumps(case), folder]
        # The allocator returns freed memory to the system at once.
        env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr[-3000:])
        return max(float(path.read_text()) for path in Path(folder).glob("*.bytes"))


def _run(case: Case, folder: Path) -> None:
    """Runs one process of a case."""
    from evotok.training.multimodal.trainer import MultimodalTrainer
    from evotok.training.recipes import Recipe, TokenizerLossArguments
    from evotok.training.tokenizer.trainer import TokenizerTrainer
    from evotok.training.train import training_arguments

    class Watched(TokenizerTrainer if case.tokenizer else MultimodalTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 1:  # the optimizer has its states now
                restart_peak()
            return super().training_step(*args, **kwargs)

    training: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 1, "save_strategy": "no",
        "gradient_checkpointing": case.checkpointing, "report_to": "none", "disable_tqdm": True, "bf16": case.half,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }  # fmt: skip
    if case.stage is not None:
        training["deepspeed"] = str(_settings(case.stage, folder / f"zero{os.environ['RANK']}.json"))
    arguments = training_arguments(Recipe("tokenizer" if case.tokenizer else "unified", training=training))
    if case.stage is not None:
        import deepspeed  # noqa: F401 - loaded before memory is measured
    before = resident_bytes()
    kwargs: dict[str, Any] = {"data_collator": _batch}
    if case.tokenizer:
        loss = TokenizerLossArguments(perceptual=0.0, adversarial=0.0)
        kwargs = {"data_collator": _images, "loss_args": loss, "teacher": _RandomTeacher()}
    with unsharded_weights(arguments):
        model = _build(case, torch.float32)
    Watched(model=model, args=arguments, train_dataset=[{}] * (4 * case.processes), **kwargs).train()
    (folder / f"{arguments.process_index}.bytes").write_text(str(resident_bytes(peak=True) - before))


def _settings(stage: int, path: Path) -> Path:
    """Writes the shipped DeepSpeed file of a stage; stages 0 and 1 differ from 2 in their number."""
    shipped = Path(__file__).resolve().parents[1] / f"configs/deepspeed/zero{max(stage, 2)}.json"
    settings = json.loads(shipped.read_text(encoding="utf-8"))
    settings["zero_optimization"]["stage"] = stage
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def _images(_: list) -> dict[str, torch.Tensor]:
    config = small_tokenizer()
    pixels = torch.rand(IMAGES, 3, config.image_size, config.image_size) * 2 - 1
    return {"pixel_values": pixels}


class _RandomTeacher(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        config = small_tokenizer()
        return torch.randn(len(pixels), config.num_positions, config.hidden_size)


def _batch(_: list) -> dict[str, torch.Tensor]:
    config = small_config()
    positions, levels = config.vq_config.num_positions, config.vq_config.num_pixel_codebooks
    ids = torch.randint(6, 8192, (ROWS.batch, ROWS.length))
    labels = torch.full_like(ids, -100)
    ids[: ROWS.input_images, 1 : 1 + positions] = config.image_token_id
    ids[ROWS.input_images :, 1 : 1 + positions] = config.image_generation_token_id
    labels[ROWS.input_images :, 1 : 1 + positions] = config.image_generation_token_id
    labels[:, -ROWS.labels :] = ids[:, -ROWS.labels :]
    codes = torch.randint(0, config.vq_config.codebook_size, (ROWS.batch, positions, levels))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "image_codes": codes[: ROWS.input_images],
        "generation_codes": codes[ROWS.input_images :],
    }


def main(argv: list[str] | None = None) -> int:
    """Prints plan and measurement of every case; exit code 1 if one is off by more than 15%."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="parts of the names of cases")
    parser.add_argument("--json", metavar="FILE", help="also write the figures into FILE; those of other cases stay")
    options = parser.parse_args(argv)
    if options.words[:1] == ["case"]:  # a process of `measure`
        _run(Case(*json.loads(options.words[1])), Path(options.words[2]))
        return 0
    worst = 0.0
    for name, case in CASES.items():
        if options.words and not any(word in name for word in options.words):
            continue
        planned, measured = predict(case), measure(case)
        error = planned / measured - 1
        worst = max(worst, abs(error))
        print(f"{name:26} plan {planned / 1e6:7.0f} MB   run {measured / 1e6:7.0f} MB   {error:+.1%}", flush=True)
        if options.json:
            save_row(options.json, {"name": name, "planned_bytes": round(planned), "measured_bytes": round(measured)})
    return int(worst > MARGIN)


if __name__ == "__main__":
    sys.exit(main())
