"""The experiment as a file: strict YAML with line numbers, overrides, paths, what is written back."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import spec
from luthier.errors import LuthierError, NotFound, SpecError
from luthier.spec import experiments, text
from luthier.spec.values import known_paths

BARE = "model: org/base\ndata: rows.jsonl\n"


@pytest.fixture
def write(tmp_path: Path):
    def write(content: str | bytes, name: str = "experiment.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path: Path, *overrides: str) -> LuthierError:
    with pytest.raises(LuthierError) as caught:
        spec.load(path, overrides)
    return caught.value


# --- reading ---------------------------------------------------------------------------------------------------------
def test_the_error_of_the_design(write):
    path = write(BARE + "# a comment\n" * 10 + "training:\n  learning_rte: 1e-4\n")
    error = refused(path)
    assert str(error) == (
        f"`training.learning_rte` is not a parameter ({path}:14)\n\nhint: did you mean `learning_rate`?"
    )


def test_numbers_as_people_write_them(write):
    one = spec.load(write(BARE + "training: {learning_rate: 1e-4, warmup: 3, max_grad_norm: .5, batch_size: 0x10}\n"))
    assert (one.training.learning_rate, one.training.warmup) == (0.0001, 3.0)
    assert (one.training.max_grad_norm, one.training.batch_size) == (0.5, 16)


def test_yaml_1_2_has_no_norway_problem(write):
    one = spec.load(write("model: m\ndata: {train: x, labels: [no, yes, on, 12:30, 1_000]}\n"))
    assert one.data.labels == ("no", "yes", "on", "12:30", "1_000")


def test_an_empty_section_is_an_omitted_one(write):
    assert spec.load(write(BARE + "training:\n#  num_epochs: 3\nmethod:\n")).training == spec.Training()


def test_json_is_yaml(write):
    assert spec.load(write('{"model": "m", "data": {"train": "x"}, "seed": 3}', "e.json")).seed == 3


def test_a_byte_order_mark_is_no_matter(write):
    assert spec.load(write(b"\xef\xbb\xbf" + BARE.encode())).model.name == "org/base"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("model: m\nmodel: n\n", 2, "`model` is given twice"),
        ("model: m\ntraining:\n  seed: 1\n  seed: 1\n", 4, "`training.seed` is given twice"),
        ("model: &a m\ndata: *a\n", 1, "aliases and anchors"),
        ("model: m\ndata: *a\n", 2, "aliases and anchors"),
        ("model: !!python/name:os.system x\n", 1, "tags are not allowed"),
        ("model: !!str m\n", 1, "tags are not allowed"),
        ("model: [m\ndata: x\n", 2, "not valid YAML"),
        ("model: m\n\tdata: x\n", 2, "not valid YAML"),
        ("model: m\n---\nmodel: n\n", 2, "one experiment a file"),
        ("- model\n", 1, "an experiment is a mapping"),
        ("{[a]: b}\n", 1, "a key must be a plain name"),
        (BARE + "training:\n  batch_size: 0\n", 4, "`training.batch_size` must be at least 1, not 0"),
        (BARE + "training:\n  batch_size: ten\n", 4, "`training.batch_size` must be a whole number, not the text"),
        (BARE + "method:\n  target_modules:\n    - q\n    - 3\n", 6, "`method.target_modules[1]` must be text"),
        (BARE + "method: lroa\n", 3, "`method.type` must be one of"),
        (BARE + "evaluation:\n  judge:\n    concurrency: 0\n", 5, "`evaluation.judge.concurrency` must be at least 1"),
        ("model: m\ndata:\n  - {text: a}\n", 2, "`data.train` must be a path or the name of a Hub data set, not a"),
        (BARE + "model.revision: x\n", 3, "`model.revision` is not a parameter"),
        (BARE + "a: " + "[" * 70 + "]" * 70 + "\n", 3, "nested deeper than 64 levels"),
    ],
)
def test_refusals_name_the_line(write, content, line, message):
    path = write(content)
    error = refused(path)
    assert isinstance(error, SpecError) and error.message.startswith(message) and error.where == f"{path}:{line}"


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "training: {}\n"])
def test_what_is_missing_is_named(write, content):
    error = refused(write(content))
    assert error.message == "`model` is missing" and "also: `data` is missing" in str(error.hint)


@pytest.mark.parametrize(
    "content", [b"model: caf\xe9\n", b"\xff\xfem\x00o\x00", b"model: a\x00b\n", b"a: \x07\n", b"%YAML 9\n---\n"]
)
def test_bytes_that_are_no_text_are_refused(write, content):
    assert isinstance(refused(write(content)), SpecError)


def test_a_huge_file_is_refused_unread(write):
    assert "larger than" in refused(write(b"#" * (text.MAX_BYTES + 1))).message


def test_all_errors_are_reported_in_the_file_s_order(write):
    path = write("model: m\ntask: chatt\ndata: x\ntraining:\n  lr: 1\n  batch_size: 0\nmethod:\n  lora_r: 8\n")
    error = refused(path)
    assert error.message.startswith("`task` must be one of") and error.where == f"{path}:2"
    assert error.hint is not None and error.hint.splitlines() == [
        "did you mean `chat`?",
        f"also: `training.lr` is not a parameter ({path}:5): did you mean `training.learning_rate`?",
        f"also: `training.batch_size` must be at least 1, not 0 ({path}:6)",
        f"also: `method.lora_r` is not a parameter ({path}:8): did you mean `method.rank`?",
    ]


def test_a_missing_file_has_neighbours(write):
    path = write(BARE, "tickets.yaml")
    error = refused(path.with_name("tickts.yaml"))
    assert isinstance(error, NotFound) and error.hint == f"did you mean {path}?"
    assert "there is" in str(refused(path.with_name("zzz")).hint)
    assert "luthier init" in str(refused(path.parent / "no" / "such" / "e.yaml").hint)
    assert "is a folder" in refused(path.parent).message


def test_secrets_in_a_file_are_refused(write):
    token = "hf_" + "Z" * 30
    error = refused(write(f"model:\n  name: m\n  token: {token}\ndata: x\n"))
    assert "secret" in error.message and token not in str(error)


# --- name and paths --------------------------------------------------------------------------------------------------
def test_the_name_is_the_file_s_and_was_not_chosen(write):
    one = spec.load(write(BARE, "my tickets (2).yaml"))
    assert one.name == "my-tickets-2-" and "name" not in spec.chosen(one)
    assert spec.load(write(BARE + "name: other\n")).name == "other"
    assert spec.load(write(BARE, ".yaml")).name == "yaml"


def test_paths_are_the_file_s_neighbours(write, tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "base").mkdir()
    monkeypatch.chdir("/")
    one = spec.load(write("model: base\ndata: {train: rows.jsonl, test: there.jsonl, validation: 0.2}\n"))
    here = tmp_path.resolve()
    assert (one.data.train, one.model.name) == (str(here / "rows.jsonl"), str(here / "base"))
    assert (one.data.test, one.data.validation) == ("there.jsonl", 0.2)
    assert spec.load(write("model: org/base\ndata: rows.jsonl\n")).data.train == one.data.train


def test_a_schema_s_file_beside_the_experiment_is_named_by_its_whole_path(write, tmp_path):
    (tmp_path / "order.json").write_text("{}")
    metrics = "[accuracy, 'json_schema:order.json', 'regex:order.json', 'json_schema:nowhere.json']"
    one = spec.load(write(f"model: m\ndata: x\nevaluation: {{metrics: {metrics}}}\n"))
    whole = f"json_schema:{tmp_path / 'order.json'}"
    assert one.evaluation.metrics == ("accuracy", whole, "regex:order.json", "json_schema:nowhere.json")
    assert spec.load(
        write("model: m\ndata: x\nevaluation: {metrics: json_schema:order.json}\n")
    ).evaluation.metrics == (whole,)


def test_a_chat_template_s_file_is_read(write, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages[0]['content'] }}")
    one = spec.load(write("model: {name: m, chat_template: t.jinja}\ndata: x\n"))
    assert one.model.chat_template == "{{ messages[0]['content'] }}"


# --- overrides -------------------------------------------------------------------------------------------------------
def test_overrides_are_yaml_laid_over_the_file(write):
    path = write(BARE + "training: {num_epochs: 1}\n")
    one = spec.load(
        path,
        [
            "training.learning_rate=1e-4",
            "training.num_epochs = 2",
            "model.revision=main",
            "data.labels=[a, b]",
            "method=full",
            "data.template=a=b {x}",
            "search.space.training.learning_rate={log: [1e-5, 1e-3]}",
        ],
    )
    assert (one.training.learning_rate, one.training.num_epochs, one.model.revision) == (1e-4, 2, "main")
    assert (one.model.name, one.data.train, one.data.labels) == ("org/base", "rows.jsonl", ("a", "b"))
    assert one.method == spec.Full() and one.data.template == "a=b {x}"
    assert one.search is not None and one.search.space == {"training.learning_rate": {"log": [1e-5, 1e-3]}}
    assert "training.learning_rate" in spec.chosen(one)


@pytest.mark.parametrize(
    "template",
    ["Input: {input}", "{input}", "{input}\nOutput:", "a [b {input}", "# {input}: it's", "{a}, {b}: c", "{a} #b"],
)
def test_text_needs_no_quotes_of_yaml_in_the_shell(write, template):
    one = spec.load(write(BARE), [f"data.template={template}", "method.type=prompt_tuning", "method.init_text=- a: b"])
    assert (one.data.template, one.method.init_text) == (template, "- a: b")
    quoted = spec.load(write(BARE), ['data.template="Input: {input}\\nOutput:"'])
    assert quoted.data.template == "Input: {input}\nOutput:" and not spec.advice(quoted)
    told = spec.advice(spec.load(write(BARE), ["data.template=Input: {input}\\nOutput:"]))
    assert len(told) == 1 and "no line break" in told[0]


def test_only_what_can_be_nothing_but_text_is_taken_as_it_stands(write):
    taken = {path for path in known_paths() if experiments._holds_text(tuple(path.split(".")))}
    assert {"data.template", "data.train", "model.name", "method.init_text", "evaluation.judge.rubric"} <= taken
    assert not {"data.labels", "data.columns", "evaluation.metrics", "training.batch_size", "search.space"} & taken
    assert not [path for path in ("model", "data", "method") if experiments._holds_text((path,))]


def test_an_empty_override_takes_a_choice_back(write):
    assert spec.load(write(BARE + "training: {num_epochs: 1}\n"), ["training.num_epochs="]).training.num_epochs is None


@pytest.mark.parametrize(
    ("override", "message", "where"),
    [
        ("training.learning_rte=1", "`training.learning_rte` is not a parameter", "--set training.learning_rte"),
        ("training.batch_size=0", "`training.batch_size` must be at least 1", "--set training.batch_size"),
        ("training={batch_size: 0}", "`training.batch_size` must be at least 1", "--set training"),
        ("seed.x=1", "`seed` has no parts", "--set seed.x"),
        ("seed", "--set needs path=value, not 'seed'", None),
        ("=1", "--set needs path=value", None),
        ("a..b=1", "--set needs path=value", None),
        ("seed=[1", "not valid YAML", "--set seed"),
        ("seed=&a 1", "aliases and anchors", "--set seed"),
        ("data.columns={a: b, a: c}", "`a` is given twice", "--set data.columns"),
    ],
)
def test_bad_overrides_name_themselves(write, override, message, where):
    error = refused(write(BARE + "seed: 1\n"), override)
    assert error.message.startswith(message) and error.where == where


def test_overrides_leave_the_file_s_lines_to_the_rest(write):
    path = write(BARE + "training:\n  batch_size: 0\n  num_epochs: 0\n")
    error = refused(path, "training.batch_size=1")
    assert error.where == f"{path}:5"


# --- writing ---------------------------------------------------------------------------------------------------------
def test_only_what_was_chosen_is_written(write):
    path = write("model: m\ndata: x\nmethod: {type: lora, rank: 8}\ntraining: {learning_rate: 1e-4}\n", "t.yaml")
    assert spec.dump(spec.load(path)) == (
        "name: t\nmodel: m\ndata: x\nmethod:\n  type: lora\n  rank: 8\ntraining:\n  learning_rate: 0.0001\n"
    )


def test_with_origins_everything_is_written_and_read_back(write):
    one = spec.load(write(BARE + "search: {space: {method.rank: [4, 8]}}\nevaluation: {judge: gpt}\n"))
    origins = {path: f"origin of {path}" for path in spec.leaves(one)}
    written = spec.dump(one, origins)
    assert "  rank: null  # origin of method.rank\n" in written
    assert spec.load(write(written)) == one


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
TRICKY = st.sampled_from(
    [
        *"-#'\"\\[|>?=~\n\t\x85\u2028\ufeff🎻é",
        *["no", "null", "1e-4", "0x1F", "- a", "a: b", "a #b", "{x}", "%a", "@a", "`a`", "!t", "&a", "*a", "<<", "---"],
        *["...", "a\n\n b ", "한국어", " a", "a ", "~nobody/x", "a/" * 3000, "b" * 300, "\0"],
    ]
)
TEXTS = st.one_of(WORDS, TRICKY)


@given(TEXTS, st.lists(TEXTS, unique=True, min_size=1), st.dictionaries(WORDS, WORDS))
def test_any_text_survives_the_file(tmp_path_factory, template, labels, columns):
    one = spec.Experiment(
        name="n",
        model="m",
        data=spec.Data(train="no such file", group_by=template, labels=labels, columns=columns),
    )
    path = tmp_path_factory.mktemp("files") / "e.yaml"
    path.write_text(spec.dump(one), encoding="utf-8")
    assert spec.load(path) == one


@given(TEXTS, TEXTS, TEXTS)
def test_any_text_may_stand_where_a_path_is_meant(tmp_path_factory, model, train, template):
    path = tmp_path_factory.mktemp("files") / "e.yaml"
    one = spec.Experiment(model={"name": model, "chat_template": template}, data={"train": train, "test": train})
    path.write_text(spec.dump(one), encoding="utf-8")
    found = spec.load(path)
    assert found.model.name == model or Path(found.model.name).is_absolute()
    assert found.data.train == found.data.test


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0, exclude_min=True), st.integers(0, 2**32 - 1))
def test_any_number_survives_the_file(rate, seed):
    one = spec.Experiment(model="m", data="x", training=spec.Training(learning_rate=rate), seed=seed)
    assert spec.from_mapping(text.read(spec.dump(one), "e").values) == one


@given(st.text(string.printable, max_size=200))
def test_no_text_brings_anything_but_our_errors(content):
    try:
        found = spec.from_mapping(text.read(content, "e.yaml").values)
    except LuthierError as error:
        assert error.message and (error.where is None or error.where.startswith("e.yaml"))
    else:
        assert spec.from_mapping(text.read(spec.dump(found), "e.yaml").values) == found
