"""What a model sees of an example, as text: prompt and answer of a decoder with the spans that are trained, the source
of an encoder-decoder, the text of an encoder.

Lives here: `Rules`, and the choice of template, turns and spans. Does not live here: tokens (`encode.py`).

Special tokens may stand in templates, in what the assistant says, and in rows that are taken exactly as they came
(prompt/completion, plain text). In all other words of a row their text is marked (`controls.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.controls import Controls, is_marked, unmark
from luthier.data.examples import Example, Message, answer_text
from luthier.data.templates import Row, Span, chat_spans, chat_text, default_template, fill, plain_chat
from luthier.errors import DataError

_PROBE = "x"  # stands for an answer that is not known yet


@dataclass(frozen=True, slots=True)
class Rules:
    """How examples become tokens for one model and one experiment.

    `family`: causal, seq2seq or encoder. `chat`: the tokenizer has a chat template and chats go through it. `template`:
    what the experiment says; None is the family's own (do not pass that one: prompt/completion rows take none).
    `max_seq_length` None: no limit. `end_token_ids`: any of them ends an answer, the first is appended. `labels`: class
    names in index order. `virtual_tokens` are not counted in `max_seq_length`; the gate adds them to the length.
    `positions` None: no limit; else source (with virtual tokens) and target of a seq2seq model each have so many.
    """

    family: str
    task: str = "generation"
    chat: bool = False
    template: str | None = None
    train_on: str = "assistant"
    overlength: str = "error"
    max_seq_length: int | None = None
    end_token_ids: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    virtual_tokens: int = 0
    positions: int | None = None

    @property
    def sides(self) -> tuple[int, int] | None:
        """The most tokens of a seq2seq model's source and target, where its positions are counted."""
        if self.family != "seq2seq" or self.positions is None:
            return None
        return max(self.positions - self.virtual_tokens, 0), self.positions


@dataclass(frozen=True, slots=True)
class Piece:
    """A text that is tokenised by itself. `spans` are trained; `answer`, if any, begins what is generated.

    `end`: "append" the end token unless it is there; "template": the template wrote one, find it; "written": as it
    stands, no token more. `letters`: a special token's text that is to be read as plain text.
    """

    text: str
    spans: tuple[Span, ...]
    end: str
    answer: int | None = None
    letters: tuple[Span, ...] = ()


def pieces(example: Example, rules: Rules, controls: Controls) -> Row[list[Piece]]:
    """The texts of an example for a decoder: one, or for a chat without a chat template one per assistant turn."""
    found = yield from _pieces(example, rules, controls)
    return [_unmarked(piece, example.where) for piece in found]


def _unmarked(piece: Piece, where: str) -> Piece:
    if not is_marked(piece.text):
        return piece
    text, letters, moved = unmark(piece.text, where)
    spans = tuple((moved(begin), moved(end)) for begin, end in piece.spans)
    answer = None if piece.answer is None else moved(piece.answer)
    return Piece(text, spans, piece.end, answer, tuple(letters))


def _pieces(example: Example, rules: Rules, controls: Controls) -> Row[list[Piece]]:
    if example.kind == "text":
        text = example.text or ""
        return [Piece(text, ((0, len(text)),), "append", answer=len(text))]
    if example.kind == "segments":
        return _written(example.messages, rules.train_on)
    if example.kind == "chat" and rules.chat:
        return [(yield from _templated(example, rules, controls))]
    if example.kind == "chat":
        _require_plain(example)
        return _plain_turns(_told(example, controls), rules.train_on)
    prompt = _question(example, rules, controls)
    answer = answer_text(example) if _answered(example) else None
    return [_asked(prompt, answer, rules.train_on == "all", exact=example.exact)]


def _answered(example: Example) -> bool:
    if example.kind == "label":
        return example.label is not None
    return bool(example.messages) and example.messages[-1].role == "assistant"


def _told(example: Example, controls: Controls) -> list[Message]:
    """The messages, with special tokens' text marked in all that the assistant does not say."""
    return [
        m
        if m.role == "assistant"
        else dataclasses.replace(
            m, content=controls.mark(m.content, example.where), extra=controls.mark(m.extra, example.where)
        )
        for m in example.messages
    ]


def _question(example: Example, rules: Rules, controls: Controls) -> str:
    """The prompt of a row that is no chat."""
    said = example.messages[0].content if example.messages else example.text or ""
    if example.exact and rules.template is None:
        return said
    template = default_template(rules.family) if rules.template is None else rules.template
    columns = {"input": said} | (example.columns if rules.template is not None else {})
    return fill(template, columns, example.where, lambda value: controls.mark(value, example.where))


def _asked(prompt: str, answer: str | None, everything: bool, *, exact: bool = False) -> Piece:
    """Prompt and answer as one text, joined by a space unless there is one already.

    Spaces at the prompt's end count as the answer's beginning: most tokenizers put them into its first token, and where
    the model is asked must not depend on the answer. Without an answer (None) a probe stands for it, so that the prompt
    splits into the same tokens, and nothing is trained.
    """
    told = _PROBE if answer is None else answer
    spaced = not prompt or prompt[-1].isspace() or told[:1].isspace() or (exact and answer is not None)
    text = prompt + ("" if spaced else " ") + told
    begin = len(prompt.rstrip(" "))
    span = () if answer is None else ((0 if everything else begin, len(text)),)
    return Piece(text, span, "append", answer=begin)


def _wanted(messages: Sequence[Message], train_on: str) -> set[int]:
    """Indices of the assistant turns that are trained."""
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    chosen = turns[-1:] if train_on == "last" else turns
    return {i for i in turns if (i in chosen if messages[i].train is None else messages[i].train)}


def _templated(example: Example, rules: Rules, controls: Controls) -> Row[Piece]:
    """A chat through the model's template."""
    messages, where = _told(example, controls), example.where
    tools = controls.mark(example.columns.get("tools"), where)
    if not _answered(example):
        text = yield from chat_text(messages, tools, where)
        return Piece(text, (), "template", answer=len(text))
    wanted, last = _wanted(messages, rules.train_on), len(messages) - 1
    silent = {i for i, m in enumerate(messages) if m.train is False} if rules.train_on == "all" else set()
    text, spans = yield from chat_spans(messages, tools, wanted | {last} | silent, where)
    trained: list[Span] = [spans[i] for i in sorted(wanted)]
    if rules.train_on == "all":
        edges = [0, *(edge for i in sorted(silent) for edge in spans[i]), len(text)]
        trained = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
    return Piece(text, tuple(trained), "template", answer=spans[last][0])


def _plain_turns(messages: Sequence[Message], train_on: str) -> list[Piece]:
    """A chat for a model without a chat template: lines `role: content`, an end token after every assistant turn."""
    wanted, found, said = _wanted(messages, train_on), [], []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            said.append(message)
            continue
        piece = _asked(plain_chat(said) + "assistant:", message.content, train_on == "all")
        kept = i in wanted or (train_on == "all" and message.train is not False)
        found.append(piece if kept else dataclasses.replace(piece, spans=()))
        said = []
    if said:
        found.append(_asked(plain_chat(said) + "assistant:", None, False))
    return found


def _written(segments: Sequence[Message], train_on: str) -> list[Piece]:
    """Texts that are tokenised one by one, so that what is trained is exact to the character, and joined as they are.

    As Axolotl does for `input_output`: no BOS, space or end token is added to what the row says.
    """
    wanted = set(range(len(segments))) if train_on == "all" else _wanted(segments, train_on)
    found = [
        Piece(segment.content, ((0, len(segment.content)),) if i in wanted else (), "written")
        for i, segment in enumerate(segments)
    ]
    if segments[-1].role != "assistant":
        return [*found, Piece("", (), "written", answer=0)]
    return [*found[:-1], dataclasses.replace(found[-1], answer=0)]


def _require_plain(example: Example) -> None:
    if example.columns.get("tools") or any("tool_calls" in message.extra for message in example.messages):
        raise DataError("tools need a model with a chat template", example.where, "set model.chat_template")


def source(example: Example, rules: Rules, controls: Controls) -> Row[str]:
    """What an encoder-decoder reads, marked: the question, or the chat up to its last answer."""
    if example.kind == "text":
        raise DataError("an encoder-decoder needs questions and answers, not plain text", example.where)
    if example.kind == "segments":
        hint = "take a decoder, or rows of input and output"
        raise DataError("an encoder-decoder needs questions and answers, not segments", example.where, hint)
    if example.kind != "chat":
        return _question(example, rules, controls)
    messages = _told(example, controls)
    asked = messages[:-1] if _answered(example) else messages
    if _answered(example) and "tool_calls" in messages[-1].extra:
        hint = "take a decoder, or end the row with the assistant's words"
        raise DataError("an encoder-decoder answers in words, not by calling a tool", example.where, hint)
    if rules.chat:
        tools = controls.mark(example.columns.get("tools"), example.where)
        return (yield from chat_text(asked, tools, example.where))
    _require_plain(example)
    return plain_chat(asked)


def encoder_text(example: Example, rules: Rules, controls: Controls) -> str:
    """What an encoder reads, marked."""
    if example.kind in ("text", "chat", "segments"):
        kind = {"chat": "a chat", "segments": "a list of segments"}.get(example.kind, "plain text without a class")
        raise DataError(f"an encoder classifies texts; this row is {kind}", example.where)
    return _question(example, rules, controls)
