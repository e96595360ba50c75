"""What a row means: which of the known formats its columns are, and the Example it becomes.

Lives here: recognising by columns (order of detection: messages, sharegpt, segments, prompt_completion, alpaca,
input_output, text_label, text) and the checks of each format's cells. Does not live here: reading files
(`sources.py`), chats turn by turn (`turns.py`), what tools are called with (`tool_calls.py`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.data import tool_calls, turns
from luthier.data.examples import EmptyAnswer, Example, Message, content_id
from luthier.data.templates import as_text, fill, placeholders
from luthier.errors import DataError, did_you_mean, few
from luthier.spec import Data


@dataclass(frozen=True, slots=True)
class Cells:
    """One row as a format reads it: columns under our names, and the experiment's wishes."""

    values: dict[str, Any]
    data: Data
    file: str
    line: int
    answered: bool

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def text(self, name: str, *, empty: bool = False) -> str:
        """The cell `name` as text. DataError where it is missing, null, a structure, or (unless `empty`) blank."""
        value = self.values.get(name)
        if value is None:
            source = self.data.columns.get(name)
            named = f"`{name}`" + (f" (column `{source}`)" if source else "")
            if name in self.values:
                raise DataError(f"{named} is null", self.where, "fill it or take the row out")
            hint = did_you_mean(source or name, self.values) or f"it has: {few(self.values)}"
            raise DataError(f"this row has no {named}", self.where, hint)
        if isinstance(value, list | dict):
            raise DataError(f"`{name}` must be text, not a structure", self.where, "write it as JSON text")
        if not empty and not as_text(value).strip():
            raise DataError(f"`{name}` is empty", self.where, "fill it or take the row out")
        return as_text(value)

    def answer(self, name: str) -> str:
        """As `text`, for what is learned: a row without it is an EmptyAnswer."""
        try:
            return self.text(name)
        except DataError as error:
            value = self.values.get(name)
            if isinstance(value, list | dict):
                raise
            hint = turns.DROP_EMPTY if value is not None else f"{error.hint}; {turns.DROP_MISSING}"
            raise EmptyAnswer(error.message, error.where, hint) from None


@dataclass(frozen=True, slots=True)
class Format:
    """A format's name stands in FORMATS; `required` columns make it complete, `others` belong to it too."""

    required: frozenset[str]
    others: frozenset[str]
    read: Callable[[Cells], Example]


QUESTIONS = ("query", "prompt", "input", "instruction", "question", "problem")
ANSWERS = ("response", "answer", "output", "target", "targets", "completion")
_SAID_BESIDE = ("context", "passage", "document", "article", "system", "history", "options", "choices")
_LANGUAGE = re.compile(
    "(af|ar|az|be|bg|bn|ca|cs|cy|da|de|el|en|es|et|eu|fa|fi|fr|ga|gl|gu|he|hi|hr|hu|hy|id|is|it|ja|ka|kk|km|kn|ko|lo|lt|"
    "lv|mk|ml|mn|mr|ms|mt|my|ne|nl|no|pa|pl|ps|pt|ro|ru|sk|sl|so|sq|sr|sv|sw|ta|te|th|tl|tr|uk|ur|uz|vi|zh)([-_]\\w+)?"
)  # codes of ISO 639-1, a region or script behind
_NOT_OURS = (
    ({"chosen", "rejected"}, "preference pairs (chosen, rejected)"),
    ({"preferred_output", "non_preferred_output"}, "preference pairs (preferred_output, non_preferred_output)"),
    ({"rejected_response"}, "preference pairs (rejected_response)"),
    ({"kto_tag"}, "judged answers (kto_tag)"),
    ({"input_ids"}, "rows that are already tokenised (input_ids)"),
)


def detect(columns: Collection[str], where: str, data: Data | None = None) -> str:
    """The format whose columns are complete in a file. `where` names the file in errors.

    `data.format` decides alone. `data.columns` renames first; a format that knows all renamed columns is preferred.
    Aliases (`question` and `answer` for input and output) count only when no format fits and only one reading is
    possible. Raises DataError when no format or two different ones fit.
    """
    wishes = data or Data(train=[])
    names = _renamed(columns, wishes.columns, where)
    names |= {"conversations"} & {f"{name}s" for name in names}  # ms-swift writes `conversation`
    if wishes.format is not None:
        return _known(wishes.format)
    for signs, kind in _NOT_OURS:
        if signs <= names:
            raise DataError(f"this file holds {kind}, which luthier does not train on", where)
    fits = [name for name, known in FORMATS.items() if known.required <= names]
    meant = [f for f in fits if set(wishes.columns) <= FORMATS[f].required | FORMATS[f].others]
    fits = meant if wishes.columns and meant else fits
    fits = [f for f in fits if not any(FORMATS[f].required < _all(FORMATS[g]) for g in fits if g != f)]
    if len(fits) > 1:
        kinds = " and ".join(f"`{f}` ({', '.join(sorted(FORMATS[f].required))})" for f in fits)
        raise DataError(f"this file fits two formats: {kinds}", where, f"say which: data.format: {fits[0]}")
    if fits:
        return fits[0]
    if {"query", "response"} <= names and names & {"history", "system"}:
        return "alpaca"  # ms-swift calls them query and response
    if wishes.template is not None and names & {"output", "label"}:
        return "input_output" if "output" in names else "text_label"
    if _alias(names, QUESTIONS) and _alias(names, ANSWERS) and not names & set(_SAID_BESIDE):
        return "input_output"
    raise _unknown(names, where)


def to_example(
    row: Mapping[str, Any],
    format: str,  # noqa: A002
    data: Data,
    file: str,
    line: int,
    answered: bool = True,
) -> Example:
    """The Example of one row; DataError with file:line where a cell is missing, empty or of the wrong kind.

    `answered=False` reads a question without its answer (for generation).
    """
    row = _opened(row)
    renamed = {ours: row[theirs] for ours, theirs in data.columns.items() if theirs in row}
    values = {name: value for name, value in row.items() if name not in data.columns.values()} | renamed
    cells = Cells(values, data, file, line, answered)
    return FORMATS[_known(format)].read(cells)


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns that hold a value in at least one row, in order of appearance."""
    found: dict[str, None] = {}
    for row in rows:
        for name, value in _opened(row).items():
            if value is not None and name not in found:
                found[name] = None
    return list(found)


def translates(data: Data) -> bool:
    """Whether `data.columns` sends one language into another: `{input: ko, output: ja}`."""
    return {"input", "output"} <= data.columns.keys() and _are_languages(data.columns.values())


def _are_languages(names: Iterable[str]) -> bool:
    return all(_LANGUAGE.fullmatch(str(name).lower()) for name in names)


def _opened(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"translation": {"ko": …, "ja": …}}` is two columns named by their languages."""
    texts = row.get("translation")
    if isinstance(texts, Mapping) and texts and _are_languages(texts) and not texts.keys() & row.keys():
        return {name: value for name, value in row.items() if name != "translation"} | dict(texts)
    return row


def _all(known: Format) -> frozenset[str]:
    return known.required | known.others


def _known(name: str) -> str:
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS) or f"one of {', '.join(FORMATS)}"
        raise DataError(f"`{name}` is not a data format", "data.format", hint)
    return name


def _renamed(columns: Collection[str], mapping: Mapping[str, str], where: str) -> set[str]:
    for ours, theirs in mapping.items():
        if theirs not in columns:
            hint = did_you_mean(theirs, columns) or f"the file has: {few(columns)}"
            raise DataError(f"`data.columns.{ours}` names the column `{theirs}`, which is not there", where, hint)
    return (set(columns) - set(mapping.values())) | set(mapping)


def _alias(names: Collection[str], known: Collection[str]) -> str | None:
    """The only one of `known` among `names`; None if there are several or none."""
    found = [name for name in known if name in names]
    return found[0] if len(found) == 1 else None


def _unknown(names: set[str], where: str) -> DataError:
    known = {*QUESTIONS, *ANSWERS, *(name for each in FORMATS.values() for name in _all(each))}
    for name in sorted(names - known - {"id"}):
        if meant := difflib.get_close_matches(name, sorted(known - names), n=1, cutoff=0.75):
            message = f"the columns {few(sorted(names))} fit no known format"
            return DataError(message, where, f"`{name}`: did you mean `{meant[0]}`?")
    tongues = sorted(name for name in names if name != "id" and _are_languages([name]))
    if len(tongues) > 1:
        a, b = tongues[:2]
        ways = f"data.columns: {{input: {a}, output: {b}}}, or {{input: {b}, output: {a}}}"
        return DataError(f"{' and '.join(tongues)} are languages: which is translated into which?", where, ways)
    if "label" in names:
        hint = "say what is classified: data.columns: {text: COLUMN}, or data.template with {COLUMN} in it"
    else:
        hint = "say which columns hold what: data.columns: {input: COLUMN, output: COLUMN}"
    beside = sorted(names & set(_SAID_BESIDE))
    if beside:
        hint += f"; what stands in `{beside[0]}` needs a template: data.template: '{{{beside[0]}}} {{input}}'"
    return DataError(f"the columns {few(sorted(names)) or '(none)'} fit no known format", where, hint)


# -- the formats -------------------------------------------------------------------------------------------------------


def _messages(cells: Cells) -> Example:
    messages = turns.from_openai(cells.values.get("messages"), cells.where)
    return _chat(cells, messages, without=("messages",))


def _sharegpt(cells: Cells) -> Example:
    name = "conversations" if "conversations" in cells.values else "conversation"
    messages = turns.from_sharegpt(cells.values.get(name), cells.values.get("system"), cells.where)
    return _chat(cells, messages, without=("conversations", "conversation"))


def _segments(cells: Cells) -> Example:
    """Texts as they stand, trained where their label is true. What comes after the last of those teaches nothing."""
    told = turns.from_segments(cells.values.get("segments"), cells.where)
    left: tuple[str, ...] = ()
    if cells.answered:
        if not any(message.role == "assistant" for message in told):
            raise DataError("no segment has `label: true`: there is nothing to learn", cells.where)
        told, left = _to_last_answer(told)
    columns = {name: value for name, value in cells.values.items() if name != "segments"}
    identity = content_id({"segments": [[message.role, message.content] for message in told]})
    return Example(identity, "segments", told, columns=columns, file=cells.file, line=cells.line, left=left)


def _chat(cells: Cells, messages: tuple[Message, ...], without: tuple[str, ...]) -> Example:
    left: tuple[str, ...] = ()
    tools = tool_calls.tools(cells.values.get("tools"), cells.values.get("functions"), cells.where)
    tool_calls.require_one_by_one(cells.values.get("parallel_tool_calls"), messages, cells.where)
    if cells.answered:
        turns.require_answer(messages, cells.where)
        messages, left = _to_last_answer(messages)
    columns = {name: value for name, value in cells.values.items() if name not in without}
    if tools:
        columns["tools"] = tools
    told = [
        {"role": m.role, "content": m.content} | m.extra | ({} if m.train is None else {"train": m.train})
        for m in messages
    ]
    identity = content_id({"messages": told, "tools": tools})
    return Example(identity, "chat", messages, columns=columns, file=cells.file, line=cells.line, left=left)


def _to_last_answer(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The messages up to the last answer, for nothing is learned behind it; and what is left out."""
    end = 1 + max(i for i, message in enumerate(messages) if message.role == "assistant")
    return messages[:end], tuple(message.content for message in messages[end:])


def _prompt_completion(cells: Cells) -> Example:
    prompt, completion = cells.values.get("prompt"), cells.values.get("completion")
    if isinstance(cells.values.get("label"), bool):
        raise DataError("`label` says good or bad: these are judged answers, not answers to learn", cells.where)
    if isinstance(prompt, list) or isinstance(completion, list):
        told = turns.from_openai(prompt, cells.where, column="prompt")
        answer = turns.from_openai(completion, cells.where, column="completion") if cells.answered else ()
        return _chat(cells, told + answer, without=("prompt", "completion"))
    question = cells.text("prompt", empty=True)
    return _pair(cells, question, cells.answer("completion") if cells.answered else None, exact=True)


def _alpaca(cells: Cells) -> Example:
    ours = cells.values.get("instruction") is not None or cells.values.get("query") is None
    asked, told = ("instruction", "output") if ours else ("query", "response")
    instruction = cells.text(asked)
    given = cells.values.get("input")
    question = f"{instruction}\n{cells.text('input')}" if given is not None and as_text(given).strip() else instruction
    answer = cells.answer(told) if cells.answered else None
    if cells.values.get("system") or cells.values.get("history"):
        messages = turns.from_pairs(cells.values.get("system"), cells.values.get("history"), cells.where)
        messages += (Message("user", question),)
        messages += (Message("assistant", answer),) if answer is not None else ()
        return _chat(cells, messages, without=(asked, "input", told, "system", "history"))
    return _pair(cells, question, answer, answer=told)


def _input_output(cells: Cells) -> Example:
    """With aliases; with a template that needs no `input`, the filled template is the question."""
    question, answer = "input", "output"
    if "output" not in cells.values:
        answer = _alias(cells.values, ANSWERS) or "output"
    if "input" not in cells.values:
        question = _alias([name for name in cells.values if name != answer], QUESTIONS) or "input"
    told = cells.answer(answer) if cells.answered else None
    if cells.values.get(question) is None and cells.data.template and "input" not in placeholders(cells.data.template):
        return _pair(cells, fill(cells.data.template, _all_columns(cells), cells.where), told, answer=answer)
    return _pair(cells, cells.text(question), told, answer=answer)


def _text_label(cells: Cells) -> Example:
    label = _label(cells.values.get("label"), cells.data.labels, cells.where) if cells.answered else None
    template = cells.data.template
    if cells.values.get("text") is None and template and not {"text", "input"} & set(placeholders(template)):
        text = fill(template, _all_columns(cells), cells.where)
    else:
        text = cells.text("text")
    columns = _all_columns(cells) | {"text": text, "input": text}
    identity = content_id({"text": text, "label": label} | _said_by_template(cells, columns, "label"))
    return Example(identity, "label", text=text, label=label, columns=columns, file=cells.file, line=cells.line)


def class_names(labels: Collection[str] | Mapping[str, str] | None) -> tuple[str, ...]:
    """The classes that `data.labels` names, each once, in order; () where it names none.

    >>> class_names({"0": "negative", "1": "positive", "pos": "positive"})
    ('negative', 'positive')
    """
    return tuple(dict.fromkeys(labels.values() if isinstance(labels, Mapping) else labels or ()))


def _label(value: Any, names: tuple[str, ...] | dict[str, str] | None, where: str) -> str:
    """The class's name: what `data.labels` calls it; else text as it is, a whole number as its digits."""
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, int | float):
        if value != int(value):
            raise DataError(f"the label {value} is not a class", where, "luthier classifies; it does not regress")
        value = str(int(value))
    if isinstance(value, list | dict):
        raise DataError("`label` must be one class, not several", where, "one row per class, or names joined to one")
    if value is None or not value.strip():
        raise EmptyAnswer("`label` is empty", where, turns.DROP_EMPTY)
    label = value.strip()
    if isinstance(names, dict):
        return names.get(label, label)
    if names and label not in names and label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    return label


def _text(cells: Cells) -> Example:
    text = cells.text("text")
    columns = {name: value for name, value in cells.values.items() if name != "text"}
    return Example(content_id({"text": text}), "text", text=text, columns=columns, file=cells.file, line=cells.line)


def _pair(cells: Cells, question: str, told: str | None, *, answer: str = "output", exact: bool = False) -> Example:
    columns = _all_columns(cells)
    if told is not None and isinstance(cells.data.labels, dict):  # the answer learned is the name, spaces kept
        told = told.replace(told.strip(), cells.data.labels.get(told.strip(), told.strip()))
    if "instruction" not in placeholders(cells.data.template) or "input" not in columns:
        columns["input"] = question
    extra = _said_by_template(cells, columns, "completion" if exact else answer)
    identity = content_id({"input": question, "output": told} | extra)
    messages = (Message("user", question),) + ((Message("assistant", told),) if told is not None else ())
    return Example(identity, "pair", messages, columns=columns, file=cells.file, line=cells.line, exact=exact)


def _all_columns(cells: Cells) -> dict[str, Any]:
    """Every column of the row, under our names and, where nothing else is called so, its own."""
    return cells.values | {
        theirs: cells.values[ours]
        for ours, theirs in cells.data.columns.items()
        if ours in cells.values and theirs not in cells.values
    }


def _said_by_template(cells: Cells, columns: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """What the template takes from other columns belongs to the content; the answer itself must not be among them."""
    names = placeholders(cells.data.template)
    shown = {answer, cells.data.columns.get(answer)} & set(names)
    if shown:
        hint = "end the template where the answer begins"
        raise DataError(f"the template shows the answer (`{{{shown.pop()}}}`) in the prompt", "data.template", hint)
    if names:
        fill(cells.data.template or "", columns, cells.where)
    return {name: columns[name] for name in names if name not in ("input", "text")}


def _format(read: Callable[[Cells], Example], required: str, others: str = "") -> Format:
    return Format(frozenset(required.split()), frozenset(others.split()), read)


FORMATS: dict[str, Format] = {
    "messages": _format(_messages, "messages", "tools functions parallel_tool_calls"),
    "sharegpt": _format(_sharegpt, "conversations", "system tools"),
    "segments": _format(_segments, "segments"),
    "prompt_completion": _format(_prompt_completion, "prompt completion"),
    "alpaca": _format(_alpaca, "instruction output", "input system history query response"),
    "input_output": _format(_input_output, "input output"),
    "text_label": _format(_text_label, "text label"),
    "text": _format(_text, "text"),
}
