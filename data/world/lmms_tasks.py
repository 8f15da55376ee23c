"""Writes the questions of `evotok eval mini` as tasks of the lmms-eval harness: a YAML, images and questions each.

    python -m evotok.data.world.lmms_tasks world-tasks --questions 64
    lmms-eval --model evotok --model_args pretrained=mini --tasks qa_color --include_path world-tasks

The tasks have no Python code: `datasets` reads the folder of images, and the harness's `exact_match` scores the
answers.
"""

import argparse
import json
from pathlib import Path

import yaml
from tqdm.auto import tqdm

from .evaluation import QUESTION_SETS, question_set
from .icons import load_world


TASKS = tuple(QUESTION_SETS)
MAX_NEW_TOKENS = 16


def build_task(name: str, folder: Path) -> dict:
    """Builds the YAML of a task whose images are in `folder`, as a dict."""
    return {
        "task": name,
        "dataset_path": "imagefolder",
        "dataset_kwargs": {"data_dir": str(folder)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": "image",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "until": []},
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": True,
            }
        ],
        "metadata": {"version": 1.0},
    }


def write_tasks(folder: Path, limit: int, seed: int = 0) -> None:
    """Writes all tasks, the same for the same arguments.

    Args:
        folder: for `<task>.yaml` and `<task>/test/` with PNGs and `metadata.jsonl`; files of the same names are
            replaced.
        limit: number of questions of each task.
        seed: of the questions.
    """
    world = load_world()
    for name in tqdm(TASKS, "tasks", leave=False, disable=None):
        images = folder / name / "test"
        images.mkdir(parents=True, exist_ok=True)
        lines = []
        for index, row in enumerate(question_set(world, name, limit, seed)):
            row["images"][0].save(images / f"{index:04}.png")
            question = row["messages"][0]["content"][-1]["text"]
            lines.append({"file_name": f"{index:04}.png", "question": question, "answer": row["answer"]})
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (images / "metadata.jsonl").write_text(text, encoding="utf-8")
        task = yaml.safe_dump(build_task(name, (folder / name).resolve()), sort_keys=False)
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Write questions about the world as tasks of the lmms-eval harness.")
    parser.add_argument("folder", type=Path, help="for --include_path of lmms-eval")
    parser.add_argument("--questions", type=int, default=512, help="of each task (default 512)")
    parser.add_argument("--seed", type=int, default=0, help="of the questions (default 0)")
    options = parser.parse_args(argv)
    write_tasks(options.folder, options.questions, options.seed)


if __name__ == "__main__":
    main()
