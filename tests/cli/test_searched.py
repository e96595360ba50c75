"""A search on its way: its rows follow its trials' folders, and are drawn for terminals of all widths and for pipes."""

from __future__ import annotations

import doctest
import io
import json
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from luthier import runs
from luthier.cli import leaderboard, searched, wave_table
from luthier.runs import Noted, Started
from tests.cli import searches
from tests.cli.conftest import Luthier
from tests.cli.test_progress import on_terminal

WIDTHS = (60, 80, 140)


def looked(search: runs.Run) -> searched.Following:
    followed = searched.Following(search)
    followed.look()
    return followed


def test_doctests() -> None:
    assert not any(doctest.testmod(each).failed for each in (searched, wave_table, leaderboard))


def test_rows_tell_what_the_trials_folders_tell(tmp_path: Path) -> None:
    followed = looked(searches.wave(tmp_path))
    first, best, pruned, failed, working, queued = followed.sorted()
    assert (first.state, first.share, first.kept) == ("done", 1.0, 1.0)
    assert best.curve[-1] == (40, 0.5) and best.kept == 0.4  # of the weights it keeps, not of the last
    assert (pruned.state, pruned.share, len(pruned.curve)) == ("pruned", 0.4, 2)
    assert failed.state == "failed" and (working.share, queued.share) == (0.6, 0.0)
    assert followed.goal.best(followed.sorted()) is best
    assert followed.left() == 8 - 5


def test_a_metric_is_best_where_it_is_highest_and_seeds_do_not_compete(tmp_path: Path) -> None:
    search = searches.search(tmp_path, objective="exact_match")
    searches.trial(search, 0, "done", (1.0,))
    searches.trial(search, 1, "done", (0.4,))
    searches.trial(search, 2, "done", (0.1,), by="seed")
    followed = looked(search)
    best = followed.goal.best(followed.sorted())
    assert best is not None and (best.number, best.kept) == (1, 0.9)


def test_each_look_reads_what_is_new_and_a_step_made_again_counts_once(tmp_path: Path) -> None:
    search = searches.search(tmp_path)
    run = searches.trial(search, 0, "running", (2.0, 1.5))
    followed = looked(search)
    assert followed.look() == []
    searches.tell(run, 3, 1.2)
    assert [type(event).__name__ for event in followed.look()] == ["Stepped"] * 8 + ["Evaluated"]
    runs.append(run.path, Started(run.id, 16, time.time(), 40, 160, 4096))  # continues from a checkpoint
    searches.tell(run, 3, 1.1)
    followed.look()
    [row] = followed.sorted()
    assert row.curve == ((8, 2.0), (16, 1.5), (24, 1.1)) and row.kept == 1.1


def test_the_time_left_is_said_once_trials_have_ended(tmp_path: Path) -> None:
    search = searches.search(tmp_path, trials=4)
    searches.trial(search, 0, "done", (1.0,) * 5)
    followed, now = looked(search), time.time()
    assert followed.seconds_left(now) is None and "left" not in searched.counts(followed, now)
    searches.trial(search, 1, "done", (1.0,) * 5)
    searches.trial(search, 2, "running", (1.0,))
    followed.look()
    # two trials and a fifth in a minute; one and four fifths are left
    assert followed.seconds_left(now) == pytest.approx(60 / 2.2 * 1.8, rel=0.01)
    assert searched.counts(followed, now) == "2 done · 1 running · 1 to come · about 0:49 left"
    runs.update(search.path, {"facts": {"best": f"{search.id}.000"}})
    searches.note(search, "progress", "trial 000 answers the test")
    followed.look()
    assert searched.counts(followed, now).endswith("trial 000 answers the test")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("height", [8, 40])
def test_the_picture_fits_terminals_of_all_sizes(tmp_path: Path, width: int, height: int) -> None:
    followed = looked(searches.wave(tmp_path))
    drawn = Console(file=io.StringIO(), width=width, height=height)
    drawn.print(wave_table.picture(followed, time.time(), width, height))
    assert isinstance(drawn.file, io.StringIO)
    lines = drawn.file.getvalue().splitlines()
    assert len(lines) <= height and max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert re.search(r"^001★ .* 0\.4$", text, re.M) and re.search(r"^004 .*60 %", text, re.M) and "learni" in text
    assert ("more: luthier show" in text) == (height == 8)
    if height > 8:
        assert "pruned 40 %" in text and "failed" in text and "not finite" in text
    if width > 60:
        assert "▁" in text and "·" in text and "━" in text


def test_the_sparklines_share_a_scale_that_no_bad_start_flattens() -> None:
    goal = searched.Goal("loss", False, 3, ())

    def row(number: int, *scores: float) -> searched.Row:
        return searched.Row(number, f"s.{number}", "sampler", {}, "done", curve=tuple(enumerate(scores)))

    rows = [row(0, 2.0, 1.0, 0.0), row(1, 1.0, 0.5, 0.0), row(2, 900.0, 2.0), row(3, float("nan"), 1.0)]
    scale = wave_table._scale(rows, goal)
    assert scale == (0.0, 2.0)
    assert [wave_table.sparks(each, scale, 8) for each in rows] == ["█▅▁", "▅▃▁", "██", "×▅"]
    long = row(4, *(2 - i / 50 for i in range(101)))
    assert wave_table.sparks(long, scale, 5) == "█▆▅▃▁" and wave_table.sparks(long, scale, 0) == ""


def test_where_there_is_no_room_those_at_work_and_the_best_are_shown(tmp_path: Path) -> None:
    followed = looked(searches.wave(tmp_path))
    shown = wave_table.chosen(followed.sorted(), followed.goal, 2)
    assert [row.number for row in shown] == [1, 4]


def test_the_best_is_green_and_the_pruned_are_greyed(tmp_path: Path) -> None:
    followed = looked(searches.wave(tmp_path))
    _, *lines = wave_table.table(followed.sorted(), followed.goal, 80)
    assert [line.style for line in lines] == ["", "green", "dim", "red", "", "dim"]


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_on_a_terminal_the_table_is_alive(tmp_path: Path, width: int, colour: bool) -> None:
    script = tmp_path / "draw.py"
    script.write_text(
        "import sys\nfrom tests.cli.test_searched import staged\nfrom pathlib import Path\nstaged(Path(sys.argv[1]))\n"
    )
    drawn = on_terminal(
        [sys.executable, str(script), str(tmp_path / "home")],
        {"COLUMNS": str(width), "LINES": "30"} | ({} if colour else {"NO_COLOR": "1"}),
    )
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]m", drawn)) == colour
    assert "004 " in plain and "pruned" in plain and "001★" in plain
    assert "trial 004 is tried again" in plain and "done: trial 001 is the best of 6" in plain
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]+", plain)) <= width
    assert re.search(r"004★? .*80 %", plain)  # what was told while it was drawn


def staged(home: Path) -> None:
    """Follow a search whose trials go on meanwhile."""
    search = searches.wave(home)
    working = runs.load(search.path.parent / f"{search.id}.004")

    def go_on() -> None:
        time.sleep(0.3)
        searches.tell(working, 4, 0.6)
        searches.note(search, "retry", "trial 004 is tried again")
        time.sleep(0.3)
        searches.end(search)

    searched.LOOK_SECONDS = 0.05
    threading.Thread(target=go_on).start()
    searched.follow(search, Console(stderr=True))


def test_in_a_pipe_lines_are_few_and_plain(tmp_path: Path) -> None:
    search = searches.wave(tmp_path)
    searches.note(search, "progress", "measuring what pays")
    searches.note(search, "trial", "000 is done: loss 1 (method.rank 8)")
    searches.end(search)
    heard = io.StringIO()
    searched.follow(search, Console(file=heard, highlight=False))
    assert heard.getvalue().splitlines() == [
        "measuring what pays",
        "000 is done: loss 1 (method.rank 8)",
        "done: trial 001 is the best of 6",
        "004: learning_rate 0.0158, rank 8, dropout 0.1: 40 steps",
    ]


def test_as_json_every_event_is_a_line_with_its_run(tmp_path: Path) -> None:
    search = searches.wave(tmp_path)
    searches.end(search)
    heard: list[str] = []
    searched.follow(search, Console(file=io.StringIO()), heard.append)
    told = [json.loads(line) for line in heard]
    assert {each["run"] for each in told} == {search.id, f"{search.id}.004"}
    assert told[0]["event"] == "Finished" and {"Started", "Stepped", "Evaluated"} <= {each["event"] for each in told}


def test_watch_follows_a_search_and_says_where_its_trials_are(luthier: Luthier, tmp_path: Path) -> None:
    search = searches.wave(tmp_path / "home")
    searches.end(search)
    said = luthier("watch", "colours")
    assert said.code == 0 and f"its trials: luthier show {search.id}" in said.err and "004: learning_rate" in said.err


def test_a_listing_has_one_line_for_a_search_and_with_its_name_its_trials(luthier: Luthier, tmp_path: Path) -> None:
    search = searches.wave(tmp_path / "home")
    listed = luthier("runs").out.splitlines()
    assert len(listed) == 2 and "search: lora" in listed[1] and "best 001: loss 0.4" in listed[1]
    assert "2 done, 1 pruned, 1 running, 1 failed, 1 queued" in listed[1]
    [told] = json.loads(luthier("runs", "--json").out)
    assert told["id"] == search.id and told["search"]["trials"]["done"] == 2 and told["search"]["planned"] == 8
    assert told["search"]["best"]["run"] == f"{search.id}.001" and told["search"]["best"]["score"] == 0.4
    for word in (search.id, "colours", "colours.*"):
        trials = luthier("runs", word)
        assert [line.split()[0] for line in trials.out.splitlines()[1:]] == ["000", "001★", "002", "003", "004", "005"]
        assert "2 done · 1 pruned · 1 running · 1 failed" in trials.err
    as_json = json.loads(luthier("runs", "colours", "--json").out)
    assert [each["facts"]["number"] for each in as_json] == list(range(6)) and as_json[1]["state"] == "done"
    for words, hint in ((("runs", "colour"), "colours"), (("runs", f"{search.id}.001"), "it has no trials")):
        said = luthier(*words)
        assert said.code == 2 and hint in said.err and "Traceback" not in said.err


def test_a_note_of_progress_is_what_is_done_before_any_trial(tmp_path: Path) -> None:
    search = searches.search(tmp_path)
    followed = looked(search)
    assert searched.counts(followed, time.time()) == "6 to come"
    searches.note(search, "progress", "measuring")
    assert isinstance(followed.look()[0], Noted) and followed.doing == "measuring"
