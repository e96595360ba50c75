"""watsonx.ai: the JSON of a training request (`prompt_tuning` of /ml/v1/trainings, or /ml/v1/fine_tunings).

Lives here: what each of its keys means here. Its documents' starting values are luthier's presets (PARAMETERS.md), so
what a request leaves open is left open, but for what the service adds whatever the model.
"""

from __future__ import annotations

import re

from luthier.conversion import hugging_face as hf
from luthier.conversion.lines import VERDICT, Foreign, Line, Tool, as_here, carried, changed, default, lost, names

NAME = "watsonx"
_HUB = {
    "ibm/granite-3-1-8b-base": "ibm-granite/granite-3.1-8b-base",
    "meta-llama/llama-3-1-8b": "meta-llama/Llama-3.1-8B",
    "meta-llama/llama-3-1-70b": "meta-llama/Llama-3.1-70B",
    "google/flan-t5-xl": "google/flan-t5-xl",
    "google/flan-t5-xl-3b": "google/flan-t5-xl",
    "google/flan-ul2": "google/flan-ul2",
}
"""The names of models that can be tuned there → the same weights on the Hub."""
_TASKS = ("classification", "generation", "summarization")
_SERVICE = "luthier runs here, not in a project"
ROWS = "training.jsonl"


def _model(f: Foreign) -> list[Line]:
    base = f.values.get("base_model")
    name = base.get("model_id") if isinstance(base, dict) else base
    if not isinstance(name, str):
        raise f.wrong("base_model", "a name, or an object with `model_id`")
    key = "base_model.model_id" if isinstance(base, dict) else "base_model"
    if name in _HUB:
        same = _HUB[name] == name
        words = "the same weights under their name on the Hub"
        return [carried(key, "model.name", name) if same else changed(key, words, "model.name", _HUB[name])]
    words = "a name of watsonx's, taken as it is: write the Hub's, or a folder"
    return [changed(key, words, "model.name", name)]


def _method(f: Foreign) -> list[Line]:
    """Prompt tuning, or by `peft_parameters.type` lora, qlora or all weights."""
    if f.has("tuning_type") or not (f.has("peft_parameters") or f.has("max_seq_length")):
        return _soft(f)
    peft = f.inner("peft_parameters")
    kind = peft.word("type", "none")
    if kind not in ("lora", "qlora", "none"):
        raise peft.wrong("type", "lora, qlora or none")
    method = "full" if kind == "none" else kind
    key = "peft_parameters.type"
    words = "no `peft_parameters`: all weights are trained"
    found = [carried(key, "method.type", method) if peft.has("type") else default("method.type", method, words)]
    numbers = {"lora_alpha": "alpha", "alpha": "alpha", "lora_dropout": "dropout", "dropout": "dropout"}
    for name in peft.values:
        full, path = f"peft_parameters.{name}", f"method.{numbers.get(name, name)}"
        if name == "type":
            continue
        if method == "full":
            found.append(lost(full, "all weights are trained"))
        elif name in numbers:
            found.append(carried(full, path, peft.number(name)))
        elif name == "rank":
            found.append(carried(full, path, peft.count(name)))
        elif name == "target_modules":
            found.append(carried(full, path, peft.texts(name)))
        else:
            found.append(lost(full, "not a key of watsonx that luthier knows"))
    return found


def _soft(f: Foreign) -> list[Line]:
    if f.text("tuning_type", "prompt_tuning") != "prompt_tuning":
        raise f.wrong("tuning_type", "prompt_tuning")
    key = "tuning_type"
    found = [carried(key, "method.type", "prompt_tuning") if f.has(key) else default("method.type", "prompt_tuning")]
    found.append(default("method.virtual_tokens", 100, "as the service's models say"))
    start = f.text("init_method", "random")
    if start not in ("random", "text"):
        raise f.wrong("init_method", "random or text")
    given = f.has("init_method")
    found.append(carried("init_method", "method.init_method", start) if given else default("method.init_method", start))
    if f.has("init_text"):
        words = "`init_method` is random: the service does not use it either"
        text = carried("init_text", "method.init_text", f.text("init_text"))
        found.append(text if start == "text" else lost("init_text", words))
    return found


def _batch(f: Foreign) -> list[Line]:
    """`batch_size` is a device's share: the devices that `gpu` names become steps of accumulation."""
    steps, devices = f.count("accumulate_steps"), f.inner("gpu").count("num", 1)
    if devices < 2:
        gpu = [lost("gpu", hf.PLACE)] if f.has("gpu") else []
        return gpu + ([carried("accumulate_steps", "training.accumulate_steps", steps)] if steps else [])
    steps = steps or 1
    words = f"batch_size counts on each of the {devices} devices there: {steps} × {devices} = the same rows a step"
    keys = "accumulate_steps × gpu.num" if f.has("accumulate_steps") else "gpu.num"
    return [changed(keys, words, "training.accumulate_steps", steps * devices)]


def _task(f: Foreign) -> list[Line]:
    task = f.text("task_id")
    if task is None:
        return []
    if task in _TASKS:
        return [carried("task_id", "task", task)]
    return [changed("task_id", f"luthier has no task `{task}`: generation is the nearest", "task", "generation")]


def _length(f: Foreign) -> list[Line]:
    """One limit for question and answer together; what is longer is cut, as the document says."""
    found = [default("data.overlength", "cut", "a longer example is cut")]
    source, answer = f.count("max_input_tokens"), f.count("max_output_tokens")
    if f.has("max_seq_length"):
        found.append(carried("max_seq_length", "training.max_seq_length", f.count("max_seq_length")))
    elif source is not None and answer is not None:
        key = "max_input_tokens × max_output_tokens"
        words = f"{source} + {answer}: luthier has one limit for question and answer together"
        found.append(changed(key, words, "training.max_seq_length", source + answer))
    elif source is not None:
        found.append(lost("max_input_tokens", "luthier has one limit for both: training.max_seq_length"))
    if answer is not None:
        found.append(carried("max_output_tokens", "evaluation.max_new_tokens", answer))
    return found


def _prompt(f: Foreign) -> list[Line]:
    """The verbalizer is the prompt up to where the answer stands; `response_template` must be its end."""
    text, ending = f.text("verbalizer"), f.text("response_template")
    if text is None:
        return [] if ending is None else [lost("response_template", "it means nothing without a `verbalizer`")]
    prompt, answer, behind = re.split(r"(\{\{\s*output\s*\}\}|\Z)", text, maxsplit=1)[:3]
    prompt = prompt.rstrip(" ") if answer else prompt
    if not re.search(r"\{\{?\s*\w+\s*\}?\}", prompt):
        raise f.wrong("verbalizer", "a prompt with {{input}} in it")
    found = [carried("verbalizer", "data.template", prompt)]
    if answer:
        found = [changed("verbalizer", "the prompt ends where {{output}} stood", "data.template", prompt)]
    if behind.strip():
        found.append(lost("verbalizer", "what stands behind {{output}}: an answer ends with the base's own end token"))
    if ending is not None:
        ends = prompt.strip().endswith(ending.strip())
        words = "the verbalizer does not end with it; the answer begins where the verbalizer ends"
        found.append(as_here("response_template") if ends else lost("response_template", words))
    return found


def _rows(f: Foreign) -> list[Line]:
    """References point into a project or a store; a file's name is kept, for the file that was downloaded."""
    found = [Line("default", "", "data.format", "input_output", "the service's format of rows")]
    for key, path in (("training_data_references", "data.train"), ("test_data_references", "data.test")):
        name = _file(f, key)
        if name is not None:
            words = "rows lie in the service's store: download them to this file, or write another"
            found.append(changed(f"{key}.0", words, path, name))
        elif path == "data.train":
            words = "no file is named: write where the rows are"
            found.append(changed(key if f.has(key) else "", words, path, ROWS))
        else:
            found.append(changed("", VERDICT.format(tool="the service"), path, 0.1))
        found += [lost(f"{key}.{i}", f"`{path}` has one source") for i in range(1, len(f.values.get(key) or ()))]
    found.append(default("data.validation", 0.0, "the service validates on nothing"))
    return found


def _file(f: Foreign, key: str) -> str | None:
    """The name of the file a reference points to, without the folders of the store."""
    references = f.parts(key)
    if not references:
        return None
    location = references[0].inner("location")
    for part in ("path", "file_name", "file_path", "object_key", "href"):
        name = location.values.get(part)
        if isinstance(name, str) and (last := name.partition("?")[0].rstrip("/").rpartition("/")[2]).endswith(
            _SUFFIXES
        ):
            return last
    return None


_SUFFIXES = (".json", ".jsonl", ".csv")


def _name(f: Foreign) -> list[Line]:
    name = re.sub(r"[^\w.-]+", "-", f.text("name", "")).strip("-._")[:64]
    return [carried("name", "name", name)] if name else []


def _refuse(f: Foreign) -> tuple[str, str] | None:
    if not f.has("base_model"):
        return "", "it names no `base_model`"
    if f.has("custom") or f.word("type", "") == "ilab":
        return "type" if f.has("type") else "custom", "this is a training of another kind (InstructLab, custom)"
    return None


TOOL = Tool(
    name=NAME,
    signs=names(
        "task_id tuning_type accumulate_steps verbalizer peft_parameters response_template training_data_references "
        "auto_update_model max_input_tokens max_output_tokens results_reference init_text init_method"
    ),
    same={
        "num_epochs": ("training.num_epochs", Foreign.count),
        "batch_size": ("training.batch_size", Foreign.count),
        "learning_rate": ("training.learning_rate", Foreign.number),
        "gradient_checkpointing": ("training.gradient_checkpointing", Foreign.flag),
    },
    together={
        ("base_model",): _model,
        ("accumulate_steps", "gpu"): _batch,
        ("tuning_type", "peft_parameters", "init_method", "init_text"): _method,
        ("task_id",): _task,
        ("max_seq_length", "max_input_tokens", "max_output_tokens"): _length,
        ("verbalizer", "response_template"): _prompt,
        ("training_data_references", "test_data_references"): _rows,
        ("name",): _name,
    },
    left={
        "description": _SERVICE,
        "tags": _SERVICE,
        "project_id": _SERVICE,
        "space_id": _SERVICE,
        "results_reference": "runs lie in luthier's home (`--home`)",
        "auto_update_model": hf.PUBLISHED,
        "type": _SERVICE,
    },
    defaults={"data.clean": []},
    refuse=_refuse,
    opened=("prompt_tuning", "fine_tuning", "parameters"),
)
