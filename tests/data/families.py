"""Chat templates as they stand in the families people tune, and for each what it must write, told independently.

The templates (`chat_templates/*.jinja`) are ours and keep each family's structure: how a turn is opened and ended, what
happens to the system's words, to history, to tools. `speak` of a family says the same in Python: pieces of text, each
with whether the assistant has to produce it. A test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests import tiny

Messages = Sequence[dict[str, Any]]
Piece = tuple[str, bool]
FOLDER = Path(__file__).parent / "chat_templates"


@dataclass(frozen=True)
class Family:
    """`ends`: the model's end tokens. `words`: added tokens that are not special. `refuses`: shape → what is said."""

    speak: Callable[[Messages, Any], Iterator[Piece]]
    ends: tuple[str, ...]
    special: tuple[str, ...]
    bos: str = "<s>"
    eos: str = "</s>"
    words: tuple[str, ...] = ()
    refuses: dict[str, str] = field(default_factory=dict)
    tools: str | None = None  # a template of its own for chats with tools

    def tokenizer(self, name: str) -> PreTrainedTokenizerFast:
        text = tiny.tokenizer("causal")
        text.add_special_tokens({"additional_special_tokens": [*self.special, *self.ends]})
        text.add_tokens([AddedToken(word, special=False, normalized=False) for word in self.words])
        text.bos_token, text.eos_token = self.bos, self.eos
        template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
        if self.tools:
            text.chat_template = {"default": template, "tool_use": (FOLDER / f"{self.tools}.jinja").read_text()}
        else:
            text.chat_template = template
        return text


def _json(value: Any, **form: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **form)


def _split(messages: Messages, default: str = "") -> tuple[str, Messages]:
    """The system's words, and the turns."""
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return default, messages


def _call(message: dict[str, Any]) -> dict[str, Any] | None:
    return message["tool_calls"][0]["function"] if "tool_calls" in message else None


def llama3(messages: Messages, tools: Any) -> Iterator[Piece]:
    system, turns = _split(messages)
    head = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    yield "<s>" + head("system") + ("Environment: ipython\n" if tools else ""), False
    yield f"Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{system}<|eot_id|>", False
    if tools:
        told = "".join(_json(tool, indent=4) + "\n\n" for tool in tools)
        yield f"{head('user')}You may call these functions.\n\n{told}{turns[0]['content']}<|eot_id|>", False
        turns = turns[1:]
    for turn in turns:
        role = {"tool": "ipython"}.get(turn["role"], turn["role"])
        yield head(role), False
        call, said = _call(turn), turn["content"]
        if call:
            said = f'{{"name": "{call["name"]}", "parameters": {_json(call["arguments"])}}}'
        yield said + "<|eot_id|>", role == "assistant"


def _qwen(messages: Messages, tools: Any, default: str, thinks: bool) -> Iterator[Piece]:
    system, turns = _split(messages, default)
    if tools:
        told = "".join("\n" + _json(tool) for tool in tools)
        yield f"<|im_start|>system\n{system + chr(10) * 2 if system else ''}# Tools\n\nSignatures stand within ", False
        yield f"<tools></tools>:\n<tools>{told}\n</tools>\n\nAnswer within <tool_call></tool_call>.<|im_end|>\n", False
    elif system:
        yield f"<|im_start|>system\n{system}<|im_end|>\n", False
    for turn in turns:
        if turn["role"] == "tool":
            yield f"<|im_start|>user\n<tool_response>\n{turn['content']}\n</tool_response><|im_end|>\n", False
            continue
        said, call = turn["content"], _call(turn)
        if call:
            said = f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {_json(call["arguments"])}}}\n</tool_call>'
        if thinks and turn is turns[-1]:
            said = "<think>\n\n</think>\n\n" + said
        yield f"<|im_start|>{turn['role']}\n", False
        yield said + "<|im_end|>", turn["role"] == "assistant"
        yield "\n", False


def qwen25(messages: Messages, tools: Any) -> Iterator[Piece]:
    return _qwen(messages, tools, "You are Qwen, a helpful assistant.", thinks=False)


def qwen3(messages: Messages, tools: Any) -> Iterator[Piece]:
    return _qwen(messages, tools, "", thinks=True)


def mistral(messages: Messages, tools: Any) -> Iterator[Piece]:
    system, turns = _split(messages)
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    yield "<s>", False
    for i, turn in enumerate(turns):
        call, said = _call(turn), turn["content"]
        if turn["role"] == "user":
            listed = f"[AVAILABLE_TOOLS] {_json(tools)}[/AVAILABLE_TOOLS]" if tools and i == last else ""
            yield f"{listed}[INST] {system + chr(10) * 2 if system and i == last else ''}{said}[/INST]", False
        elif turn["role"] == "tool":
            called = turn["tool_call_id"]
            yield f'[TOOL_RESULTS] {{"content": {said}, "call_id": "{called}"}}[/TOOL_RESULTS]', False
        elif call:
            yield f'[TOOL_CALLS] [{_json(call)[:-1]}, "id": "{turn["tool_calls"][0]["id"]}"}}]</s>', True
        else:
            yield f" {said}</s>", True


def gemma(messages: Messages, tools: Any) -> Iterator[Piece]:
    system, turns = _split(messages)
    yield "<s>", False
    for i, turn in enumerate(turns):
        mine = turn["role"] == "assistant"
        yield f"<start_of_turn>{'model' if mine else 'user'}\n", False
        yield (system + "\n\n" if system and not i else "") + turn["content"] + "<end_of_turn>", mine
        yield "\n", False


def granite3(messages: Messages, tools: Any) -> Iterator[Piece]:
    answer = " Answer with <|tool_call|> and a JSON list of tools where one is needed." if tools else ""
    system, turns = _split(messages, "You are Granite." + answer)
    yield f"<|start_of_role|>system<|end_of_role|>{system}<|end_of_text|>\n", False
    if tools:
        yield f"<|start_of_role|>tools<|end_of_role|>{_json(tools, indent=4)}<|end_of_text|>\n", False
    for turn in turns:
        call = _call(turn)
        yield f"<|start_of_role|>{turn['role']}<|end_of_role|>", False
        said = turn["content"] + (f"<|tool_call|>{_json([call])}" if call else "")
        yield said + "<|end_of_text|>", turn["role"] == "assistant"
        yield "\n", False


def phi3(messages: Messages, tools: Any) -> Iterator[Piece]:
    for turn in messages:
        yield f"<|{turn['role']}|>\n", False
        yield turn["content"] + "<|end|>", turn["role"] == "assistant"
        yield "\n", False
    yield "<|endoftext|>", False


def phi4(messages: Messages, tools: Any) -> Iterator[Piece]:
    system, turns = _split(messages, "You are a helpful assistant with tools." if tools else "")
    if system:
        told = "".join(f"<|tool|>{_json(tool['function'])}<|/tool|>" for tool in tools or [])
        yield f"<|system|>{system}{told}<|end|>", False
    for turn in turns:
        call = _call(turn)
        if turn["role"] == "tool":
            yield f"<|tool_response|>{_json(turn['content'])}<|end|>", False
            continue
        yield f"<|{turn['role']}|>", False
        said = turn["content"] + (f"<|tool_call|>{_json(call)}<|/tool_call|>" if call else "")
        yield said + "<|end|>", turn["role"] == "assistant"
    yield "<|endoftext|>", False


def chatml(messages: Messages, tools: Any) -> Iterator[Piece]:
    for turn in messages:
        yield f"<|im_start|>{turn['role']}\n", False
        yield turn["content"] + "<|im_end|>", turn["role"] == "assistant"
        yield "\n", False


def zephyr(messages: Messages, tools: Any) -> Iterator[Piece]:
    for turn in messages:
        yield f"<|{turn['role']}|>\n", False
        yield turn["content"] + "</s>", turn["role"] == "assistant"
        yield "\n", False


def deepseek3(messages: Messages, tools: Any) -> Iterator[Piece]:
    system, turns = _split(messages)
    yield "<s>" + system, False
    before = ""
    for turn in turns:
        call, said = _call(turn), turn["content"]
        if turn["role"] == "user":
            yield "<｜User｜>" + said, False
        elif turn["role"] == "tool":
            yield (
                f"<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>{said}<｜tool▁output▁end｜><｜tool▁outputs▁end｜>",
                False,
            )
        else:
            yield "" if before == "tool" else "<｜Assistant｜>", False
            if call:
                said = f"function<｜tool▁sep｜>{call['name']}\n```json\n{_json(call['arguments'])}\n```"
                said = f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{said}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
            yield said + "<｜end▁of▁sentence｜>", True
        before = turn["role"]


def command_r(messages: Messages, tools: Any) -> Iterator[Piece]:
    system, turns = _split(messages)
    if tools:
        system = "# Available Tools" + "".join(
            f"\n\n{tool['function']['name']}: {tool['function']['description']}" for tool in tools
        )
    turn_of = "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>".format
    yield "<s>" + (f"{turn_of('SYSTEM')}{system}<|END_OF_TURN_TOKEN|>" if system else ""), False
    for turn in turns:
        call, said = _call(turn), turn["content"]
        if call:
            shown = _json({"tool_name": call["name"], "parameters": call["arguments"]}, indent=4)
            said = f"Action:\n```json\n[\n{shown}\n]\n```"
        if turn["role"] == "tool":
            said = f"<results>\nDocument: 0\n{said}</results>"
        yield turn_of({"user": "USER", "assistant": "CHATBOT", "tool": "SYSTEM"}[turn["role"]]), False
        yield said + "<|END_OF_TURN_TOKEN|>", turn["role"] == "assistant"


def glm4(messages: Messages, tools: Any) -> Iterator[Piece]:
    yield "[gMASK]<sop>", False
    if tools:
        yield "<|system|>\n# Tools\n" + "".join(_json(tool) + "\n" for tool in tools), False
    after_mine = False
    for turn in messages:
        call, said = _call(turn), turn["content"]
        role = "observation" if turn["role"] == "tool" else turn["role"]
        yield f"<|{role}|>", after_mine
        after_mine = role == "assistant"
        if after_mine:
            shown = "\n<think></think>" + (f"\n{said}" if said else "")
            if call:
                told = "".join(
                    f"\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>" for k, v in call["arguments"].items()
                )
                shown += f"\n<tool_call>{call['name']}{told}\n</tool_call>"
            yield shown, True
        else:
            yield (f"\n<tool_response>\n{said}\n</tool_response>" if role == "observation" else f"\n{said}"), False
    if after_mine:
        yield "<|user|>", True  # nothing ends the last turn: it gets what would open the next one


def gpt_oss(messages: Messages, tools: Any) -> Iterator[Piece]:
    system, turns = _split(messages)
    channels = "# Valid channels: analysis, commentary, final."
    yield "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n", False
    yield f"Reasoning: medium\n\n{channels}<|end|>", False
    if system or tools:
        told = "".join(
            f"// {t['function']['description']}\ntype {t['function']['name']} = (_: any) => any;\n" for t in tools or []
        )
        told = f"# Tools\n\n## functions\n\nnamespace functions {{\n{told}}} // namespace functions" if tools else ""
        shown = (f"# Instructions\n\n{system}" if system else "") + told
        yield f"<|start|>developer<|message|>{shown}<|end|>", False
    name = ""
    for turn in turns:
        call, said = _call(turn), turn["content"]
        if turn["role"] == "user":
            yield f"<|start|>user<|message|>{said}<|end|>", False
        elif turn["role"] == "tool":
            yield f"<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>{_json(said)}<|end|>", False
        elif call:
            name = call["name"]
            yield "<|start|>assistant", False
            yield f" to=functions.{name}<|channel|>commentary json<|message|>{_json(call['arguments'])}<|call|>", True
        else:
            yield "<|start|>assistant", False
            yield f"<|channel|>final<|message|>{said}{'<|return|>' if turn is turns[-1] else '<|end|>'}", True


_IM = ("<|im_start|>",)
_QWEN_WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_ROLES = ("user", "assistant", "system")
_TOOL_EDGES = [f"tool▁{n}▁{side}" for n in ("calls", "call", "outputs", "output") for side in ("begin", "end")]
_NO_CALLS = {"tools": "leaves out the call of `count`"}
FAMILIES = {
    "llama3": Family(llama3, ("<|eot_id|>", "<|eom_id|>"), ("<|start_header_id|>", "<|end_header_id|>")),
    "qwen25": Family(qwen25, ("<|im_end|>",), _IM, words=_QWEN_WORDS),
    "qwen3": Family(qwen3, ("<|im_end|>",), _IM, words=_QWEN_WORDS),
    "mistral": Family(
        mistral,
        ("</s>",),
        (
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
    ),
    "gemma2": Family(
        gemma,
        ("<end_of_turn>", "</s>"),
        ("<start_of_turn>",),
        refuses={"system": "System role not supported", "tools": "roles must alternate"},
    ),
    "gemma3": Family(gemma, ("<end_of_turn>", "</s>"), ("<start_of_turn>",), refuses={"tools": "roles must alternate"}),
    "granite3": Family(
        granite3,
        ("<|end_of_text|>",),
        ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
    ),
    "phi3": Family(
        phi3,
        ("<|end|>", "<|endoftext|>"),
        ("<|user|>", "<|assistant|>", "<|system|>"),
        eos="<|endoftext|>",
        refuses=_NO_CALLS,
    ),
    "phi4": Family(
        phi4,
        ("<|end|>", "<|endoftext|>"),
        tuple(f"<|{name}|>" for name in (*_ROLES, "tool", "/tool", "tool_call", "/tool_call", "tool_response")),
        eos="<|endoftext|>",
    ),
    "chatml": Family(chatml, ("<|im_end|>",), _IM, refuses=_NO_CALLS),
    "zephyr": Family(zephyr, ("</s>",), (), refuses=_NO_CALLS),
    "deepseek3": Family(
        deepseek3,
        ("<｜end▁of▁sentence｜>",),
        tuple(f"<｜{name}｜>" for name in ("User", "Assistant", "tool▁sep", *_TOOL_EDGES)),
        eos="<｜end▁of▁sentence｜>",
    ),
    "command_r": Family(
        command_r,
        ("<|END_OF_TURN_TOKEN|>",),
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        tools="command_r_tools",
    ),
    "glm4": Family(
        glm4,
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
        ("[gMASK]", "<sop>", "<|system|>", "<|assistant|>"),
        words=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ),
    "gpt_oss": Family(
        gpt_oss,
        ("<|return|>", "<|call|>", "<|endoftext|>"),
        ("<|start|>", "<|message|>", "<|end|>", "<|channel|>"),
        eos="<|return|>",
    ),
}
