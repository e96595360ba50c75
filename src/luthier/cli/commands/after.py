"""Verbs for what came of it: runs, show, evaluate, compare, generate, publish.

Lives here: arguments, and what is printed where. Does not live here: the verbs themselves (`studio.py`), how results
look (`show.py`, `compared.py`).
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli import leaderboard, searched, wave_table
from luthier.cli import show as screen
from luthier.cli.commands import common
from luthier.cli.commands.common import NOTHING, Json, Set, SomeRun, Word
from luthier.errors import NotFound, SpecError
from luthier.runs import Run, load

if TYPE_CHECKING:
    from luthier.studio import Studio


def runs(
    of: Annotated[str | None, typer.Argument(help="A search: its trials instead.", metavar="SEARCH")] = None,
    as_json: Json = False,
) -> None:
    """Every run, the newest first; a search as one line, or with its name its trials."""
    here = common.studio()
    if of is not None:
        _trials(here, of, as_json)
        return
    every = [run for run in here.runs() if run.facts.get("search") is None]
    if as_json:
        screen.as_json([asdict(run) | ({"search": searched.brief(run)} if _is_search(run) else {}) for run in every])
        return
    columns = ("run", "state", "model", "method", "task", "created", "verdict")
    screen.table(columns, [searched.run_row(run) if _is_search(run) else screen.run_row(run) for run in every])


def _is_search(run: Run) -> bool:
    return run.facts.get("kind") == "search"


def _trials(here: Studio, word: str, as_json: bool) -> None:
    """The trials of the search that `word` means, `SEARCH` or `SEARCH.*`, by number."""
    found = here.find(word.removesuffix(".*"))
    if not _is_search(found):
        raise SpecError(f"{found.id} is no search: it has no trials", hint=f"`luthier show {found.id}` shows the run")
    followed = searched.Following(found)
    followed.look()
    if as_json:
        screen.as_json([asdict(load(found.path.parent / row.id)) for row in followed.sorted()])
        return
    for text in wave_table.table(followed.sorted(), followed.goal, screen.out().width):
        screen.out().print(text, soft_wrap=True)
    screen.say(searched.counts(followed, time.time()))


def show(run: SomeRun = None, as_json: Json = False) -> None:
    """One run: what it is, how far it came, what it scored; of a search its leaderboard."""
    from luthier import studio

    found = common.studio().find(run)
    if _is_search(found):
        leaderboard.show(found, as_json)
        return
    told = studio.report(found) if (found.path / "report.json").is_file() else None
    if as_json:
        screen.as_json(asdict(found) | {"report": told and asdict(told)})
        return
    screen.pairs(screen.run_facts(found))
    if told is not None:
        screen.line("")
        screen.scores(told)
        screen.differences(told)
        screen.where_not(told)
    if problem := studio.failure(found):
        screen.error(problem)


def evaluate(
    subject: Annotated[str, typer.Argument(help="A run, or a base model.", metavar="RUN|MODEL")],
    data: Annotated[str | None, typer.Option(help="Rows to score it on; else the run's own test.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Where openai:NAME is asked.", metavar="URL")] = None,
    sets: Set = NOTHING,
    as_json: Json = False,
) -> None:
    """Score a run, a base model, or one behind an OpenAI-style API (openai:NAME), on rows of yours."""
    here = common.studio()
    address = [f"model.base_url={base_url}"] if base_url else []
    with screen.busy("asking the model"):
        told = here.evaluate(here.subject(subject), data, [*sets, *address])
    if as_json:
        screen.as_json(told)
        return
    screen.scores(told)
    screen.differences(told)
    for note in told.notes:
        screen.say(f"note: {note}")
    screen.where_not(told)
    screen.line(told.verdict)


def compare(
    words: Annotated[
        list[str], typer.Argument(help="Two to eight runs; the first is compared with.", metavar="RUN RUN…")
    ],
    html: Annotated[Path | None, typer.Option(help="Write the comparison as a page.")] = None,
    as_json: Json = False,
) -> None:
    """Runs against the first one: settings that differ, paired tests on the same test rows, rows where they differ."""
    from luthier.cli import compared

    if html is not None:
        screen.check_page(html)
    if len(words) < 2:
        raise SpecError("one run alone cannot be compared", hint="name two runs or more")
    here = common.studio()
    with screen.busy("comparing the answers"):
        found = here.compare([here.find(word) for word in words])
        if html is not None:
            compared.page(found, html)
    if as_json:
        screen.as_json(found)
    elif html is not None:
        screen.line(str(html))
    else:
        compared.tell(found)


def generate(
    run: Word,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; else --file, or standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="One prompt a line, text or JSON.")] = None,
    base: Annotated[bool, typer.Option("--base", help="The untuned base beside it.")] = False,
    as_json: Json = False,
) -> None:
    """Answer a prompt, a file or standard input with the tuned model. A prompt may be a JSON object of columns."""
    here = common.studio()
    found = here.find(run)
    prompts = [prompt] if prompt is not None else _prompts(file)
    for answer in here.generate(found, prompts, base):
        if as_json:
            screen.json_line(
                {"prompt": answer.prompt, "tuned": "".join(answer.tuned), "base": "".join(answer.base or ())}
            )
            continue
        screen.stream("tuned: " if base else "", answer.tuned)
        if answer.base is not None:
            screen.stream("base: ", answer.base)


def _prompts(file: Path | None) -> list[str]:
    if file is None and sys.stdin.isatty():
        screen.say("type a prompt and end with Ctrl-D")
    if file is not None and not file.is_file():
        raise NotFound(f"there is no file {file}")
    text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    prompts = [text.strip()] if file is None else [each.strip() for each in text.splitlines()]
    if not any(prompts):
        raise SpecError("there is no prompt", where=str(file or "standard input"))
    return [each for each in prompts if each]


def publish(
    run: Word,
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT")],
    merge: Annotated[bool, typer.Option("--merge", help="The base with the adapter in its weights.")] = False,
    as_json: Json = False,
) -> None:
    """Pack a run's adapter, or merge it into its base; proved in a fresh process before success is said."""
    here = common.studio()
    with screen.busy("packing, and proving it in a fresh process"):
        packed = here.publish(here.find(run), out, merge)
    if as_json:
        screen.as_json(packed)
        return
    for note in packed.notes:
        screen.say(f"note: {note}")
    proof = f"its logits differ by {packed.difference:.1g} from the run's; tuning changed them by {packed.effect:.1g}"
    screen.say(f"proved in a fresh process: {proof}")
    screen.line(str(out))
