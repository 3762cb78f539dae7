from __future__ import annotations

from pathlib import Path

import pytest

from potstill.train import checkpoints


def write(folder: Path, step: int) -> Path:
    partial, final = checkpoints.aside(folder, step), folder / f"checkpoint-{step}"
    (partial / "inner").mkdir(parents=True)
    (partial / "weights").write_bytes(b"w" * 100)
    (partial / "inner" / "state").write_bytes(b"s" * 10)
    checkpoints.seal(partial, final, {"step": step})
    return final


def test_a_sealed_checkpoint_is_whole_and_remembers_its_facts(tmp_path: Path) -> None:
    made = write(tmp_path, 12)
    assert checkpoints.is_whole(made)
    assert checkpoints.facts_of(made) == {"step": 12}
    assert not checkpoints.aside(tmp_path, 12).exists()


@pytest.mark.parametrize("damage", ["short", "missing", "no list", "half a list", "inner"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    older, newer = write(tmp_path, 4), write(tmp_path, 8)
    match damage:
        case "short":
            (newer / "weights").write_bytes(b"w" * 99)
        case "missing":
            (newer / "weights").unlink()
        case "no list":
            (newer / checkpoints.COMPLETE).unlink()
        case "half a list":
            (newer / checkpoints.COMPLETE).write_text((newer / checkpoints.COMPLETE).read_text()[:40])
        case "inner":
            (newer / "inner" / "state").unlink()
    assert checkpoints.last_whole(tmp_path) == (older, [newer])


def test_the_newest_is_by_step_not_by_name(tmp_path: Path) -> None:
    write(tmp_path, 9), write(tmp_path, 10)
    assert checkpoints.last_whole(tmp_path)[0] == tmp_path / "checkpoint-10"


def test_at_least_two_and_the_best_are_kept(tmp_path: Path) -> None:
    made = [write(tmp_path, step) for step in (1, 2, 3, 4)]
    checkpoints.rotate(tmp_path, 1, best=made[0])
    assert checkpoints.checkpoints_in(tmp_path) == [made[0], made[2], made[3]]


def test_a_torn_checkpoint_does_not_count_among_those_kept(tmp_path: Path) -> None:
    made = [write(tmp_path, step) for step in (1, 2, 3)]
    (made[2] / "weights").unlink()
    checkpoints.rotate(tmp_path, 2, best=None)
    assert made[0].exists() and made[1].exists()


def test_what_an_interrupted_save_left_is_swept_away(tmp_path: Path) -> None:
    kept = write(tmp_path, 1)
    checkpoints.aside(tmp_path, 2).mkdir()
    (tmp_path / ".old-checkpoint-0").mkdir()
    checkpoints.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_nothing_to_resume_from_is_said(tmp_path: Path) -> None:
    assert checkpoints.last_whole(tmp_path) == (None, [])
