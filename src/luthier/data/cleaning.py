"""Raw rows, repaired as `data.clean` asks; what it does not ask for is found and told as well, never silently changed.

Lives here: which texts of a row are looked at, the order of the steps, the tallies and their sentences.
Does not live here: what a step does to a text (`repairs.py`, `pii.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from luthier.data import pii, repairs
from luthier.data.examples import EmptyAnswer, Example

Row = Mapping[str, Any]
Repair = Callable[[str], str]

EXAMPLES = 5
MAX_LABELS = 50
MIN_ROWS = 10
"""From so many rows on a column with one value is worth a word."""
_WINDOW, _BEFORE_IT = 60, 20

_EVERYWHERE: dict[str, Repair] = {
    "mojibake": repairs.mojibake,
    "control": repairs.control,
    "unicode": repairs.composed,
}
_TEXT = _EVERYWHERE | {"html": repairs.without_html, "whitespace": repairs.spaces}
_NAME = _EVERYWHERE | {"whitespace": repairs.spaces}
_PLACES: dict[str, tuple[dict[str, Repair], bool]] = {
    "text": (_TEXT, True),
    "joined": (_TEXT | {"whitespace": repairs.spaces_inside}, True),
    "label": (_NAME, False),
    "group": (_NAME, False),
    "arguments": (_EVERYWHERE, True),
}
"""Where a text stands → the steps that may touch it, in their order, and whether personal data is masked there.

joined: prompt and completion, which are put together as they came. label, group: names, of which none becomes a mask.
arguments: what a tool is called with, where spaces and signs belong to the call.
"""


@dataclass(frozen=True, slots=True)
class Change:
    """One finding as it is shown: shortened around the first difference, personal data without its letters."""

    where: str
    before: str
    after: str


@dataclass(slots=True)
class Tally:
    """What one step changed, or (`applied` false) would have changed.

    `count`: texts, for personal data findings, for `empty` rows, for `constant` columns. `labels`: class names that
    are now written otherwise, old → new, the first MAX_LABELS.
    """

    step: str
    applied: bool
    rows: int = 0
    count: int = 0
    examples: list[Change] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    last_row: int = -1

    def add(self, row: int, found: int, change: Change | None) -> None:
        self.rows += row != self.last_row
        self.count += found
        self.last_row = row
        if change is not None:
            self.examples.append(change)

    @property
    def fate(self) -> str:
        """What became of what was found, in a word or two."""
        return _FATES.get(self.step, "repaired") if self.applied else "left as it is"

    def told(self) -> dict[str, Any]:
        """JSON-like, as `summary["cleaning"]` keeps it."""
        return {name: value for name, value in asdict(self).items() if name != "last_row"} | {"fate": self.fate}


class Cleaner:
    """Repairs rows one by one; what it remembers does not grow with them.

    `steps`: those of `data.clean` (others are ignored). `columns` and `group_by` are the experiment's, so that labels
    and groups are known. A row goes through `row`, its Example through `keeps`, in turn.
    """

    def __init__(self, steps: Sequence[str], columns: Mapping[str, str] | None = None, group_by: str | None = None):
        self._steps = frozenset(steps)
        theirs = dict(columns or {})
        self._history = theirs.get("history", "history")
        self._places = {theirs.get(ours, ours): "joined" for ours in ("prompt", "completion")}
        if group_by is not None:
            self._places[group_by] = "group"
        self._places[theirs.get("label", "label")] = "label"
        self._tallies: dict[str, Tally] = {}
        self._rows = 0
        self._constant: dict[str, Any] = {}

    @property
    def tallies(self) -> dict[str, Tally]:
        """What was found so far: step → tally; personal data by kind (`pii:email`); `constant` for whole columns."""
        if not self._constant or self._rows < MIN_ROWS:
            return dict(self._tallies)
        shown = [Change(name, _cut(pii.shaped(str(value)), 0), "") for name, value in self._constant.items()]
        constant = Tally("constant", False, self._rows, len(shown), shown[:EXAMPLES])
        return self._tallies | {"constant": constant}

    def row(self, row: Row, where: str) -> Row:
        """The row with its texts repaired; the row given is never changed. `where`: `file:line`.

        Texts are cells of text and what is said in chats. Roles, column names, numbers, the structure of tool calls and
        other nested cells stay as they are.
        """
        self._rows += 1
        if self._rows == 1:
            self._constant = dict(row)
        elif self._constant:
            self._compare(row)
        texts: list[str] = []
        for name, value in row.items():
            if type(value) is str:
                if value:
                    texts.append(value)
            elif type(value) is list and (name == self._history or not _gathered(value, texts)):
                return self._repaired(row, where)
        return row if _is_plain("\n".join(texts)) else self._repaired(row, where)

    def keeps(self, example: Example) -> bool:
        """False for a row to be dropped: an answer of it is a placeholder, and the step `empty` is asked for.

        Labels are never placeholders: `none` may be a class.
        """
        if example.kind in ("label", "text"):
            return True
        if example.left:
            self._found("left", len(example.left), example.where, example.left[0], "")
        for message in example.messages:
            said = message.content
            learned = message.role == "assistant" and message.train is not False
            if learned and 0 < len(said) < 40 and repairs.is_placeholder(said):  # blank beside a tool call is well
                return not self._dropped(example.where, said)
        return True

    def drops(self, error: EmptyAnswer) -> bool:
        """Whether a row without an answer is dropped (`empty` asked for) instead of being refused."""
        return self._dropped(error.where or "", error.message)

    # -- one row ---------------------------------------------------------------------------------------------------

    def _compare(self, row: Row) -> None:
        for name in tuple(self._constant):
            if name not in row or row[name] != self._constant[name]:
                del self._constant[name]

    def _repaired(self, row: Row, where: str) -> Row:
        new = dict(row)
        for name, value in row.items():
            if type(value) is str:
                new[name] = self._text(value, where, self._places.get(name, "text"))
            elif type(value) is list and name == self._history:
                new[name] = [self._pair(pair, where) for pair in value]
            elif type(value) is list:
                new[name] = [self._turn(turn, where) for turn in value]
        return new

    def _pair(self, pair: Any, where: str) -> Any:
        if type(pair) is not list or not all(type(said) is str for said in pair):
            return pair
        return [self._text(said, where, "text") for said in pair]

    def _turn(self, turn: Any, where: str) -> Any:
        texts: list[str] = []
        if not _is_turn(turn) or (_gathered([turn], texts) and _is_plain("\n".join(texts))):
            return turn
        new = dict(turn)
        for key, said in turn.items():
            if key not in _SPOKEN:
                continue
            if type(said) is str:
                new[key] = self._text(said, where, "arguments" if turn.get("from") == "function_call" else "text")
            elif type(said) is list:
                new[key] = [self._part(part, where) for part in said]
        if type(turn.get("tool_calls")) is list:
            new["tool_calls"] = [self._call(call, where) for call in turn["tool_calls"]]
        return new

    def _part(self, part: Any, where: str) -> Any:
        if type(part) is dict and type(part.get("text")) is str:
            return part | {"text": self._text(part["text"], where, "text")}
        return part

    def _call(self, call: Any, where: str) -> Any:
        function = call.get("function") if type(call) is dict else None
        if type(function) is not dict or "arguments" not in function:
            return call
        return call | {"function": function | {"arguments": self._leaves(function["arguments"], where)}}

    def _leaves(self, value: Any, where: str) -> Any:
        """Texts inside a structure; its keys, its form and everything else stay."""
        if type(value) is str:
            return self._text(value, where, "arguments")
        if type(value) is dict:
            return {key: self._leaves(inner, where) for key, inner in value.items()}
        return [self._leaves(inner, where) for inner in value] if type(value) is list else value

    def _text(self, text: str, where: str, place: str) -> str:
        if _is_plain(text):
            return text
        steps, masks = _PLACES[place]
        whole = text  # as every step would leave it: what is found is told once, by its cause
        for step, repair in steps.items():
            before = text if step in self._steps else whole
            after = repair(before)
            if after != before:
                tally = self._found(step, 1, where, before, after)
                if place == "label" and tally.applied and len(tally.labels) < MAX_LABELS:
                    tally.labels[before] = after  # a class gets another name, perhaps that of another class
            whole = after if before is whole else repair(whole)
            text = after if step in self._steps else text
        return self._masked(text, text if "pii" in self._steps else whole, where) if masks else text

    def _masked(self, text: str, searched: str, where: str) -> str:
        if not pii.suspicious(searched):
            return text
        masked, found = pii.masked(searched)
        for kind, count in found.items():
            self._found(f"pii:{kind}", count, where, searched, masked)
        return masked if "pii" in self._steps else text

    # -- telling ---------------------------------------------------------------------------------------------------

    def _found(self, name: str, count: int, where: str, before: str, after: str) -> Tally:
        step = name.partition(":")[0]
        tally = self._tallies.setdefault(name, Tally(step, step in self._steps or step == "left"))
        room = len(tally.examples) < EXAMPLES and self._rows != tally.last_row
        tally.add(self._rows, count, _change(name, where, before, after) if room else None)
        return tally

    def _dropped(self, where: str, said: str) -> bool:
        return self._found("empty", 1, where, said, "").applied


# -- which texts -------------------------------------------------------------------------------------------------------

_SPOKEN = {"content", "value", "human", "assistant", "reasoning_content", "thinking"}
_PLAIN_KEYS = {"role", "content", "from", "value", "weight", "loss", "train"}


def _is_turn(turn: Any) -> bool:
    return type(turn) is dict and ("role" in turn or "from" in turn or ("human" in turn and "assistant" in turn))


def _gathered(value: list[Any], texts: list[str]) -> bool:
    """Append what is said in a chat; False if it needs a closer look than a plain chat does."""
    for turn in value:
        if type(turn) is not dict:
            return True  # a list of something else
        said = turn.get("content") or turn.get("value")
        if type(said) is not str or (len(turn) > 2 and not turn.keys() <= _PLAIN_KEYS):
            return not _is_turn(turn)
        texts.append(said)
    return True


_SAFE = bytes(sign for sign in (10, *range(32, 127)) if chr(sign) not in "&<@")


def _is_plain(text: str) -> bool:
    """Whether texts (joined by line breaks) are surely as every step would leave them: most rows, in a microsecond."""
    if text.isascii():
        if text.encode().translate(None, _SAFE):  # on bytes: several times as fast as a regex
            return False
    elif "@" in text or not repairs.is_plain(text):
        return False
    line = text.replace("\n", " ")
    return not ("  " in line or line[:1] == " " or line[-1:] == " " or pii.suspicious(text))


# -- showing -----------------------------------------------------------------------------------------------------------


def _change(name: str, where: str, before: str, after: str) -> Change:
    """Cut to where the two texts part; personal data is shaped first, whole, so that no half of it shows."""
    shown = (pii.shaped(before), after if name.startswith("pii:") else pii.shaped(after))
    same = next((i for i, (a, b) in enumerate(zip(*shown, strict=False)) if a != b), min(map(len, shown)))
    spelled = name == "unicode"
    return Change(where, *(_cut(text, same - _BEFORE_IT, spelled) for text in shown))


def _cut(text: str, start: int, spelled: bool = False) -> str:
    """A window of a text; what cannot be seen (and, if `spelled`, marks over letters) is written as an escape."""
    start = max(start, 0)
    end = start + _WINDOW
    seen = "".join(_visible(sign, spelled) for sign in text[start:end])
    return ("…" if start else "") + seen + ("…" if end < len(text) else "")


def _visible(sign: str, spelled: bool) -> str:
    odd = spelled and (unicodedata.combining(sign) or "\u1100" <= sign <= "\u11ff" or not _is_composed(sign))
    hidden = not sign.isprintable() or odd
    return sign.encode("unicode_escape").decode() if hidden else sign


def _is_composed(sign: str) -> bool:
    """A compatibility ideograph looks as the one it becomes."""
    return unicodedata.is_normalized("NFC", sign)


_WORDS = {
    "mojibake": "garbled characters (UTF-8 read as another encoding)",
    "control": "control or invisible characters",
    "unicode": "letters not in Unicode's composed form",
    "html": "HTML remains",
    "whitespace": "odd white space",
    "empty": "no answer or a placeholder for one",
    "left": "something behind the last answer, which teaches nothing",
}
_FATES = {"empty": "dropped", "left": "left out", "pii": "masked"}
_KINDS = {
    "private_key": "private keys",
    "token": "JSON web tokens",
    "api_key": "API keys",
    "login": "logins in addresses",
    "email": "mail addresses",
    "iban": "bank accounts",
    "card": "card numbers",
    "rrn": "Korean resident numbers",
    "my_number": "Japanese individual numbers",
    "phone": "phone numbers",
}


def notes(tallies: Mapping[str, Tally]) -> list[str]:
    """One sentence for a person for each finding, with its first example."""
    return [_note(name, tally) for name, tally in tallies.items()]


def _note(name: str, tally: Tally) -> str:
    if name == "constant":
        more = ", …" if tally.count > len(tally.examples) else ""
        columns = ", ".join(f"`{change.where}`" for change in tally.examples) + more
        return f"the same value in every row: {columns}"
    rows = f"{tally.rows:,} row" + ("s" if tally.rows != 1 else "")
    step, _, kind = name.partition(":")
    what = (
        _WORDS[name] if not kind else _KINDS[kind] + (f", {tally.count:,} in all" if tally.count > tally.rows else "")
    )
    first = tally.examples[0]
    shown = f'{first.where}: "{first.before}"' + (f' → "{first.after}"' if first.after else "")
    renamed = [f'"{old}" → "{new}"' for old, new in tally.labels.items()]
    classes = f"; classes renamed: {', '.join(renamed[:5])}{', …' if len(renamed) > 5 else ''}" if renamed else ""
    if tally.applied:
        return f"{rows} with {what}: {tally.fate} ({shown}){classes}"
    verb = "drops" if step == "empty" else "masks" if kind else "repairs"
    return f"{rows} with {what} ({shown}); `{step}` in data.clean {verb} them"
