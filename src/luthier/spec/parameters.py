"""Every parameter, once: its meaning, bounds, default and the range the document advises.

Lives here: `Experiment` and its parts. Does not live here: values that depend on the model (`presets.py`).

The text under a field is its documentation, its help in the form and its description in the schema. None means "the
preset decides" (`presets.resolve` fills it in), unless the text says what omitted means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, PlainValidator, Tag, model_validator

from luthier.spec import spaces
from luthier.spec.values import (
    PRESET,
    UNDECIDED,
    Advice,
    Count,
    OrText,
    Part,
    Positive,
    Text,
    Texts,
    braces,
    class_labels,
    cleaning_steps,
    conditions_by_name,
    listed,
    no_secret,
    path_text,
    share_or_steps,
    split_source,
    text_encoding,
    underscored,
)

Task = Literal["classification", "generation", "summarization", "translation", "chat"]

TwinStep = Literal["duplicates", "normalised_duplicates", "near_duplicates", "contradictions"]
RepairStep = Literal["mojibake", "control", "unicode", "html", "whitespace", "empty", "pii"]
CleaningStep = Literal[TwinStep, RepairStep]


class Model(Part):
    """The base model. A plain text is its name."""

    root, shorthand = ("model",), "name"

    name: Annotated[Text, BeforeValidator(path_text)]
    """Hub id (`ibm-granite/granite-3.1-8b-base`) or local folder of the base model; `openai:NAME`, which can only be
    evaluated, is a model behind an OpenAI-style API."""
    revision: Text | None = None
    """Branch, tag or commit on the Hub. Omitted: the main branch; the run records its commit."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the frozen weights. `auto`: bfloat16 where the device computes in it, else float32."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """How the base attends while generating and in padded (seq2seq) training; `auto`: as transformers chooses.
    Flat batches use luthier's own attention."""
    chat_template: Text | None = None
    """Jinja chat template, or the path of a file that holds it. Omitted: the model's own."""
    base_url: Text | None = None
    """Address of the OpenAI-style API of an `openai:NAME`. Omitted: the OpenAI client's own (OPENAI_BASE_URL)."""

    @model_validator(mode="after")
    def _address_where_meant(self) -> Model:
        if self.base_url is not None and not self.name.startswith("openai:"):
            raise ValueError(f"has a `base_url`, at which only an `openai:NAME` is asked, not `{self.name}`")
        return self


class Data(Part):
    """The labelled rows and how they are read. A plain text is the path of `train`; from Python, rows will do."""

    root, shorthand = ("data",), "train"

    train: Annotated[Any, PlainValidator(split_source, json_schema_input_type=str)]
    """Rows to learn from: a file (jsonl, json, csv, tsv, parquet, each also .gz), a Hub data set, a name in a
    LLaMA-Factory `dataset_info.json` (`folder/dataset_info.json:name`), or any iterable."""
    validation: Annotated[Any, PlainValidator(split_source, json_schema_input_type=str | float | None)] = None
    """Rows to choose by: a file, or a share of `train`. Omitted: the data set's own split, else a tenth of `train`."""
    test: Annotated[Any, PlainValidator(split_source, json_schema_input_type=str | float | None)] = None
    """Rows for the verdict, never to choose by: a file, or a share of `train`. Omitted: as for `validation`."""
    encoding: Annotated[Text, AfterValidator(text_encoding)] | None = None
    """Encoding of text files that are not UTF-8: cp949, cp932 (Shift-JIS), cp1252 (latin-1), utf-16, …
    Omitted: UTF-8; anything else is named, and never converted unasked."""
    format: Annotated[Text, AfterValidator(underscored)] | None = None
    """messages, sharegpt, segments, alpaca, prompt_completion, input_output, text_label, text, or a plugin's name.
    Omitted: recognised by the columns."""
    columns: dict[Text, Text] = Field(default_factory=dict)
    """Our name (input, output, messages, text, label, …) → the name of the file's column that holds it."""
    template: Annotated[Text, AfterValidator(braces)] | None = None
    """The prompt of rows that are no chat, `{column}` standing for a column: "Input: {input}\\nOutput:".
    Omitted: the task's template."""
    labels: Annotated[
        tuple[str, ...] | dict[str, str] | None,
        PlainValidator(class_labels, json_schema_input_type=list[str] | dict[str, str] | None),
    ] = None
    """Class names in the order of their indices, or what the file writes → the name to learn: `{0: negative, 1:
    positive}`. Two entries with one name are one class. Omitted: those found in `train`, sorted."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Tokens that are learned: every assistant turn, only the last one, or all (continued pre-training)."""
    overlength: Literal["error", "drop", "cut"] = "error"
    """An example longer than `max_seq_length`: refuse to start, drop it, or keep its first tokens. All are counted."""
    clean: Annotated[
        tuple[CleaningStep, ...],
        Field(strict=False),
        BeforeValidator(cleaning_steps),
        BeforeValidator(listed),
    ] = ("duplicates",)
    """Cleaning steps; what the others would find is reported too. `duplicates`: of rows with equal content the first
    stays. `normalised_duplicates`: also where case, spaces or punctuation at the ends differ. `near_duplicates`: also
    where four fifths of the text agree. `contradictions`: of a question with different answers no row stays.
    `mojibake`: UTF-8 read as another encoding is repaired. `control`: NUL, invisible characters and direction
    overrides go. `unicode`: NFC, one spelling a letter. `html`: tags and entities of web pages go, never in code.
    `whitespace`: ends, runs, odd spaces, CRLF. `empty`: rows with no answer, or a placeholder (N/A, TODO, 없음), go.
    `pii`: personal data and secrets become masks (`<EMAIL>`). `[]`: none."""
    remove_leaks: bool = False
    """Take rows that also stand in validation or test (exactly, in other case or spaces, nearly, or by their group) out
    of `train`; otherwise such rows are refused."""
    accept: Texts = ()
    """Codes of gate findings (`G07`) that a person has looked at and accepts."""
    group_by: Text | None = None
    """Column whose equal values stay on one side of a split (an author, a document). Omitted: each row by itself."""
    limit: Count | None = None
    """Use only this many rows of `train`, drawn by the seed. Omitted: all."""

    @model_validator(mode="before")
    @classmethod
    def _rows_themselves(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | Part) or value is None else {"train": value}

    @model_validator(mode="after")
    def _something_left(self) -> Data:
        if sum(share for share in (self.validation, self.test) if isinstance(share, float)) >= 1:
            raise ValueError("leaves nothing to train on: the shares of `validation` and `test` reach 1")
        return self


class _Method(Part):
    root, shorthand = ("method",), "type"

    type: Literal["prompt_tuning", "lora", "qlora", "full"]


class PromptTuning(_Method):
    """Learn a few virtual tokens before the frozen base: the smallest adapter."""

    type: Literal["prompt_tuning"] = "prompt_tuning"
    """`prompt_tuning`: learn a few virtual tokens before the frozen base."""
    virtual_tokens: Annotated[Count, PRESET] = UNDECIDED
    """Length of the learned prompt, in tokens."""
    init_method: Annotated[Literal["random", "text", "vocabulary"], PRESET] = UNDECIDED
    """How the vectors start: random, as the embeddings of `init_text`, or of randomly chosen vocabulary tokens."""
    init_text: Text | None = None
    """Task description or instruction to start from, as in a zero-shot prompt. Omitted: no text."""

    @model_validator(mode="after")
    def _text_where_meant(self) -> PromptTuning:
        if self.init_method == "text" and self.init_text is None:
            raise ValueError("with `init_method: text` needs `init_text`")
        if self.init_text is not None and self.init_method not in (None, "text"):
            raise ValueError(f"has an `init_text`, which `init_method: {self.init_method}` does not use")
        return self


class _LowRank(_Method):
    rank: Annotated[Count, PRESET, Advice(1, 64)] = UNDECIDED
    """Rank of the decomposition. Lower: fewer trained parameters; higher: for a task that contradicts the base."""
    alpha: Annotated[Positive, PRESET] = UNDECIDED
    """Multiplier of the adapter's weight change: `alpha / rank` of it is applied. Change it or the learning rate."""
    dropout: Annotated[float, Ge(0), Lt(1), PRESET] = UNDECIDED
    """Share of the adapter's values set to zero at random while training, against over-fitting."""
    target_modules: Annotated[Texts, PRESET] = UNDECIDED
    """Layers that get an adapter, by name. `["all-linear"]`: every linear layer but the output layer; `[]`: the
    architecture's default."""
    rslora: bool = False
    """Apply `alpha / sqrt(rank)` instead (rank-stabilised LoRA): for high ranks."""


class Lora(_LowRank):
    """Low-rank adaptation of a base that is not quantized."""

    type: Literal["lora"] = "lora"
    """`lora`: low-rank adaptation of a base that is not quantized."""


class QLora(_LowRank):
    """Low-rank adaptation of a quantized base: one stored so is taken as it is, any other is quantized at load."""

    type: Literal["qlora"] = "qlora"
    """`qlora`: low-rank adaptation of a quantized base."""
    bits: Literal[4, 8] = 4
    """Bits of a weight when the base is quantized at load: 4 (NF4) or 8."""
    double_quantization: bool = True
    """Quantize the quantization constants as well (4 bits only): about 0.4 bit less a weight."""


class Full(_Method):
    """Train the base's own weights. The document's word is `none`; both are read."""

    type: Annotated[Literal["full"], BeforeValidator(lambda value: "full" if value == "none" else value)] = "full"
    """`full` (the document's `none`): train the base's own weights."""
    trainable: Texts = ()
    """Train only parameters whose name contains one of these (`layers.11.`). `[]`: all."""


def _method_type(value: Any) -> str | None:
    """The `type` of a method in any of its spellings; a mapping without one, like an omitted method, is lora."""
    word = value.type if isinstance(value, _Method) else value.get("type") if isinstance(value, Mapping) else value
    return "full" if word == "none" else "lora" if word is None else word if isinstance(word, str) else None


Method = Annotated[
    Annotated[PromptTuning, Tag("prompt_tuning")]
    | Annotated[Lora, Tag("lora")]
    | Annotated[QLora, Tag("qlora")]
    | Annotated[Full, Tag("full")],
    Discriminator(_method_type),
]


class Training(Part):
    """How the weights move. A batch is `batch_size` examples, a step one adjustment, an epoch one pass."""

    root = ("training",)

    batch_size: Annotated[Count, PRESET, Advice(1, 16)] = UNDECIDED
    """Labelled examples processed at once. How they lie in memory is the engine's business and changes no result."""
    accumulate_steps: Annotated[Count, PRESET, Advice(1, 128)] = UNDECIDED
    """Batches processed before one adjustment of the weights."""
    num_epochs: Annotated[Count, PRESET, Advice(1, 50)] = UNDECIDED
    """Passes over the training data."""
    max_steps: Count | None = None
    """Stop after this many adjustments; wins over `num_epochs`. Omitted: no limit."""
    learning_rate: Annotated[Positive, PRESET, Advice(1e-5, 0.5)] = UNDECIDED
    """How far each adjustment goes, at the schedule's peak."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """The learning rate after the warm-up: straight to zero, by a half cosine to zero, or unchanged."""
    warmup: Annotated[float, Ge(0), AfterValidator(share_or_steps), PRESET] = UNDECIDED
    """Rise of the learning rate from zero: below 1 a share of all steps, from 1 on a number of steps."""
    weight_decay: Annotated[float, Ge(0), PRESET] = UNDECIDED
    """Decay of trained matrices per step, times the learning rate (AdamW). Norms, biases, embeddings are spared."""
    max_grad_norm: Positive = 1.0
    """A longer gradient is shortened to this norm, for each adapter on its own."""
    max_seq_length: Count | None = None
    """Longest example in tokens, input and output together. Omitted: what the base's positions allow."""
    batching: Literal["random", "grouped"] = "random"
    """Which examples meet in a step: drawn by the seed alone, or so that examples with the same prefix meet."""
    share_prefixes: bool = True
    """Compute a prefix that examples of a step share only once: same gradients; with dropout, they share its draw."""
    gradient_checkpointing: bool | None = None
    """Recompute activations instead of keeping them: less memory, about 1.4 times the work. Omitted: if needed."""
    save_every: Count | None = None
    """Steps between checkpoints. Omitted: once an epoch."""
    evaluate_every: Count | None = None
    """Steps between evaluations on validation. Omitted: once an epoch."""
    patience: Count | None = None
    """Stop after this many evaluations without improvement. Omitted: never; the best checkpoint is kept either way."""


class Judge(Part):
    """A model that judges answers through an OpenAI-style API. A plain text is its name."""

    root, shorthand = ("evaluation", "judge"), "model"

    model: Text = "gpt-4o-mini"
    """Name of the judging model, as its API knows it."""
    base_url: Text | None = None
    """Address of an OpenAI-style API. Omitted: the OpenAI client's own (OPENAI_BASE_URL)."""
    mode: Literal["reference", "rubric", "pairwise"] = "reference"
    """Right or wrong against the reference, 1 to 5 by a rubric, or tuned against base in both orders."""
    rubric: Text | None = None
    """What a good answer is, in words. Omitted: a general rubric for the mode."""
    concurrency: Count = 40
    """Judgements under way at once."""
    labelled: Annotated[Text, BeforeValidator(path_text)] | None = None
    """Answers with a person's verdict, to test the judge by: a file with `label` and a test row's `id`, or `prompt`
    and `answer`. Omitted: the judge is tested by answers whose verdict is known alone."""


class Evaluation(Part):
    """How the verdict is reached."""

    root = ("evaluation",)

    metrics: Texts | None = None
    """Names of metrics; the first decides. Omitted: those of the task."""
    judge: Annotated[Judge, OrText()] | None = None
    """A model as judge. Omitted: none."""
    max_new_tokens: Count | None = None
    """Longest generated answer, in tokens. Omitted: the longest trained answer."""
    temperature: Annotated[float, Ge(0)] = 0.0
    """Randomness of generated answers; 0 takes the likeliest token each time."""
    limit: Count | None = None
    """Evaluate only this many rows, drawn by the seed. Omitted: all."""
    compare_base: bool = True
    """Answer the same rows with the untuned base as well, and test the difference."""
    slices: Annotated[
        dict[Text, Text], BeforeValidator(conditions_by_name), Field(json_schema_extra={"type": "object"})
    ] = Field(default_factory=dict)
    """Groups of rows to look at on their own: name → condition on a row's columns, such as
    `long: len(input) > 200 and lang == "ko"`. Columns, constants, comparisons, `and or not in`, `len`, `lower`."""
    regression: Annotated[Text, BeforeValidator(path_text)] | None = None
    """Rows that tuning must not spoil: a file in any known format, whose perplexity, and answers right if it has
    answers, are measured before and after. Omitted: only the built-in general texts."""

    @model_validator(mode="after")
    def _base_is_asked(self) -> Evaluation:
        if self.regression is not None and not self.compare_base:
            raise ValueError("has a `regression`, which needs the base's answers: `compare_base: true`")
        return self

    @model_validator(mode="after")
    def _judge_where_meant(self) -> Evaluation:
        if "judge" in (self.metrics or ()) and self.judge is None:
            raise ValueError("has the metric `judge` and no `judge`: name the model that judges")
        return self


class Search(Part):
    """Many trials of the experiment, each with other values."""

    root = ("search",)

    space: Annotated[dict[str, Any], BeforeValidator(spaces.search_space)] = Field(default_factory=dict)
    """Parameter → choices or range: `method.rank: [8, 16]`, `training.learning_rate: {log: [1e-5, 1e-2]}`; of
    {log|uniform|int: [low, high]} or {choices: […]}, with `step` (`log`: a factor) and `when: {method.type: lora}`.
    Omitted: the method's own."""
    trials: Count = 16
    """How many trials are made. Omitted: 16, for full tuning 8; with `sampler: grid` every combination; with a limit of
    time or tokens as many as it allows, 1,000 at most."""
    at_once: Count | None = None
    """Trials trained together on one base. Omitted: as many as pay on the machine, and with `tpe` and `cmaes` at most a
    quarter of `trials`, but one a process: these learn from those that were told before."""
    sampler: Literal["tpe", "random", "grid", "cmaes"] = "tpe"
    """How values are chosen: near those of good trials (TPE), at random, every combination, or by CMA-ES."""
    pruner: Literal["asha", "hyperband", "median", "none"] = "asha"
    """How weak trials are stopped early: by halving (ASHA, Hyperband), below the median, or not at all."""
    objective: Text = "loss"
    """What is made best on validation: `loss`, the name of a metric, or several with commas; `size`: trained
    parameters. The first chooses the winner."""
    time_limit: Positive | None = None
    """Seconds after which no new trial begins. Omitted: no limit."""
    token_limit: Count | None = None
    """Tokens trained on, by all trials together, after which no new one begins. Omitted: no limit."""
    seeds: Count = 1
    """Train the winner with this many seeds, to tell merit from luck."""


def log_uniform(low: float, high: float, step: float | None = None) -> dict[str, Any]:
    """A range for `Search.space`, even in the logarithm; whole numbers for a parameter that is one. `step`: a factor
    from one value to the next."""
    return {"log": [low, high]} | ({"step": step} if step is not None else {})


def uniform(low: float, high: float, step: float | None = None) -> dict[str, Any]:
    """An even range for `Search.space`; whole numbers for a parameter that is one. `step`: from one to the next."""
    return {"uniform": [low, high]} | ({"step": step} if step is not None else {})


def integers(low: int, high: int, step: int | None = None) -> dict[str, Any]:
    """An even range of whole numbers, both ends included, for `Search.space`. `step`: from one to the next."""
    return {"int": [low, high]} | ({"step": step} if step is not None else {})


class Experiment(Part):
    """What to learn, from what, how, and how it is judged. Where it runs is not its business."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]{0,63}$"), AfterValidator(no_secret)] | None = None
    """Name of its runs: letters, digits, `.`, `_`, `-`, at most 64. Omitted: the file's name."""
    model: Annotated[Model, OrText()]
    """The base model."""
    task: Task | None = None
    """Selects preset, metrics and default template, nothing else. Omitted: guessed from the data."""
    data: Annotated[Data, OrText()]
    """The labelled rows."""
    method: Annotated[Method, OrText()] = Lora()
    """What is trained: prompt_tuning, lora, qlora or full."""
    training: Training = Training()
    """How the weights move."""
    evaluation: Evaluation = Evaluation()
    """How the verdict is reached."""
    search: Search | None = None
    """Many trials instead of one. Omitted: one run."""
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Every random choice follows from it."""

    @model_validator(mode="after")
    def _space_of_its_method(self) -> Experiment:
        if self.search is not None:
            spaces.refuse_strangers(self.search.space, self.method.type)
        return self
