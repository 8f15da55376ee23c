"""The plugin in the lmms-eval harness; `make test-lmms` creates an environment for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image


pytest.importorskip("lmms_eval", reason="needs lmms-eval, which wants an environment of its own: make test-lmms")

from conftest import build_chat_model
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from evotok.cli import main
from evotok.commands.checkpoints import find_asset, load_multimodal
from evotok.data.world.evaluation import question_set
from evotok.data.world.lmms_tasks import TASKS, write_tasks
from evotok.eval.harness import EvoTokChat, EvoTokSimple, cut_at, generation_options
from evotok.eval.inference import answer_questions
from evotok.eval.metrics import score_answers


ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = 4


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def mini():
    return load_multimodal("mini")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Writes the tasks of the world, and one of choices."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder, QUESTIONS)
    task = yaml.safe_load((folder / "qa_color.yaml").read_text())
    del task["generation_kwargs"]
    task |= {"task": "choices", "output_type": "multiple_choice", "doc_to_choice": ["red", "green", "blue", "yellow"]}
    task |= {"doc_to_target": "{{['red', 'green', 'blue', 'yellow'].index(answer) if answer in ['red'] else 0}}"}
    task["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    (folder / "choices.yaml").write_text(yaml.safe_dump(task))
    return folder


def evaluate(model, folder, names, **words):
    manager = TaskManager("WARNING", include_path=str(folder), include_defaults=False, model_name="evotok")
    return simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True, **words)


def test_harness_finds_the_plugin():
    assert issubclass(get_model("evotok"), EvoTokChat)
    assert issubclass(get_model("evotok", force_simple=True), EvoTokSimple)


@pytest.mark.parametrize("force_simple", [False, True])
def test_harness_loads_a_checkpoint_by_name(mini, tasks, force_simple):
    """The arguments are those of `lmms-eval --model evotok --model_args pretrained=FOLDER --batch_size 2`."""
    model_args = f"pretrained={find_asset('evotok-mini')}"
    words = {"model_args": model_args, "batch_size": 2, "device": "cpu", "force_simple": force_simple}
    found = evaluate("evotok", tasks, ["qa_color"], **words)
    expected = evaluate((EvoTokSimple if force_simple else EvoTokChat)(*mini, batch_size=2), tasks, ["qa_color"])
    for results in (found, expected):
        assert len(results["samples"]["qa_color"]) == QUESTIONS
    answers, wanted = (
        [sample["filtered_resps"] for sample in results["samples"]["qa_color"]] for results in (found, expected)
    )
    assert answers == wanted and found["results"] == expected["results"]
    assert found["config"]["model_args"] == model_args


def test_harness_reports_a_missing_checkpoint(tasks):
    with pytest.raises(ValueError, match="'nowhere': no such folder"):
        evaluate("evotok", tasks, ["qa_color"], model_args="pretrained=nowhere", batch_size=2)


def test_suite_equals_generate_and_the_suite_mini(world, tmp_path, capsys):
    """The suite runs through `evotok eval`, the harness and the plugin; a batch is smaller than a task."""
    words = ["task_folder=world", f"questions={QUESTIONS}", "batch_size=3", "--out", str(tmp_path / "out"), "--json"]
    assert main(["eval", "understanding", "mini", *words]) == 0
    results = json.loads(capsys.readouterr().out)
    model, processor = load_multimodal("mini")
    for name in TASKS:
        rows = question_set(world, name, QUESTIONS)
        expected = answer_questions(model, processor, rows, batch_size=1)
        lines = (tmp_path / f"out/answers-{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["answer"] for line in lines] == expected, name
        assert results["figures"][name] == pytest.approx(score_answers(rows, expected).accuracy), name
        assert results["figures"][f"{name}_n"] == QUESTIONS
    assert set(results["data"]) == {*TASKS, "task_folder"}


def test_two_processes_equal_one(tasks, tmp_path):
    words = [f"task_folder={tasks}", "tasks=[qa_count,qa_color]", "batch_size=2", "--out"]
    assert main(["eval", "understanding", "mini", *words, str(tmp_path / "one")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "evotok.cli"]
    command = [*torchrun, "eval", "understanding", "mini", *words, str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two["processes"] == 2 and two["figures"] == one["figures"] and two["data"] == one["data"]
    for task in ("qa_count", "qa_color"):
        answers = [(tmp_path / name / f"answers-{task}.jsonl").read_text() for name in ("one", "two")]
        assert answers[0] == answers[1], task


def test_request_forms_have_equal_answers(mini, tasks):
    chat, simple = (
        evaluate(cls(*mini, batch_size=4), tasks, ["qa_count", "qa_color"])["samples"]
        for cls in (EvoTokChat, EvoTokSimple)
    )
    for task, samples in chat.items():
        answers = [sample["filtered_resps"] for sample in samples]
        assert answers == [sample["filtered_resps"] for sample in simple[task]] and len(answers) == QUESTIONS


def test_loglikelihood_equals_forward(mini, tasks):
    model, processor = mini
    [result] = evaluate(EvoTokSimple(*mini, batch_size=3), tasks, ["choices"])["samples"].values()
    image = Image.open(next(iter(sorted((tasks / "qa_color/test").glob("*.png")))))
    question = {
        "role": "user",
        "content": [{"type": "image", "image": image}, {"type": "text", "text": result[0]["doc"]["question"]}],
    }
    for choice, (loss, greedy) in zip(("red", "green", "blue", "yellow"), result[0]["filtered_resps"], strict=True):
        prompt = processor.apply_chat_template(
            [question], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        answer = processor.tokenizer(f"{choice}<|im_end|>", return_tensors="pt").input_ids
        ids = torch.cat([prompt["input_ids"], answer], dim=1)
        with torch.inference_mode():
            logits = model(input_ids=ids, pixel_values=prompt["pixel_values"]).logits[0, -len(answer[0]) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, answer[0]).item()
        assert loss == pytest.approx(expected, abs=1e-4), choice
        assert greedy == bool((logits.argmax(-1) == answer[0]).all())


def test_loglikelihood_accepts_requests_without_images():
    """The harness sends them for mutual information."""
    model = EvoTokSimple(*build_chat_model(), batch_size=2)
    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    requests = [Instance("loglikelihood", ("", text), 0, metadata) for text in ("a cat", "a dog", "red")]
    losses = [result.text[0] for result in model.loglikelihood(requests)]
    assert len(set(losses)) == 3 and all(loss > 0 for loss in losses)


def test_batch_size_must_be_a_number():
    for size in ("auto", 0, -1):
        with pytest.raises(ValueError, match=f"batch_size={size}"):
            EvoTokSimple(None, None, batch_size=size)


def test_generation_options_equal_those_of_generate():
    assert generation_options({}) == {"do_sample": False, "max_new_tokens": 1024}
    greedy = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
    assert generation_options(greedy) == {"do_sample": False, "max_new_tokens": 16, "num_beams": 1}
    assert (
        generation_options({"temperature": 0.2, "do_sample": False, "image_aspect_ratio": "pad"})["do_sample"] is False
    )
    assert generation_options({"temperature": 0.2, "top_p": None}) == {
        "do_sample": True,
        "temperature": 0.2,
        "max_new_tokens": 1024,
    }


def test_cut_at_ignores_empty_lines():
    assert cut_at("A. ASSISTANT: B", ["ASSISTANT:"]) == "A."
    assert cut_at("first\n\nsecond", ["\n\n"]) == "first\n\nsecond"
    assert cut_at("a cat", None) == cut_at("a cat", []) == "a cat"


def test_tasks_of_the_paper_have_their_metrics():
    manager = TaskManager("WARNING", model_name="evotok")
    from evotok.commands.evaluate import read_options
    from evotok.eval.suites.understanding import Options

    for benchmark in read_options(Options, "understanding", None, []).figures().values():
        path = manager.task_index[benchmark.task]["yaml_path"]
        with open(path, encoding="utf-8") as file:
            text = file.read()
        assert all(f"metric: {metric}\n" in text for metric in benchmark.metrics), benchmark.task
