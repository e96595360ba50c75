"""Models and adapters from strangers: a corpus of malicious folders, and the words that may not stand in our source.

The promise (SECURITY, acceptance tests 3 and 4): no code of an artifact runs, nothing connects anywhere, the process
survives; each folder is either refused with its reason or loaded with the malicious part ignored.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from luthier import publishing, spec
from luthier.errors import LuthierError, ModelError
from luthier.models import adapters, base, refusals
from luthier.models.methods import attach
from tests import tiny as models
from tests.trained import LORA, trained

REPOSITORY = Path(__file__).resolve().parents[1]
CANARY = Path(os.environ.get("TMPDIR", "/tmp")) / f"luthier-canary-{os.getpid()}"
CODE = f"open({str(CANARY)!r}, 'w').close()\n"


class Payload:
    """Unpickling one writes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (CODE,)


def pickled() -> bytes:
    return pickle.dumps(Payload())


def zipped() -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save({"weight": Payload()}, buffer)
    return buffer.getvalue()


def set_keys(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | changes))

    return change


def put(name: str, data: bytes | Callable[[], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data())

    return change


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def link(name: str, target: str | None = None) -> Callable[[Path], None]:
    """The file moves out of the folder (or is some other file), a link stays."""

    def change(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        shutil.copyfile(folder / name, outside)
        (folder / name).unlink()
        (folder / name).symlink_to(target or outside)

    return change


def fifo(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def lying(edit: Callable[[dict[str, Any]], Any], extra: bytes = b"") -> Callable[[Path], None]:
    """A safetensors file whose header was edited (and whose data grew by `extra`)."""

    def change(folder: Path) -> None:
        path = next(folder.glob("*model.safetensors"))
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        edit(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] + extra)

    return change


def first(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def raw_header(text: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text


def module(name: str) -> Callable[[Path], None]:
    return put(name, CODE.encode() + b"class Evil:\n    pass\n")


REFERENCE = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
MERGES = b'{"model":{"merges":[' + b'"a b",' * 10_000_001 + b'"a b"]}}'
SSTI = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch x') }}"
NEST = b"[" * 100_000

# name: (what is done to a good base, what is expected: a piece of the refusal, or None: loads, the bad part ignored)
BASES: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "pickle instead of weights": (both(drop("model.safetensors"), put("pytorch_model.bin", pickled)), "pickles only"),
    "torch file instead of weights": (both(drop("model.safetensors"), put("model.pt", zipped)), "pickles only"),
    "pickle named safetensors": (put("model.safetensors", pickled), "not a safetensors file"),
    "torch file named safetensors": (put("model.safetensors", zipped), "not a safetensors file"),
    "gguf named safetensors": (put("model.safetensors", b"GGUF" + b"\xff" * 60), "not a safetensors file"),
    "pickle beside weights": (put("pytorch_model.bin", pickled), None),
    "trainer leftovers": (
        both(put("rng_state.pth", zipped), put("optimizer.pt", zipped), put("training_args.bin", pickled)),
        None,
    ),
    "pickle named tokenizer.model": (put("tokenizer.model", pickled), None),
    "index of pickles beside weights": (
        both(set_keys("pytorch_model.bin.index.json", weight_map={"a": "x.bin"}), put("x.bin", pickled)),
        None,
    ),
    "index naming a pickle": (
        both(put("x.bin", pickled), set_keys("model.safetensors.index.json", weight_map={"a": "x.bin"})),
        "names `x.bin`",
    ),
    "index leaving the folder": (
        set_keys("model.safetensors.index.json", weight_map={"a": "../outside.safetensors"}),
        "not beside it",
    ),
    "index with an absolute path": (
        set_keys("model.safetensors.index.json", weight_map={"a": "/etc/x.safetensors"}),
        "not beside it",
    ),
    "index that is no map": (set_keys("model.safetensors.index.json", weight_map=["../x"]), "not beside it"),
    "auto_map beside a known type": (
        both(module("modeling_evil.py"), set_keys("config.json", auto_map=REFERENCE)),
        None,
    ),
    "auto_map of an unknown type": (
        both(module("modeling_evil.py"), set_keys("config.json", auto_map=REFERENCE, model_type="evil")),
        "auto_map",
    ),
    "auto_map of another repository": (
        set_keys("config.json", auto_map={"AutoConfig": "evil/repo--modeling_evil.Evil"}),
        None,
    ),
    "auto_map of the tokenizer": (
        both(
            module("tok_evil.py"),
            set_keys("tokenizer_config.json", auto_map={"AutoTokenizer": ["tok_evil.Evil", None]}),
        ),
        None,
    ),
    "tokenizer class of its own": (
        both(module("tok_evil.py"), set_keys("tokenizer_config.json", tokenizer_class="tok_evil.Evil")),
        None,
    ),
    "nested auto_map": (set_keys("config.json", text_config={"auto_map": REFERENCE}, model_type="evil"), "auto_map"),
    "pipelines of its own": (
        both(
            module("pipe.py"), set_keys("config.json", custom_pipelines={"x": {"impl": "pipe.Evil"}}, model_type="evil")
        ),
        "custom_pipelines",
    ),
    "trust_remote_code": (set_keys("config.json", trust_remote_code=True), "trust_remote_code"),
    "nested trust_remote_code": (
        set_keys("config.json", vision_config={"deep": [{"trust_remote_code": True}]}),
        "trust_remote_code",
    ),
    "trust_remote_code of the tokenizer": (
        set_keys("tokenizer_config.json", trust_remote_code=True),
        "trust_remote_code",
    ),
    "attention from a hub kernel": (
        set_keys("config.json", _attn_implementation="evil/kernel"),
        "_attn_implementation",
    ),
    "attention, other spelling": (set_keys("config.json", attn_implementation="evil/kernel:f"), "attn_implementation"),
    "attention, internal spelling": (
        set_keys("config.json", _attn_implementation_internal="evil/kernel"),
        "_attn_implementation_internal",
    ),
    "attention by part": (
        set_keys("config.json", attn_implementation={"": "sdpa", "text": "evil/kernel"}),
        "attn_implementation",
    ),
    "experts from a hub kernel": (
        set_keys("config.json", text_config={"experts_implementation": "evil/kernel"}),
        "experts_implementation",
    ),
    "use_kernels": (set_keys("config.json", use_kernels=True), "use_kernels"),
    "kernel_config": (set_keys("config.json", kernel_config={"RMSNorm": "evil/kernel"}), "kernel_config"),
    "generation from the hub": (set_keys("generation_config.json", custom_generate="evil/generate"), "custom_generate"),
    "generation code beside": (
        lambda folder: ((folder / "custom_generate").mkdir(), module("custom_generate/generate.py")(folder))[1],
        None,
    ),
    "address in the configuration": (set_keys("config.json", backbone="https://evil.example/x"), "address"),
    "file address": (set_keys("config.json", backbone="file:///etc/passwd"), "address"),
    "address of a vocabulary": (set_keys("tokenizer_config.json", vocab_file="http://evil.example/v"), "address"),
    "vocabulary outside": (set_keys("tokenizer_config.json", vocab_file="../../etc/passwd"), "outside the folder"),
    "quantizer with code": (set_keys("config.json", quantization_config={"quant_method": "evil"}), "stored quantized"),
    "adapter that redirects the base": (
        set_keys("adapter_config.json", base_model_name_or_path="evil/base", peft_type="LORA"),
        "an adapter, not a base",
    ),
    "template with an attack": (set_keys("tokenizer_config.json", chat_template=SSTI), None),
    "header longer than the file": (put("model.safetensors", raw_header(b"{}", 1 << 20)), "not a safetensors file"),
    "header of 2^63 bytes": (put("model.safetensors", raw_header(b"{}", 1 << 63)), "not a safetensors file"),
    "header that is no JSON": (put("model.safetensors", raw_header(b"{nonsense}")), "damaged"),
    "header that is a list": (put("model.safetensors", raw_header(b"[1, 2]")), "damaged"),
    "header nested without end": (put("model.safetensors", raw_header(NEST)), "damaged"),
    "tensors that overlap": (lying(lambda h: first(h).update(data_offsets=[4, 4 + _size(first(h))])), "overlap"),
    "tensor beyond the file": (lying(lambda h: first(h).update(shape=[1 << 40], data_offsets=[0, 1 << 42])), "overlap"),
    "bytes nobody declared": (lying(lambda h: None, b"secret"), "its header says"),
    "negative shape": (lying(lambda h: first(h).update(shape=[-1])), "damaged"),
    "unknown dtype": (lying(lambda h: first(h).update(dtype="PICKLE")), "damaged"),
    "offsets against shape": (lying(lambda h: first(h).update(shape=[1])), "damaged"),
    "weights linked from outside": (link("model.safetensors"), "leaves the folder"),
    "configuration linked from outside": (link("config.json"), "leaves the folder"),
    "tokenizer linked to a secret": (link("tokenizer.json", "/etc/passwd"), "leaves the folder"),
    "tokenizer linked to a device": (link("tokenizer.json", "/dev/zero"), "leaves the folder"),
    "configuration is a pipe": (fifo("config.json"), "config.json"),
    "weights are a pipe": (fifo("model.safetensors"), "not a regular file"),
    "tokenizer is a pipe": (fifo("tokenizer.json"), "not a regular file"),
    "template linked from outside": (
        lambda folder: (
            (folder / "additional_chat_templates").mkdir(),
            (folder / "additional_chat_templates" / "x.jinja").symlink_to("/etc/passwd"),
        )[1],
        "leaves the folder",
    ),
    "ten million merges": (put("tokenizer.json", MERGES), "entries"),
    "configuration of 20 MB": (put("config.json", b'{"a": "' + b"x" * (20 << 20) + b'"}'), "bytes, more than"),
    "configuration nested without end": (put("config.json", NEST), "not readable JSON"),
    "configuration that is a list": (put("config.json", b"[]"), "JSON object"),
    "a thousand million layers": (set_keys("config.json", num_hidden_layers=10**9), "num_hidden_layers"),
    "more layers than weights": (set_keys("config.json", num_hidden_layers=60), "partly random"),
    "sizes that are words": (set_keys("config.json", hidden_size="__import__('os')"), "not a valid"),
}


def _size(entry: dict[str, Any]) -> int:
    return entry["data_offsets"][1] - entry["data_offsets"][0]


ADAPTERS: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "pickle instead of tensors": (
        both(drop("adapter_model.safetensors"), put("adapter_model.bin", pickled)),
        "a pickle is never opened",
    ),
    "pickle named safetensors": (put("adapter_model.safetensors", pickled), "not a safetensors file"),
    "torch file named safetensors": (put("adapter_model.safetensors", zipped), "not a safetensors file"),
    "pickle beside tensors": (both(put("adapter_model.bin", pickled), put("rng_state.pth", zipped)), None),
    "points to another base": (
        both(drop("luthier.json"), set_keys("adapter_config.json", base_model_name_or_path="evil/base")),
        "trained on `evil/base`",
    ),
    "points to an address": (
        set_keys("adapter_config.json", base_model_name_or_path="https://evil.example/base"),
        "address",
    ),
    "imports a module": (
        set_keys("adapter_config.json", megatron_core="evil", megatron_config={"a": 1}),
        "variant luthier does not compute",
    ),
    "opens a cache": (
        set_keys("adapter_config.json", corda_config={"cache_file": "x.pt"}),
        "variant luthier does not compute",
    ),
    "class of its own": (
        both(
            drop("luthier.json"),
            set_keys("adapter_config.json", auto_mapping={"base_model_class": "system", "parent_library": "os"}),
        ),
        None,
    ),
    "auto_map": (both(module("evil.py"), set_keys("adapter_config.json", auto_map=REFERENCE)), "auto_map"),
    "trust_remote_code": (set_keys("adapter_config.json", trust_remote_code=True), "trust_remote_code"),
    "rank that fills the memory": (set_keys("adapter_config.json", r=10**9), "`r` is 1000000000"),
    "target that is code": (
        both(drop("luthier.json"), set_keys("adapter_config.json", target_modules="(a+)+$")),
        None,
    ),
    "tensors that overlap": (lying(lambda h: first(h).update(data_offsets=[4, 4 + _size(first(h))])), "overlap"),
    "bytes nobody declared": (lying(lambda h: None, b"secret"), "its header says"),
    "tensors linked from outside": (link("adapter_model.safetensors"), "leaves the folder"),
    "configuration is a pipe": (fifo("adapter_config.json"), "adapter_config.json"),
    "manifest nested without end": (put("luthier.json", b'{"files": ' + NEST), "not readable JSON"),
    "manifest that is a list": (put("luthier.json", b"[]"), "JSON object"),
    "manifest that lies of bits": (
        set_keys("luthier.json", method={"type": "qlora", "bits": "__import__('os')"}),
        "make no method",
    ),
    "manifest without a base": (set_keys("luthier.json", base=None), "luthier.json"),
}


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fails the test if the canary sings or anything connects."""
    calls: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: calls.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: calls.append(address))
    CANARY.unlink(missing_ok=True)
    yield
    assert not CANARY.exists(), "code of an artifact was run"
    assert calls == [], "something connected"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tuned = trained("tiny_llama", LORA)
    return adapters.save(tuned, tuned.slots[0], tmp_path_factory.mktemp("adapter") / "good")


def test_the_corpus_is_large_and_its_pickles_are_live() -> None:
    assert len(BASES) + len(ADAPTERS) >= 40
    for unpack in (lambda: pickle.loads(pickled()), lambda: torch.load(io.BytesIO(zipped()), weights_only=False)):
        unpack()
        assert CANARY.exists(), "this payload would prove nothing"
        CANARY.unlink()


@pytest.mark.parametrize("name", BASES)
def test_malicious_base(name: str, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at, trained on, evaluated, merged into, published: the same verdict every time."""
    change, said = BASES[name]
    folder = models.build("tiny_llama", tmp_path / "base")
    change(folder)
    model = spec.Model(name=str(folder))
    monkeypatch.setattr(publishing, "in_fresh_process", lambda asked, _: [publishing.answer(each) for each in asked])
    ways = [
        lambda: base.load(model, LORA),
        lambda: base.load(model),
        lambda: publishing.publish(adapter, model, tmp_path / "out", merge=True),
    ]
    if said not in ("partly random", "pickles only"):  # known only when the weights are read
        ways.append(lambda: base.inspect(str(folder)))
    for way in ways:
        if said is None:
            way()
        else:
            with pytest.raises(ModelError, match=re.escape(said)):
                way()
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert bool(written) == (said is None)
    assert not [path for path in written if path.suffix in (".py", ".bin", ".pt", ".pth", ".model")]
    assert not [path for path in written if path.suffix == ".json" and b'"auto_map"' in path.read_bytes()]


@pytest.mark.parametrize("name", ADAPTERS)
def test_malicious_adapter(name: str, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, said = ADAPTERS[name]
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    change(folder)
    model = spec.Model(name=str(models.build("tiny_llama")))
    monkeypatch.setattr(publishing, "in_fresh_process", lambda asked, _: [publishing.answer(each) for each in asked])

    def use() -> None:
        files = adapters.read(folder)
        method = adapters.method_of(files)
        tuned = attach(base.load(model, method), [method], [0])
        adapters.load(tuned, tuned.slots[0], files)

    for way in (
        use,
        lambda: adapters.merge(base.load(model), adapters.read(folder)),
        lambda: publishing.publish(folder, model, tmp_path / "out"),
        lambda: publishing.publish(folder, model, tmp_path / "merged", merge=True),
    ):
        if said is None:
            way()
        else:
            with pytest.raises(ModelError, match=re.escape(said)):
                way()


def test_remote_code_stays_off_even_for_a_caller_who_switches_it_on(tmp_path: Path) -> None:
    """CVE-2026-5241: a nested configuration turned the flag back on."""
    refusals.forbid_remote_code()
    folder = models.build("tiny_llama", tmp_path)
    module("modeling_evil.py")(folder)
    set_keys("config.json", auto_map=REFERENCE, model_type="evil")(folder)
    set_keys("tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_evil.Evil", None]})(folder)
    for loader in (transformers.AutoConfig, transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        with pytest.raises(LuthierError, match="its own Python code"):
            loader.from_pretrained(folder, trust_remote_code=True)


# ------------------------------------------------------------------------------------------------- what we never write

# file: the words that may stand in it, and why
ALLOWED: dict[str, tuple[set[str], str]] = {
    "sheet.py": ({"jinja2.Environment"}, "renders our own templates, autoescaped"),
}
SHEET = "sheet.html.j2"  # the frame of every page: only our own style, script and policy pass unescaped
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "yaml.load",
    "jinja2.Environment",
}
IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
KEYWORDS = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True)}
MARKUP = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|mark_safe|\|\s*safe\b|autoescape\s+false")


def forbidden(source: str) -> set[str]:
    """The forbidden words a Python source uses: calls, imports, keyword arguments."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found |= {name} & CALLS
            for word in node.keywords:
                if isinstance(word.value, ast.Constant) and (word.arg, word.value.value) in KEYWORDS:
                    found.add(f"{word.arg}={word.value.value}")
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & IMPORTS
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[0]} & IMPORTS
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & CALLS
    return found


def test_the_gate_sees_what_it_forbids() -> None:
    bad = (
        "import pickle\nfrom torch import load\nfrom os import system\nimport joblib.hashing\n"
        "exec('x')\ntorch.load('f', weights_only=False)\nsubprocess.run('x', shell=True)\njinja2.Environment()\n"
        "np.load('f', allow_pickle=True)\nmodel.from_pretrained('x', trust_remote_code=True)\n"
    )
    assert forbidden(bad) == {
        "pickle", "torch.load", "os.system", "joblib", "exec", "weights_only=False", "shell=True", "jinja2.Environment",
        "allow_pickle=True", "trust_remote_code=True",
    }  # fmt: skip
    assert forbidden("model.eval()\nre.compile('x')\nsafetensors.torch.load(b'')\nrun(['ls'], shell=False)") == set()


def test_no_source_of_ours_uses_them() -> None:
    root = REPOSITORY / "src" / "luthier"
    guilty = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        words = forbidden(path.read_text(encoding="utf-8")) - ALLOWED.get(name, (set(), ""))[0]
        if words:
            guilty[name] = words
    assert guilty == {}


def test_no_page_of_ours_writes_raw_markup() -> None:
    pages = [path for kind in ("*.html", "*.js", "*.j2", "*.jinja") for path in (REPOSITORY / "src").rglob(kind)]
    ours = [path for path in pages if "vendor" not in path.parts]
    assert [path.name for path in ours if MARKUP.search(path.read_text(encoding="utf-8"))] == [SHEET]
    [sheet] = (path.read_text(encoding="utf-8") for path in ours if path.name == SHEET)
    assert set(re.findall(r"{{ (\w+)\|safe }}", sheet)) == {"policy", "style", "script"}
