"""The manifest of a checkpoint: every damage is found, by one process or by several that share the files."""

import json

import pytest

from evotok.training.resuming.manifest import (
    MANIFEST,
    UNFINISHED,
    begin_manifest,
    discard,
    find_damage,
    finish_manifest,
    hash_files,
)


NAMES = (
    "trainer_state.json", "rng_state_0.pth", "rng_state_1.pth", "global_step4/mp_rank_00_model_states.pt",
    "global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt",
)  # fmt: skip
DAMAGES = ("cut", "emptied", "zeroed", "flipped", "removed")


@pytest.fixture
def folder(tmp_path):
    """Returns a finished checkpoint as two processes write it."""
    folder = tmp_path / "checkpoint-4"
    begin_manifest(folder)
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    finish_manifest(folder, hash_files(folder, 0, 2) | hash_files(folder, 1, 2))
    return folder


def spoil(path, damage):
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
        return
    middle = len(content) // 2
    spoiled = {"cut": content[:middle], "emptied": b"", "zeroed": bytes(len(content))}
    spoiled["flipped"] = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes(spoiled[damage])


def test_hash_files_shares_all_files_among_the_processes(folder):
    first, second = hash_files(folder, 0, 2), hash_files(folder, 1, 2)
    assert set(second) == {"rng_state_1.pth", "global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt"}
    assert set(first) | set(second) == set(NAMES) and not set(first) & set(second)
    assert hash_files(folder) == first | second
    assert find_damage(folder) is None and [find_damage(folder, rank, 2) for rank in (0, 1)] == [None, None]


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_find_damage_finds_damage_to_any_file(folder, name):
    content = (folder / name).read_bytes()
    for damage in DAMAGES:
        spoil(folder / name, damage)
        assert find_damage(folder) not in (None, UNFINISHED), damage
        assert any(find_damage(folder, rank, 2) for rank in (0, 1)), damage
        if damage in ("cut", "emptied", "removed"):
            assert find_damage(folder, contents=False) is not None, damage
        (folder / name).write_bytes(content)
    assert find_damage(folder) is None


@pytest.mark.parametrize(
    "change",
    [
        {"step": 10**9},
        {"step": "4"},
        {"format": 2},
        {"finished": 1},
        {"files": []},
        {"files": {"../../x": [1, "a"]}},
        {"files": {"/etc/passwd": [1, "a"]}},
        {"files": {"trainer_state.json": 3}},
        {"files": {}},
    ],
    ids=str,
)
def test_find_damage_refuses_manifests_with_other_values(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text()) | change
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert find_damage(folder) is not None


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"finished": true}', "9" * 5000], ids=len)
def test_find_damage_reports_unreadable_manifests(folder, text):
    (folder / MANIFEST).write_text(text)
    assert find_damage(folder) == f"{MANIFEST} is damaged"


def test_unfinished_and_discarded_checkpoints_are_not_damaged(folder, tmp_path):
    assert find_damage(tmp_path / "checkpoint-5") == UNFINISHED
    begin_manifest(tmp_path / "checkpoint-6")
    assert find_damage(tmp_path / "checkpoint-6") == UNFINISHED
    discard(folder)
    discard(tmp_path / "checkpoint-6")
    assert not list(tmp_path.iterdir())


def test_find_damage_reports_another_step_than_the_name(folder):
    moved = folder.rename(folder.with_name("checkpoint-9"))
    assert "of step 4" in find_damage(moved)
