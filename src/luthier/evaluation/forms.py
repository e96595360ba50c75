"""Is an answer of the wanted form: JSON, JSON that a schema allows, text in which a pattern is found.

Lives here: the three questions, each of the answer alone. Does not live here: exact match (`normalisers.py`).
What is asked comes from the experiment, the answer from a model: neither may hold the evaluation up or leave it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import regex

from luthier.errors import MissingExtra, NotFound, SpecError, here, near_path
from luthier.evaluation.normalisers import refuse

SECONDS = 1.0  # for one pattern in one answer; one that takes longer is not found

Question = Callable[[str], bool]


def is_json(answer: str) -> bool:
    """Whether the whole answer parses as JSON (RFC 8259).

    >>> is_json('{"a": [1, null]}'), is_json("NaN"), is_json("")
    (True, False, False)
    """
    try:
        json.loads(answer, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


def has(pattern: str) -> Question:
    """Whether `pattern` is found in the answer, white space at its ends aside. Raises SpecError for no such pattern.

    >>> [has("^[0-9]+$")(answer) for answer in ("42\\n", "x42")]
    [True, False]
    """
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise SpecError(f"`regex:{pattern}` is no regular expression: {error}") from None

    @lru_cache(maxsize=1 << 14)  # intervals and tests ask for a row again
    def question(answer: str) -> bool:
        try:
            return compiled.search(answer.strip(), timeout=SECONDS) is not None
        except TimeoutError:
            return False

    return question


def fits(path: str) -> Question:
    """Whether the answer is JSON that the JSON Schema in the file `path` allows (draft 2020-12, or the one it names).

    Nothing is fetched: a `$ref` may point into the file and to the drafts. Raises NotFound, SpecError, MissingExtra.
    """
    try:
        import jsonschema
    except ImportError:
        hint = 'pip install "luthier[schema]"'
        raise MissingExtra("`json_schema` needs jsonschema, which is not installed", hint=hint) from None
    schema = _read(path)
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise SpecError(f"not a JSON Schema: {error.message} (at {error.json_path})", where=path) from None
    validator = jsonschema.validators.extend(kind, {"pattern": _pattern})(
        schema, registry=_registry(schema, kind, path)
    )

    @lru_cache(maxsize=1 << 14)  # intervals and tests ask for a row again
    def question(answer: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(answer, parse_constant=refuse)))
        except (ValueError, RecursionError):
            return False

    return question


def _read(path: str) -> Any:
    file = here(path)
    try:
        schema = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no file `{path}`", hint=near_path(file)) from None
    except OSError as error:
        raise SpecError(f"the JSON Schema cannot be read: {error.strerror}", where=path) from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"the JSON Schema is not JSON: {error}", where=path) from None
    named = schema.get("$schema", "") if isinstance(schema, dict) else ""
    if not isinstance(schema, (dict, bool)) or not isinstance(named, str):
        raise SpecError("not a JSON Schema: it is an object whose `$schema` is text, or true or false", where=path)
    return schema


def _registry(schema: Any, kind: Any, path: str) -> Any:
    """What a `$ref` may name, and that each names something: without a registry jsonschema would fetch URLs."""
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    root = specification_with(kind.META_SCHEMA["$schema"]).create_resource(schema)
    registry = REGISTRY.with_resource(root.id() or "", root).crawl()

    def check(resource: Any, resolver: Any) -> None:
        contents = resource.contents
        for word in ("$ref", "$dynamicRef"):
            if isinstance(contents, dict) and isinstance(contents.get(word), str):
                try:
                    resolver.lookup(contents[word])
                except Unresolvable:
                    hint = "copy what it names into the file, under `$defs`"
                    raise SpecError(f"the JSON Schema's `{contents[word]}` is not in it", path, hint) from None
        for inner in resource.subresources():
            check(inner, resolver.in_subresource(inner))

    check(root, registry.resolver_with_root(root))
    return registry


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Any:
    """The keyword `pattern`, with a clock: one that takes longer than `SECONDS` is not found."""
    import jsonschema

    if validator.is_type(instance, "string"):
        try:
            found = regex.search(pattern, instance, timeout=SECONDS) is not None
        except TimeoutError:
            found = False
        if not found:
            yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")
