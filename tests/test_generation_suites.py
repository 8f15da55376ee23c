"""`evotok eval geneval` and `genai-bench` from the command to the results, on tiny models and the benchmarks' forms."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import build_chat_model
from geneval_materials import geneval_records, save_color_model, save_detector, save_rewriter, write_lines
from PIL import Image

import evotok.eval.text_to_image.prompt_rewriter as prompts_module
from evotok.cli import main
from evotok.commands.checkpoints import find_asset, load_multimodal
from evotok.data.processes import Workers
from evotok.eval.text_to_image.genai_bench import means, read_prompts, read_skills
from evotok.eval.text_to_image.geneval import TASKS
from evotok.eval.text_to_image.prompt_rewriter import rewritten
from evotok.eval.text_to_image.vqascore import QUESTION, VQAScorer


MINI = find_asset("evotok-mini")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Everything that the suites are pointed at: name -> path as text."""
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


def test_geneval(shelf, tmp_path, capsys):
    out = tmp_path / "out"
    assert geneval(shelf, out, f"rewriter={shelf / 'rewriter'}", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    note = json.loads((out / "pictures/drawn.json").read_text())
    assert note["checkpoint_sha256"] == results["checkpoint_sha256"], "those of other weights are not kept"
    figures = results["figures"]
    # Cats all over each picture: a cat is there, no dog is, and of five cats two are two, but not fewer than three.
    assert {task: figures[task] for task in TASKS} == dict.fromkeys(TASKS, 0.0) | {"single_object": 1.0}
    assert figures["overall"] == figures["overall_rewritten"] == pytest.approx(1 / 6)
    assert (figures["overall_paper"], figures["counting_paper"], figures["position_paper"]) == (0.75, 0.44, 0.69)
    assert (figures["overall_n"], figures["colors_n"], figures["colors_rewritten_n"]) == (12, 2, 2)
    assert len(results["data"]["prompts"]) == 64 and "at most 1 prompts of each task" in " ".join(results["notes"])
    for suffix in ("", "_rewritten"):
        lines = [json.loads(line) for line in (out / f"verdicts{suffix}.jsonl").read_text().splitlines()]
        assert len(lines) == 12 and lines[0]["correct"] and lines[4]["reason"] == "cat: 5, not fewer than 3"
        assert (out / f"pictures{suffix}" / lines[-1]["picture"]).is_file()
        assert json.loads((out / f"pictures{suffix}/00002/metadata.jsonl").read_text())["tag"] == "counting"
        assert Image.open(out / f"sample{suffix}.png").width > 400
    plain, other = ((out / f"pictures{suffix}/00000/samples/0000.png").read_bytes() for suffix in ("", "_rewritten"))
    assert plain != other
    assert "GPT-4o" in (out / "README.md").read_text()


def test_geneval_measures_again_over_its_pictures(shelf, tmp_path, monkeypatch, capsys):
    out, prompts = tmp_path / "out", shutil.copy(shelf / "evaluation_metadata.jsonl", tmp_path)
    assert geneval(shelf, out, f"prompts={prompts}") == 0
    before = json.loads((out / "results.json").read_text())["figures"]
    monkeypatch.setattr("evotok.eval.text_to_image.images.generate_images", None)
    assert geneval(shelf, out, f"prompts={prompts}", "--restart") == 0
    results = json.loads((out / "results.json").read_text())
    assert results["figures"] == before and results["dtype"] == "float32", "although no model was loaded"
    assert results["files"].keys() == {"checkpoint_settings", "prompts", "detector", "colors"}

    # A benchmark that has changed in its place is noticed.
    records = geneval_records()
    records[0]["prompt"] += ", drawn with a pencil"
    write_lines(tmp_path / "evaluation_metadata.jsonl", records)
    assert geneval(shelf, out, f"prompts={prompts}") == 2
    assert "has results of other files (prompts): give a new folder" in capsys.readouterr().err


def test_geneval_by_running_servers(shelf, tmp_path, monkeypatch):
    """The same pictures and figures, and no model is loaded here."""
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    from served import running

    assert geneval(shelf, tmp_path / "here") == 0
    with running(load_multimodal(str(shelf / "tiny"))) as served:
        monkeypatch.setattr("evotok.commands.checkpoints.load_multimodal", pytest.fail)
        assert geneval(shelf, tmp_path / "there", f"engine={served.url}, {served.url}/v1") == 0
    here, there = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("here", "there"))
    assert here["figures"] == there["figures"] and (here["dtype"], there["dtype"]) == ("float32", "served")
    for path in (tmp_path / "here").rglob("samples/*.png"):
        other = tmp_path / "there" / path.relative_to(tmp_path / "here")
        difference = np.asarray(Image.open(path)).astype(int) - np.asarray(Image.open(other))
        assert abs(difference).max() <= 1, "where sums are rounded"
    assert geneval(shelf, tmp_path / "there") == 0, "results are those of whoever generated them"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompts=null"], "prompts: none given"),
        (["prompts=none.jsonl"], "none.jsonl: no such file"),
        (["detector=null"], "detector: none given"),
        (["detector=none"], "detector=none: no config.json there"),
        (["colors=none"], "colors=none: no config.json there"),
        (["rewriter=none"], "rewriter=none: no config.json there"),
        (["detector={shelf}/rewriter"], "a qwen2: give a Mask2Former"),
        (["colors={shelf}/rewriter"], "embeds no text"),
        (["limit=0"], "limit=0 must be at least 1"),
    ],
)
def test_geneval_names_what_is_missing_before_it_begins(shelf, tmp_path, capsys, words, message):
    assert geneval(shelf, tmp_path / "out", *(word.format(shelf=shelf) for word in words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_networks_are_named_before_anything_is_drawn(shelf, tmp_path, capsys):
    def spoil(option, file, content):
        folder = shutil.copytree(shelf / option, tmp_path / f"{option}-{len(list(tmp_path.iterdir()))}")
        path = folder / file
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        assert geneval(shelf, tmp_path / "out", f"{option}={folder}") == 2, (option, file)
        said = capsys.readouterr().err
        assert f"{option}={folder}: cannot be read (" in said and said.count("\n") == 1, said

    weights = (shelf / "detector/model.safetensors").read_bytes()
    spoil("detector", "model.safetensors", weights[:-100])
    spoil("detector", "model.safetensors.index.json", b'{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    spoil("detector", "preprocessor_config.json", None)
    spoil("colors", "config.json", b"{")
    spoil("colors", "tokenizer.json", b"[]")
    spoil("rewriter", "model.safetensors", b"")
    assert not (tmp_path / "out").exists()


def test_a_detector_of_other_classes_is_refused(shelf, tmp_path, capsys):
    records = geneval_records()
    records[0]["include"][0] = {"class": "zebra", "count": 1}
    path = write_lines(tmp_path / "evaluation_metadata.jsonl", records)
    assert geneval(shelf, tmp_path / "out", f"prompts={path}") == 2
    assert "knows no 'zebra'" in capsys.readouterr().err


# --- rewriting -------------------------------------------------------------------------------------------------------


def test_prompts_are_rewritten_once(shelf, tmp_path, monkeypatch):
    path, prompts = tmp_path / "rewritten.jsonl", ["a cat", "a dog", "the red one"]
    first = rewritten(prompts, str(shelf / "rewriter"), "v1", path, Workers(), 2)
    assert len(first) == 3 and all(text and "\n" not in text for text in first)
    assert [json.loads(line)["prompt"] for line in path.read_text().splitlines()] == prompts
    monkeypatch.setattr(prompts_module, "Rewriter", None)
    assert rewritten(prompts, str(shelf / "rewriter"), "v1", path, Workers(), 2) == first
    for asked, version in ((prompts[:2], "v1"), (prompts, "v2")):  # of other prompts or of another model: no use
        with pytest.raises(TypeError):
            rewritten(asked, str(shelf / "rewriter"), version, path, Workers(), 2)


def test_a_rewriter_without_a_chat_template(tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        prompts_module.check_rewriter(save_rewriter(tmp_path / "plain", chat=False))


# --- GenAI-Bench -----------------------------------------------------------------------------------------------------


def genai(shelf, out, *words):
    given = {"prompts": "genai_image.json", "skills": "genai_skills.json"}
    options = [*(f"{key}={shelf / name}" for key, name in given.items()), f"scorer={MINI}"]
    return main(["eval", "genai-bench", str(shelf / "tiny"), *options, "limit=4", *words, "--out", str(out)])


def test_genai_bench(shelf, tmp_path, capsys):
    out = tmp_path / "out"
    assert genai(shelf, out, "images=2", f"rewriter={shelf / 'rewriter'}", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    figures = results["figures"]
    assert (figures["basic_paper"], figures["advanced_paper"]) == (0.87, 0.66)
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["00001", "00132", "00264", "00396"]
    assert all(len(line["scores"]) == 2 and 0 < min(line["scores"]) <= max(line["scores"]) < 1 for line in lines)
    for skill, own in (("basic", lines[:1]), ("advanced", lines[1:]), ("all", lines)):
        assert figures[skill] == pytest.approx(sum(sum(line["scores"]) / 2 for line in own) / len(own)), skill
    assert [row["skill"] for row in results["tables"]["skills"]] == ["basic", "advanced"], "counting is not among them"
    assert figures["all_rewritten"] != figures["all"]
    names = {path.name for path in (out / "pictures").iterdir()}
    assert {"00001.jpeg", "00001-2.jpeg"} < names and len(names) == 9


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("genai_image.json", "[]", "damaged"),
        ("genai_image.json", "{", "damaged"),
        ("genai_image.json", '{"00000": {"prompt": "a cat"}}', "1 prompts, GenAI-Bench has 527 or 1600"),
        ("genai_image.json", '{"00000": "a cat"}', "'00000' has no prompt"),
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


def test_genai_bench_names_what_is_missing_before_it_begins(shelf, tmp_path, capsys):
    for words, message in [
        (["skills=null"], "skills: none given"),
        (["scorer=null"], "scorer: none given"),
        ([f"scorer={shelf / 'rewriter'}"], "reads no images: give an image-text-to-text model"),
        ([f"scorer={shelf / 'tiny'}"], "its tokenizer has no token for Yes: give another model"),
    ]:
        assert genai(shelf, tmp_path / "out", *words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_means_over_skills():
    skills = {"basic": ["1", "2"], "advanced": ["3"], "counting": ["4"]}
    found = means({"1": [1.0, 0.0], "2": [1.0, 1.0], "3": [0.1], "9": [0.9]}, skills)
    assert found == pytest.approx({"basic": 0.75, "advanced": 0.1, "all": (0.5 + 1 + 0.1) / 3})


def test_vqascore_is_the_probability_of_the_answer():
    """In a batch of questions of different lengths, as the model's own forward pass gives it for one question."""
    scorer = VQAScorer(str(MINI), torch.device("cpu"))
    images = [Image.new("RGB", (64, 64), color) for color in ("red", "white")]
    texts = ["a frog", "two frogs left of a large pizza"]
    found = scorer(images, texts)
    for image, text, score in zip(images, texts, found, strict=True):
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
