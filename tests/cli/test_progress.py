"""What is said while a run works: plain lines in a pipe, a bar on a terminal, and over-fitting when it shows."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from luthier import runs
from luthier.cli import progress
from luthier.runs import Evaluated, Event, Finished, Noted, Saved, Started, Stepped


def step(number: int, loss: float = 2.0, seconds: float = 0.5) -> Stepped:
    return Stepped("r", number, 0.0, number / 10, loss, 1e-3, 1.0, 1000, seconds)


STORY: list[Event] = [
    Noted("r", 0, 0.0, "progress", "loading the base"),
    Noted("r", 0, 0.0, "G09", "longer than every row of train", ("a.jsonl:7",)),
    Started("r", 0, 0.0, 20, 160, 4096),
    *(step(number) for number in range(1, 11)),
    Evaluated("r", 10, 0.0, {"loss": 1.5}, True),
    Saved("r", 10, 0.0, "checkpoints/step-10"),
    Noted("r", 20, 0.0, "overfitting", "Likely over-fitting since step 10."),
    Finished("r", 20, 0.0, "done", "20 updates"),
]


HALFWAY = "epoch 1.0/2 · loss 2 · validation 1.5 · learning rate 0.001 · 2.0k tokens/s · 0:05 left"


def test_the_status_says_where_a_run_stands() -> None:
    status = progress.Status()
    for event in STORY:
        status = progress.after(status, event)
    assert progress.words(status) == HALFWAY


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (200, HALFWAY),
        (80, "epoch 1.0/2 · loss 2 · validation 1.5 · 2.0k tokens/s · 0:05 left"),
        (55, "epoch 1.0/2 · loss 2 · validation 1.5 · 0:05 left"),
        (40, "loss 2 · validation 1.5 · 0:05 left"),
        (20, "loss 2 · 0:05 left"),
        (3, "loss 2"),
    ],
)
def test_where_there_is_little_room_the_least_important_goes_first(room: int, said: str) -> None:
    status = progress.Status()
    for event in STORY:
        status = progress.after(status, event)
    assert progress.words(status, room) == said


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (80, ("loss 2 ", "validation 1.5 ", "0:05 left")),
        (120, ("epoch 1.0/2 ", "loss 2 ", "validation 1.5 ", "2.0k tokens/s", "0:05 left")),
        (160, ("learning rate 0.001 ", "2.0k tokens/s", "0:05 left")),
    ],
)
def test_the_bar_s_line_is_whole_on_terminals_of_all_widths(
    columns: int, said: tuple[str, ...], tmp_path: Path
) -> None:
    drawn = on_terminal(drawing(tmp_path), {"COLUMNS": str(columns), "NO_COLOR": "1"})
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip() for line in re.split(r"[\r\n]+", drawn)]
    [last] = [line for line in lines if "validation 1.5" in line and line.startswith("training")][-1:]
    assert len(last) <= columns and all(part in last + " " for part in said) and "…" not in last


def test_in_a_pipe_lines_are_few_and_plain() -> None:
    heard = io.StringIO()
    progress.draw(STORY, Console(file=heard, highlight=False))
    assert heard.getvalue().splitlines() == [
        "loading the base",
        "G09: longer than every row of train [a.jsonl:7]",
        "training: 20 steps, 160 examples, 4,096 trainable parameters",
        f"step 10/20 · {HALFWAY} · best so far",
        "overfitting: Likely over-fitting since step 10.",
        "done: 20 updates",
    ]


def test_for_programs_every_event_is_a_line_of_json() -> None:
    lines: list[str] = []
    progress.draw(STORY, Console(file=io.StringIO()), lines.append)
    assert [runs.from_json(json.loads(line)) for line in lines] == STORY


def test_a_resumed_run_says_where_it_goes_on() -> None:
    assert progress.remark(Started("r", 12, 0.0, 20, 160, 4096)) == (
        "training: continues at step 12 of 20, 160 examples, 4,096 trainable parameters"
    )


@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal_a_bar_is_drawn_in_colour_unless_asked_not_to(colour: bool, tmp_path: Path) -> None:
    drawn = on_terminal(drawing(tmp_path), {} if colour else {"NO_COLOR": "1"})
    assert "over-fitting" in drawn and "━" in drawn
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]m", drawn)) == colour


def drawing(folder: Path) -> list[str]:
    """The command that draws STORY."""
    script = folder / "draw.py"
    script.write_text(
        "from rich.console import Console\n"
        "from luthier.cli import progress\n"
        "from tests.cli.test_progress import STORY\n"
        "progress.draw(STORY, Console(stderr=True))\n"
    )
    return [sys.executable, str(script)]


def on_terminal(command: list[str], environment: dict[str, str]) -> str:
    """What `command` writes to a terminal."""
    leader, follower = pty.openpty()
    root = str(Path(__file__).parents[2])
    settings = {"TERM": "xterm-256color", "COLUMNS": "160", "PYTHONPATH": f"{root}/src{os.pathsep}{root}"} | environment
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    child = subprocess.Popen(command, stdout=follower, stderr=follower, env=kept | settings, cwd=root)
    os.close(follower)
    seen = b""
    while select.select([leader], [], [], 30)[0]:
        try:
            seen += os.read(leader, 65536)
        except OSError:  # the other end closed
            break
    child.wait(30)
    os.close(leader)
    return seen.decode(errors="replace")


@pytest.mark.slow
def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path: Path, experiment: Path) -> None:
    environment = os.environ | {"LUTHIER_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "luthier", "tune", "--set", "training.num_epochs=50000"]
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not any(
        isinstance(event, Stepped) for run in runs.all_runs(tmp_path / "home") for event in runs.read_events(run.path)
    ):
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    [run] = runs.all_runs(tmp_path / "home")
    assert child.returncode == 1 and run.state == "stopped"
    assert f"continue: luthier resume {run.id}" in said and "Traceback" not in said
