"""luthier tunes foundation models and tells you whether it worked.

Public names, each resolved on first use, so that `import luthier` costs nothing. Nothing is implemented here.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "luthier.errors": "DataError LuthierError MissingExtra ModelError NotFound SpecError TrainingError",
    "luthier.spec": "Data Evaluation Experiment Full Judge Lora Model PromptTuning QLora Search Training"
    " integers log_uniform uniform",
    "luthier.runs": "Event Plan Run Score",
    "luthier.studio": "Studio compare evaluate generate plan prepare publish",
    "luthier.cli.climbed": "ladder",
    "luthier.cli.progress": "tune",
    "luthier.cli.searched": "search",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    """PEP 562: find `name` in its module the first time somebody asks."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
