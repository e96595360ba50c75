"""The process that renders templates: attacks end in a clear error and cost no more than the limits (SECURITY 5)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from luthier.data import encode, rendering, sandbox
from luthier.data.encode import Rules
from luthier.data.examples import Example, Message
from luthier.data.rendering import Chat, Refusal
from luthier.errors import DataError
from tests.data import chats

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hö\ud800"}]
CHAT = Chat(MESSAGES, None, ((2, False),))
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}

ESCAPES = [
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch x') }}",
    "{{ joiner.__init__.__globals__['os'] }}",
    "{{ namespace.__init__.__globals__['sys'] }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ strftime_now.__globals__['os'] }}",
    "{{ dict.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ range.__class__.__base__.__subclasses__() }}",
    "{{ (1).__class__.__base__.__subclasses__() }}",
    "{{ messages.append.__self__.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{x.__class__.__init__.__globals__}'.format_map({'x': messages}) }}",
    "{{ (messages|list).__class__.__mro__ }}",
    "{% set n = namespace(__class__=1) %}{{ n }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{{ messages|map(attribute='__class__')|map(attribute='__mro__')|list }}",
]
BOMBS = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "more than 2 s of processor time",
    "{{ 10 ** (10 ** 10) }}": "more than 2 s of processor time",
    "{{ 'a' * 10 ** 9 }}": "more than 256 MB",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}": "more than 256 MB",
    "{{ '%0999999999d' | format(1) }}": "more than 256 MB",
    "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}": "writes too much text",
    "{% set x = 'a' * 9999999 %}{{ x }}": "writes too much text",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for i in range(10 ** 9) %}{% endfor %}": "Range too big",
}


def _rendered(template: str, *asked: Chat) -> Any:
    return rendering.render(template, VARIABLES, asked or [CHAT])


@pytest.mark.parametrize("template", ESCAPES)
def test_no_way_out_of_the_sandbox(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (answer,) = _rendered(template)
    assert isinstance(answer, Refusal) and "tries what no template may" in answer.reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("template", BOMBS)
def test_a_bomb_costs_no_more_than_the_limits(template: str) -> None:
    _rendered("{{ bos_token }}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    (answer,) = _rendered(template)
    assert isinstance(answer, Refusal) and BOMBS[template] in answer.reason
    rendering._child("x", {}).end()  # so that what it used is counted
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2 * sandbox.CPU_SECONDS
    assert _rendered("{{ messages[0].content }}") == [["hi"]]  # a new process stands ready


def test_the_chat_that_breaks_a_limit_is_named_and_those_before_it_stand() -> None:
    template = "{% set x = messages[0].content %}{% if x == 'bomb' %}{{ x * 10 ** 9 }}{% endif %}{{ x }}"
    many = [Chat([{"role": "user", "content": text}], None, ((1, False),)) for text in ("a", "b", "bomb", "c")]
    first, second, breach = _rendered(template, *many)
    assert (first, second) == (["a"], ["b"]) and "more than 256 MB" in breach.reason
    text = chats.tokenizer(template + "{{ messages[-1].content }}")
    examples = [
        Example(str(i), "chat", (Message("user", word), Message("assistant", "x")), file="f.jsonl", line=i)
        for i, word in enumerate(("a", "bomb", "c"), 1)
    ]
    with pytest.raises(DataError, match="chat template takes more than 256 MB of memory") as caught:
        encode.encode_split(examples, text, Rules("causal", "chat", chat=True, end_token_ids=(1,)))
    assert caught.value.where == "f.jsonl:2" and "model.chat_template" in (caught.value.hint or "")


def test_a_refusal_ends_nothing_and_its_words_are_the_templates() -> None:
    template = "{% if messages[0].content == 'no' %}{{ raise_exception('not\\nso') }}{% endif %}yes"
    many = [Chat([{"role": "user", "content": text}], None, ((1, False),)) for text in ("a", "no", "c")]
    assert _rendered(template, *many) == [["yes"], Refusal("refuses this chat: not"), ["yes"]]
    process = rendering._current[0].process.pid
    assert "unexpected 'end of template'" in _rendered("{% if")[0].reason
    assert "'x' is undefined" in _rendered("{{ x.y }}")[0].reason
    assert "'str' object is not callable" in _rendered("{{ bos_token() }}")[0].reason
    assert rendering._current[0].process.pid == process


def test_what_transformers_adds_to_jinja_is_there() -> None:
    """Its own renderer is the reference: filters, functions, tags, loop controls, whitespace."""
    templates = [
        "{{ messages | tojson }}{{ {'b': '<ü>', 'a': [1, none, true]} | tojson(indent=2, sort_keys=true) }}",
        "{{ messages[0] | tojson(ensure_ascii=true, separators=(',', ':')) }}",
        "{{ strftime_now('%Y') }}",
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% continue %}x{% endfor %}",
        "{% for m in messages %}\n {% generation %}\n{% set a = 1 %}{{ m.role }} {% endgeneration %}\n{% endfor %}",
        "{% generation %}{% set a = 1 %}{% endgeneration %}{{ a }}",
        "{% set n = namespace(a=1, self=2) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ n.self }}",
        "{{ dict(a=1) }}{{ dict.fromkeys('ab', 1) }}{{ dict([['a', 2]]) }}",
        "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ tools }}{{ documents }}{{ add_generation_prompt }}",
        "   {%- if true %}  \n  x\n  {% endif %}  \n",
        "{{ messages | pprint }}{{ messages | map(attribute='role') | join(',') }}{{ '%05d' | format(3) }}",
        "{{ messages[0].name is defined }}{{ messages[-1].content is string }}{{ messages[::-1][0].role }}",
        "{{ 'é' | urlencode }}{{ 'a b' | title | wordwrap(1) }}{{ '<b>' | e }}{{ '<b>' | striptags }}",
    ]
    text: PreTrainedTokenizerFast = chats.tokenizer("")
    messages = [{"role": "user", "content": "hi <|im_end|>"}, {"role": "assistant", "content": "hö", "name": None}]
    for template in templates:
        told = rendering.render(
            template, text.special_tokens_map, [Chat(messages, [{"a": 1}], ((2, True), (1, False)))]
        )
        expected = [
            text.apply_chat_template(
                messages[:count], [{"a": 1}], chat_template=template, tokenize=False, add_generation_prompt=opened
            )
            for count, opened in ((2, True), (1, False))
        ]
        assert told == [expected]
    assert _rendered("{{ strftime_now('%d %b %Y %H') }}")[0][0] in {
        datetime.fromtimestamp(time.time() + shift).strftime("%d %b %Y %H") for shift in (-60, 0)
    }


def test_any_text_goes_through_whole() -> None:
    odd = "\n\r\u2028\x00\ud800 \U0001f600 \ufdd0" + "x" * (3 << 20)
    many = [Chat([{"role": "user", "content": odd[i:]}], None, ((1, False),)) for i in range(3)]
    assert _rendered("{{ messages[0].content }}", *many) == [[odd], [odd[1:]], [odd[2:]]]


def test_the_process_is_light_sees_no_secret_and_ends_with_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import runpy, sys; sys.stdin.close; runpy.run_path({str(sandbox.__file__)!r}); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "jinja2" in loaded and not {"torch", "transformers", "numpy", "luthier"} & set(loaded)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    child = rendering._Child()
    environment = Path(f"/proc/{child.process.pid}/environ")
    if environment.exists():
        assert b"hf_aaaa" not in environment.read_bytes()
    child.learn("{{ messages[0].content }}", {})
    assert child.render([CHAT]) == [["hi"]]
    assert os.getpgid(child.process.pid) != os.getpgrp()  # Ctrl-C is not for it
    child.process.stdin.close()  # type: ignore[union-attr]
    assert child.process.wait(10) == 0


def test_a_fork_gets_a_process_of_its_own() -> None:
    _rendered("{{ messages[0].content }}")
    mine = rendering._current[0]
    mine.owner = -1  # as a forked copy sees it
    assert not mine.usable
    assert _rendered("{{ messages[0].content }}") == [["hi"]]
    assert rendering._current[0] is not mine
    mine.owner = os.getpid()
    mine.end()
