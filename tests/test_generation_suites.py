"""`evotok eval geneval` and `genai-bench` from the command to the results, on tiny models."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import build_chat_model
from geneval_materials import geneval_records, save_color_model, save_detector, save_rewriter, write_lines
from PIL import Image

import evotok.eval.text_to_image.prompt_rewriter as rewriter_module
from evotok.cli import main
from evotok.commands.checkpoints import find_asset, load_multimodal
from evotok.data.processes import Workers
from evotok.eval.suites import genai_bench as genai_suite
from evotok.eval.suites import geneval as geneval_suite
from evotok.eval.text_to_image.genai_bench import QUESTION, VQAScorer, read_prompts, read_skills
from evotok.eval.text_to_image.geneval import TASKS
from evotok.eval.text_to_image.prompt_rewriter import rewrite_prompts


MINI = find_asset("evotok-mini")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Returns the folder with all files and checkpoints that the suites need."""
    folder = tmp_path_factory.mktemp("shelf")
    model, processor = build_chat_model()
    model.save_pretrained(folder / "tiny")
    processor.save_pretrained(folder / "tiny")
    write_lines(folder / "evaluation_metadata.jsonl", geneval_records())
    numbers = range(1, 528)
    (folder / "genai_image.json").write_text(
        json.dumps({f"{n:05d}": {"id": f"{n:05d}", "prompt": "a cat" if n % 2 else "a dog"} for n in numbers})
    )
    skills = {"basic": [n for n in numbers if n % 2], "advanced": [n for n in numbers if not n % 2], "counting": [2]}
    (folder / "genai_skills.json").write_text(json.dumps(skills))
    save_detector(folder / "detector", sees="cat")
    save_color_model(folder / "colors")
    save_rewriter(folder / "rewriter")
    return folder


def geneval(shelf, out, *words):
    given = {"prompts": "evaluation_metadata.jsonl", "detector": "detector", "colors": "colors"}
    options = [f"{key}={shelf / name}" for key, name in given.items()]
    return main(["eval", "geneval", str(shelf / "tiny"), *options, "limit=1", "images=2", *words, "--out", str(out)])


@pytest.fixture(scope="module")
def generated(shelf, tmp_path_factory):
    """Returns the folder of results of GenEval, with rewritten prompts; its prompts are a copy."""
    folder = tmp_path_factory.mktemp("geneval")
    prompts = shutil.copy(shelf / "evaluation_metadata.jsonl", folder)
    words = [f"prompts={prompts}", f"rewriter={shelf / 'rewriter'}"]
    assert geneval(shelf, folder / "out", *words) == 0
    return folder / "out", words


def test_geneval_judges_images_of_prompts_and_of_rewritten_ones(generated):
    out, _ = generated
    results = json.loads((out / "results.json").read_text())
    note = json.loads((out / "pictures/drawn.json").read_text())
    assert note["checkpoint_sha256"] == results["checkpoint_sha256"], "images of other weights are not kept"
    figures = results["figures"]
    # Five cats all over each image: a cat is there, no dog is, and they are two, but not fewer than three.
    assert {task: figures[task] for task in TASKS} == dict.fromkeys(TASKS, 0.0) | {"single_object": 1.0}
    assert figures["overall"] == figures["overall_rewritten"] == pytest.approx(1 / 6)
    assert (figures["overall_paper"], figures["counting_paper"], figures["position_paper"]) == (0.75, 0.44, 0.69)
    assert (figures["overall_n"], figures["colors_n"], figures["colors_rewritten_n"]) == (12, 2, 2)
    assert results["files"].keys() == {"checkpoint_settings", "prompts", "detector", "colors", "rewriter"}
    assert "at most 1 prompts of each task" in " ".join(results["notes"]) and results["dtype"] == "float32"
    for suffix in ("", "_rewritten"):
        lines = [json.loads(line) for line in (out / f"verdicts{suffix}.jsonl").read_text().splitlines()]
        assert len(lines) == 12 and lines[0]["correct"] and lines[4]["reason"] == "cat: 5, not fewer than 3"
        assert (out / f"pictures{suffix}" / lines[-1]["picture"]).is_file()
        assert json.loads((out / f"pictures{suffix}/00002/metadata.jsonl").read_text())["tag"] == "counting"
        assert Image.open(out / f"sample{suffix}.png").width > 400
    plain, other = ((out / f"pictures{suffix}/00000/samples/0000.png").read_bytes() for suffix in ("", "_rewritten"))
    assert plain != other


def test_geneval_restarted_judges_existing_images(shelf, generated, monkeypatch, capsys):
    out, words = generated
    before = json.loads((out / "results.json").read_text())
    monkeypatch.setattr("evotok.commands.checkpoints.load_multimodal", pytest.fail)
    monkeypatch.setattr(rewriter_module, "Rewriter", pytest.fail)
    assert geneval(shelf, out, *words, "--restart") == 0
    after = json.loads((out / "results.json").read_text())
    assert after["figures"] == before["figures"] and after["dtype"] == "float32"
    records = geneval_records()
    records[0]["prompt"] += ", in pencil"
    write_lines(out.parent / "evaluation_metadata.jsonl", records)
    assert geneval(shelf, out, *words) == 2
    assert "has results of other files (prompts): give a new folder" in capsys.readouterr().err


def test_geneval_by_servers_equals_one_process(shelf, generated, tmp_path, monkeypatch):
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    from served import running

    here, there = generated[0], tmp_path / "there"
    with running(load_multimodal(str(shelf / "tiny"))) as served:
        monkeypatch.setattr("evotok.commands.checkpoints.load_multimodal", pytest.fail)
        assert geneval(shelf, there, f"engine={served.url}, {served.url}/v1") == 0
    results = json.loads((there / "results.json").read_text())
    plain = {name: value for name, value in results["figures"].items() if "rewritten" not in name}
    assert plain.items() <= json.loads((here / "results.json").read_text())["figures"].items()
    assert results["dtype"] == "served"
    for path in there.rglob("samples/*.png"):
        other = np.asarray(Image.open(here / path.relative_to(there)))
        assert abs(np.asarray(Image.open(path)).astype(int) - other).max() <= 1, "where sums are rounded"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": None}, "prompts: none given"),
        ({"prompts": "none.jsonl"}, "none.jsonl: no such file"),
        ({"detector": None}, "detector: none given"),
        ({"colors": "none"}, "colors=none: no config.json there"),
        ({"rewriter": "none"}, "rewriter=none: no config.json there"),
        ({"detector": "{shelf}/rewriter"}, "a qwen2: give a Mask2Former"),
        ({"colors": "{shelf}/rewriter"}, "embeds no text"),
        ({"prompts": "{shelf}/zebra.jsonl"}, "has no class 'zebra'"),
    ],
)
def test_geneval_check_refuses_missing_and_wrong_files(shelf, changed, message):
    records = geneval_records()
    records[0]["include"][0] = {"class": "zebra", "count": 1}
    write_lines(shelf / "zebra.jsonl", records)
    given = {"prompts": "{shelf}/evaluation_metadata.jsonl", "detector": "{shelf}/detector", "colors": "{shelf}/colors"}
    given = {key: value and value.format(shelf=shelf) for key, value in (given | changed).items()}
    with pytest.raises(ValueError, match=message):
        geneval_suite.check(geneval_suite.Options(**given), ["tiny"])


@pytest.mark.parametrize(
    ("option", "file", "content"),
    [
        ("detector", "model.safetensors", b"cut off"),
        ("detector", "model.safetensors.index.json", b'{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'),
        ("detector", "preprocessor_config.json", None),
        ("colors", "config.json", b"{"),
        ("colors", "tokenizer.json", b"[]"),
    ],
)
def test_geneval_check_names_damaged_networks_in_one_line(shelf, tmp_path, option, file, content):
    folder = shutil.copytree(shelf / option, tmp_path / option)
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    given = {"prompts": "evaluation_metadata.jsonl", "detector": "detector", "colors": "colors"}
    given = {key: str(shelf / name) for key, name in given.items()} | {option: str(folder)}
    with pytest.raises(ValueError, match=r"cannot be read \(") as error:
        geneval_suite.check(geneval_suite.Options(**given), ["tiny"])
    assert f"{option}={folder}: " in str(error.value) and "\n" not in str(error.value)


def test_rewrite_prompts_reuses_its_result(shelf, tmp_path, monkeypatch):
    path, prompts, checkpoint = tmp_path / "rewritten.jsonl", ["a cat", "a dog", "the red one"], str(shelf / "rewriter")
    first = rewrite_prompts(prompts, checkpoint, "v1", path, Workers(), 2)
    assert len(first) == 3 and all(text and "\n" not in text for text in first)
    assert [json.loads(line)["prompt"] for line in path.read_text().splitlines()] == prompts
    monkeypatch.setattr(rewriter_module, "Rewriter", None)
    assert rewrite_prompts(prompts, checkpoint, "v1", path, Workers(), 2) == first
    for others, fingerprint in ((prompts[:2], "v1"), (prompts, "v2")):
        with pytest.raises(TypeError):
            rewrite_prompts(others, checkpoint, fingerprint, path, Workers(), 2)


def test_genai_bench_scores_prompts_by_skill(shelf, tmp_path):
    out, given = (
        tmp_path / "out",
        {"prompts": "genai_image.json", "skills": "genai_skills.json", "rewriter": "rewriter"},
    )
    options = [*(f"{key}={shelf / name}" for key, name in given.items()), f"scorer={MINI}", "limit=4", "images=2"]
    assert main(["eval", "genai-bench", str(shelf / "tiny"), *options, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    figures = results["figures"]
    assert (figures["basic_paper"], figures["advanced_paper"]) == (0.87, 0.66)
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["00001", "00132", "00264", "00396"]
    assert all(len(line["scores"]) == 2 and 0 < min(line["scores"]) <= max(line["scores"]) < 1 for line in lines)
    for skill, own in (("basic", lines[:1]), ("advanced", lines[1:]), ("all", lines)):
        assert figures[skill] == pytest.approx(sum(sum(line["scores"]) / 2 for line in own) / len(own)), skill
    assert [row["skill"] for row in results["tables"]["skills"]] == ["basic", "advanced"], "no prompt counts"
    assert figures["all_rewritten"] != figures["all"]
    names = {path.name for path in (out / "pictures").iterdir()}
    assert {"00001.jpeg", "00001-2.jpeg"} < names and len(names) == 9


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("genai_image.json", "[]", "damaged"),
        ("genai_image.json", '{"00000": {"prompt": "a cat"}}', "1 prompts, GenAI-Bench has 527 or 1600"),
        ("genai_image.json", '{"../x": {"prompt": "a cat"}}', "has no prompt"),
        ("genai_skills.json", '{"basic": [1600]}', "has prompt 1600"),
        ("genai_skills.json", '{"basic": 3}', "is no list of numbers"),
        ("genai_skills.json", '{"basic": [1]}', "no prompts of skill 'advanced'"),
    ],
)
def test_genai_bench_refuses_other_files(shelf, tmp_path, file, text, message):
    for name in ("genai_image.json", "genai_skills.json"):
        (tmp_path / name).write_text(text if name == file else (shelf / name).read_text())
    with pytest.raises(ValueError, match=message):
        read_skills(tmp_path / "genai_skills.json", read_prompts(tmp_path / "genai_image.json"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"skills": None}, "skills: none given"),
        ({"scorer": None}, "scorer: none given"),
        ({"scorer": "rewriter"}, "reads no images: give an image-text-to-text model"),
        ({"scorer": "tiny"}, "its tokenizer has no token for Yes: give another model"),
    ],
)
def test_genai_bench_check_refuses_missing_and_wrong_models(shelf, changed, message):
    given = {"prompts": "genai_image.json", "skills": "genai_skills.json", "scorer": "tiny"} | changed
    options = genai_suite.Options(**{key: value and str(shelf / value) for key, value in given.items()})
    with pytest.raises(ValueError, match=message):
        genai_suite.check(options, ["tiny"])


def test_vqa_scorer_agrees_with_forward():
    scorer = VQAScorer(str(MINI), torch.device("cpu"))
    images = [Image.new("RGB", (64, 64), color) for color in ("red", "white")]
    texts = ["a frog", "two frogs left of a large pizza"]
    for image, text, score in zip(images, texts, scorer(images, texts), strict=True):
        content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION.format(text)}]
        inputs = scorer.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            likely = scorer.model(**inputs).logits[0, -1].softmax(-1)
        assert score == pytest.approx(likely[scorer.answer].sum().item(), rel=1e-3)
