"""The experiment: one description with five faces (file, Python, `--set`, REST, form).

`parameters.py` has every parameter, once; `values.py` what a field may hold; `experiments.py` reading, writing and
comparing; `text.py` YAML with line numbers; `wording.py` why something is refused; `arithmetic.py` batches and steps.
"""

from luthier.spec.arithmetic import batches_per_epoch, steps_per_epoch, total_batches
from luthier.spec.experiments import (
    advice,
    can_be_written,
    changed,
    chosen,
    differences,
    dump,
    fingerprint,
    from_mapping,
    json_schema,
    leaves,
    load,
    loads,
)
from luthier.spec.parameters import (
    Data,
    Evaluation,
    Experiment,
    Full,
    Judge,
    Lora,
    Method,
    Model,
    PromptTuning,
    QLora,
    Search,
    Task,
    Training,
    integers,
    log_uniform,
    uniform,
)
from luthier.spec.values import DOCUMENT, ROWS, Advice, Part, known_paths

__all__ = [
    "DOCUMENT",
    "ROWS",
    "Advice",
    "Data",
    "Evaluation",
    "Experiment",
    "Full",
    "Judge",
    "Lora",
    "Method",
    "Model",
    "Part",
    "PromptTuning",
    "QLora",
    "Search",
    "Task",
    "Training",
    "advice",
    "batches_per_epoch",
    "can_be_written",
    "changed",
    "chosen",
    "differences",
    "dump",
    "fingerprint",
    "from_mapping",
    "integers",
    "json_schema",
    "known_paths",
    "leaves",
    "load",
    "loads",
    "log_uniform",
    "steps_per_epoch",
    "total_batches",
    "uniform",
]
