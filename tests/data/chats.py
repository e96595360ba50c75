"""Chat templates of the shapes that models ship, and the answers each must train.

Written for these tests; what matters is how a family opens a turn, ends it, and treats history.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from tests import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
TURNS = (  # refuses a system message, calls the assistant `model`
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
BARS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
EOS_LINES = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ROLES = (
    "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
STRIPS_THINKING = (  # what was thought disappears from every turn that has a user turn behind it
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content and loop.index0 < ns.last %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADDS_EMPTY_THINKING = (  # the last answer gets an empty thought, which the generation prompt leaves to the model
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEXT_ROLE_ENDS = (  # nothing ends an assistant turn but the opening of the next one
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
DISAGREES = (  # prompts with an opened thought, but renders answers without one
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end|>",
    "<|user|>",
]
SPECIAL += ["<|assistant|>", "<|system|>", "<|tool|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>"]


@dataclass(frozen=True)
class Style:
    """A template, its end tokens (the first is the one appended), and what stands between answer and end token."""

    template: str
    ends: tuple[str, ...]
    stop: str
    opens: str = ""
    tail: str | None = None  # what ends the last turn, where it is not `stop`
    refuses: tuple[str, ...] = field(default=())


STYLES = {
    "chatml": Style(TOOLS + CHATML, ("<|im_end|>",), "<|im_end|>"),
    "headers": Style(HEADERS, ("<|eot_id|>",), "<|eot_id|>"),
    "inst": Style(INST, ("</s>",), "</s>", opens=" "),
    "turns": Style(TURNS, ("<end_of_turn>", "</s>"), "<end_of_turn>", refuses=("system",)),
    "bars": Style(BARS, ("<|end|>",), "<|end|>"),
    "eos lines": Style(EOS_LINES, ("</s>",), "</s>"),
    "roles": Style(ROLES, ("<|end_of_text|>",), "<|end_of_text|>"),
    "strips thinking": Style(STRIPS_THINKING, ("<|im_end|>",), "<|im_end|>"),
    "next role ends": Style(NEXT_ROLE_ENDS, ("</s>", "<|user|>", "<|tool|>"), "<|user|>", tail="<|user|>"),
}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that adds `<s>` by itself, knows the special tokens above, and has this chat template."""
    text = tiny.tokenizer("causal")
    text.add_special_tokens({"additional_special_tokens": SPECIAL})
    text.chat_template = template
    return text
