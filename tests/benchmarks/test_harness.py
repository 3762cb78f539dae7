"""What long benchmarks share: a campaign that was cut goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness import KeptRows


def test_a_campaign_that_was_cut_makes_the_other_rows_alone(tmp_path: Path) -> None:
    file, made = tmp_path / "lines.jsonl", []

    def arm(name: str) -> dict[str, str]:
        made.append(name)
        if name == "third":
            raise KeyboardInterrupt
        return {"arm": name}

    def campaign(steps: int) -> list[dict[str, str]]:
        kept = KeptRows(file, {"steps": steps})
        return [kept.row(name, lambda name=name: arm(name)) for name in ("first", "second", "third")]  # type: ignore[misc]

    with pytest.raises(KeyboardInterrupt):
        campaign(24)
    file.write_text(file.read_text() + '\n{"settings": {"steps": 24}, "name": "thi')  # and a line that was cut
    with pytest.raises(KeyboardInterrupt):
        campaign(24)
    assert made == ["first", "second", "third", "third"], "finished rows are taken from the file"
    with pytest.raises(KeyboardInterrupt):
        campaign(12)
    assert made[4:] == ["first", "second", "third"], "rows of other settings are not"


def test_without_a_file_nothing_is_kept() -> None:
    assert KeptRows(None, {}).row("one", lambda: {"n": 1}) == {"n": 1}
