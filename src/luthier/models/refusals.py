"""What a model or adapter folder may not contain: looked at before anything of it is loaded.

Lives here: the checks of files, JSON keys and safetensors headers, and the switch that turns remote code off for good.
Does not live here: loading (`base.py`, `adapters.py`). Rules and advisories: SECURITY.md of the project, R1 to R4.
"""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

from luthier.errors import ModelError, here, means_a_path, near_path

CONFIGURATIONS = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json")
"""The JSON files whose keys decide what a loader does; scanned key by key."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FORBIDDEN_KEY = re.compile(r"^(trust_remote_code|use_kernels?|kernels?|kernel_config|hub_kernels?|custom_generate)$")
_IMPLEMENTATION = re.compile(r"_implementation(_internal)?$")
_HARMLESS = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
_CODE_MAP = {"auto_map", "custom_pipelines"}
_URL = re.compile(r"^\s*[A-Za-z][A-Za-z0-9+.-]*://")
_COUNT = re.compile(r"layers?$|experts?$")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5")

_MOST_BYTES = {"config": 16 << 20, "json": 128 << 20}
_MOST_TOKENIZER_ENTRIES = 5_000_000  # the largest real vocabularies and merges together stay under two million
_MOST_LAYERS = 10_000
_MOST_HEADER = 100_000_000  # the limit of the safetensors format itself
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
}


def named_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder that `name` means; None where it can only be an id of the Hub. Raises ModelError for neither."""
    path = here(name)
    if path.is_dir():
        if revision is not None:
            raise ModelError(f"`{name}` is a folder and has no revisions", hint="leave out `model.revision`")
        return path
    if path.is_file():
        raise ModelError(f"`{name}` is a file, not a model folder", hint="name the folder that holds config.json")
    if means_a_path(name) or not _HUB_ID.fullmatch(name) or ".." in name:
        hint = near_path(path) or "give a folder, or a Hub id such as `org/name`"
        raise ModelError(f"there is no model folder `{name}`", hint=hint)
    return None


def forbid_remote_code() -> None:
    """From now on no code out of a model repository can run in this process, whatever a file says.

    transformers imports a repository's Python through two functions; both are replaced by one that raises, in every
    module that holds them (CVE-2026-5241 turned the switch `trust_remote_code` back on from a nested configuration).
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.get_class_in_module = _refuse_code
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and "get_class_from_dynamic_module" in vars(module):
            module.get_class_from_dynamic_module = _refuse_code  # type: ignore[attr-defined]


def _refuse_code(*_: Any, **__: Any) -> NoReturn:
    raise ModelError(
        "the model's repository asks to run its own Python code, which luthier never does",
        hint="choose a model that transformers implements itself",
    )


def scan(folder: Path, known_model_type: bool = True) -> list[str]:
    """Look at every file of `folder` that a loader would open; raise ModelError at the first that must not be opened.

    Returns notes: things that were found and are ignored (an `auto_map` beside a model type that transformers
    implements). `known_model_type` False makes those refusals too. Nothing is loaded, no file outside is followed.
    """
    notes: list[str] = []
    for path in _files(folder):
        if path.name in CONFIGURATIONS:
            notes += _scan_keys(read_json(path, "config"), path, known_model_type)
        elif path.name.endswith(".index.json"):
            _check_index(path)
        elif path.suffix in (".json", ".jinja", ".txt", ".model", ".tiktoken"):
            _check_size(path)
        elif path.suffix == ".safetensors":
            header(path)
    return notes


def _files(folder: Path) -> list[Path]:
    """Regular files of the folder (and of its chat templates); links that leave it and special files are refused."""
    home = folder.resolve()
    if home.parent.name == "snapshots":  # the Hub's cache links a snapshot's files to ../../blobs
        home = home.parents[1]
    found = []
    templates = folder / "additional_chat_templates"
    for path in [*sorted(folder.iterdir()), *(sorted(templates.iterdir()) if templates.is_dir() else [])]:
        target = path.resolve()
        if path.is_dir() and path != templates:
            continue
        if not target.is_relative_to(home):
            raise ModelError(
                f"`{path.name}` is a link that leaves the folder", str(path), "put a copy of the file there"
            )
        if path.is_dir():
            continue
        if not target.exists() or not stat.S_ISREG(target.stat().st_mode):
            raise ModelError(f"`{path.name}` is not a regular file", str(path))
        found.append(path)
    return found


def read_json(path: Path, kind: str = "json") -> dict[str, Any]:
    """The JSON object in `path`, bounded in size and depth; ModelError names the file. A pipe is never opened."""
    if not path.is_file():
        raise ModelError(f"`{path.name}` is not a regular file", str(path))
    if path.stat().st_size > _MOST_BYTES[kind]:
        raise ModelError(f"`{path.name}` has {path.stat().st_size:,} bytes, more than {_MOST_BYTES[kind]:,}", str(path))
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`{path.name}` is not readable JSON: {str(error)[:120]}", str(path)) from None
    if not isinstance(content, dict):
        raise ModelError(f"`{path.name}` must hold a JSON object", str(path))
    return content


def _scan_keys(content: dict[str, Any], path: Path, known_model_type: bool) -> list[str]:
    notes = []
    stack: list[tuple[str, Any]] = [("", content)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in _CODE_MAP and known_model_type:
                    notes.append(f"`{path.name}` names code of its own ({key}); it is ignored")
                else:
                    _check_key(key, inner, path)
                    stack.append((f"{where}.{key}".lstrip("."), inner))
        elif isinstance(value, list):
            stack += [(where, inner) for inner in value]
        elif isinstance(value, str) and _URL.match(value):
            raise ModelError(
                f"`{where}` holds an address ({value[:60]})", str(path), "models are loaded from files, not URLs"
            )
    return notes


def _check_key(key: str, value: Any, path: Path) -> None:
    if _FORBIDDEN_KEY.search(key) or key in _CODE_MAP:
        _raise_key(key, path)
    if _IMPLEMENTATION.search(key):
        for choice in value.values() if isinstance(value, dict) else [value]:
            if not (choice is None or isinstance(choice, str)) or choice not in _HARMLESS:
                _raise_key(key, path)
    if key.endswith(("_file", "_files")):
        names = value if isinstance(value, list) else [value]
        if any(isinstance(name, str) and ".." in Path(name).parts for name in names):
            raise ModelError(f"`{key}` names a file outside the folder", str(path))
    if _COUNT.search(key) and isinstance(value, int) and value > _MOST_LAYERS:
        raise ModelError(f"`{key}` is {value:,}, which no model has", str(path))


def _raise_key(key: str, path: Path) -> NoReturn:
    raise ModelError(
        f"`{key}` would let the file choose code to run; luthier refuses it",
        str(path),
        "choose a model that transformers implements itself, or remove the key if you trust the rest",
    )


def _check_size(path: Path) -> None:
    if path.stat().st_size > _MOST_BYTES["json"]:
        raise ModelError(f"`{path.name}` has {path.stat().st_size:,} bytes, more than any tokenizer", str(path))
    if path.name == "tokenizer.json" and path.read_bytes().count(b",") > _MOST_TOKENIZER_ENTRIES:
        raise ModelError(f"`{path.name}` has more than {_MOST_TOKENIZER_ENTRIES:,} entries", str(path))


def _check_index(path: Path) -> None:
    """A shard list may name only safetensors files that lie beside it."""
    if path.name != "model.safetensors.index.json":
        return  # lists of pickles and other formats are never opened
    names = read_json(path).get("weight_map")
    shards = names.values() if isinstance(names, dict) else [names]
    for shard in set(map(str, shards)):
        if not re.fullmatch(r"[\w.-]+\.safetensors", shard) or not (path.parent / shard).is_file():
            raise ModelError(f"the list of weight files names `{shard[:80]}`, which is not beside it", str(path))


def header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors a safetensors file declares: name → dtype, shape, data_offsets; checked against the file's length.

    Raises ModelError when the file is something else under this name (a pickle, a zip) or its header lies: too long,
    unknown dtype, offsets that overlap, leave gaps or end elsewhere than the file (CVE-2026-7482 trusted them).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(_MOST_HEADER, size - 8):
            raise ModelError(f"`{path.name}` is not a safetensors file", str(path), _what_it_is(path))
        raw = file.read(length)
    try:
        tensors = json.loads(raw)
        tensors.pop("__metadata__", None)
        spans = sorted(_span(entry) for entry in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"`{path.name}` has a damaged safetensors header", str(path)) from None
    end = 0
    for start, stop in spans:
        if start != end:
            raise ModelError(f"`{path.name}`: tensors overlap or leave gaps", str(path))
        end = stop
    if end != size - 8 - length:
        raise ModelError(
            f"`{path.name}` holds {size - 8 - length:,} bytes of tensors, its header says {end:,}", str(path)
        )
    return tensors


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    bits = _BITS[entry["dtype"]]
    for length in entry["shape"]:
        if not isinstance(length, int) or length < 0:
            raise ValueError("shape")
        bits *= length
    if not (isinstance(start, int) and isinstance(stop, int)) or start < 0 or (stop - start) * 8 != bits:
        raise ValueError("offsets")
    return start, stop


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:1] == b"\x80" or magic[:2] == b"PK":
        return "it is a pickle under another name, and opening pickles runs code"
    return "it is GGUF" if magic == b"GGUF" else "download it again"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the folder's weights; ModelError when there are none (pickles do not count)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise ModelError(
            f"the weights are stored as pickles only ({', '.join(pickles[:3])})",
            str(folder),
            "opening a pickle can run code: use a revision or a conversion with safetensors files",
        )
    raise ModelError("no weights found (model.safetensors)", str(folder))
