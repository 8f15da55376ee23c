"""The manifest of a checkpoint: every damage is found, by one process or shared out among several."""

import json

import pytest

from evotok.training.resuming.manifest import (
    MANIFEST,
    UNFINISHED,
    begin_manifest,
    discard,
    find_damage,
    finish_manifest,
    hash_share,
)


NAMES = (
    "trainer_state.json", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth",
    "global_step4/mp_rank_00_model_states.pt",
    "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A finished checkpoint as two processes would write it."""
    folder = tmp_path / "checkpoint-4"
    begin_manifest(folder)
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"what {name} holds")
    finish_manifest(folder, hash_share(folder, 0, 2) | hash_share(folder, 1, 2))
    return folder


def test_each_process_hashes_what_it_wrote_and_all_files_are_hashed(folder):
    first, second = hash_share(folder, 0, 2), hash_share(folder, 1, 2)
    assert set(second) == {"rng_state_1.pth", "global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt"}
    assert set(first) | set(second) == set(NAMES) and not set(first) & set(second)
    assert hash_share(folder) == first | second
    assert find_damage(folder) is None and [find_damage(folder, rank, 2) for rank in (0, 1)] == [None, None]


def spoil(path, how):
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
        return
    middle = len(content) // 2
    spoiled = {"cut": content[:middle], "emptied": b"", "zeroed": bytes(len(content))}
    spoiled["flipped"] = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes(spoiled[how])


@pytest.mark.parametrize("how", ["cut", "emptied", "zeroed", "flipped", "removed"])
@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_damage_to_any_file_is_found(folder, name, how):
    spoil(folder / name, how)
    assert find_damage(folder) not in (None, UNFINISHED)
    assert any(find_damage(folder, rank, 2) for rank in (0, 1))
    if how in ("cut", "emptied", "removed"):
        assert find_damage(folder, contents=False) is not None


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
)
def test_a_manifest_of_other_values_is_refused(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text()) | change
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert find_damage(folder) is not None


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "4", '{"finished": true}', "9" * 5000])
def test_a_manifest_that_is_none_is_damaged(folder, text):
    (folder / MANIFEST).write_text(text)
    assert find_damage(folder) == f"{MANIFEST} is damaged"


def test_one_that_is_being_written_or_removed_is_no_damaged_one(folder, tmp_path):
    assert find_damage(tmp_path / "checkpoint-5") == UNFINISHED
    begin_manifest(tmp_path / "checkpoint-6")
    assert find_damage(tmp_path / "checkpoint-6") == UNFINISHED
    discard(folder)
    discard(tmp_path / "checkpoint-6")
    assert not list(tmp_path.iterdir())


def test_another_step_than_the_folder_says_is_refused(folder):
    moved = folder.rename(folder.with_name("checkpoint-9"))
    assert "of step 4" in find_damage(moved)
