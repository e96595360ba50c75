"""Configurations of other tools (Axolotl, LLaMA-Factory, TRL, watsonx) → experiment files.

`lines.py` has the words: a key's fate, a tool as tables; one module a tool; `hugging_face.py` and `rows.py` what they
share; `convert.py` recognises the tool and writes the experiment. To add a tool: one module with a `TOOL`, one entry
in `convert.TOOLS`.
"""

from luthier.conversion.convert import TOOLS, Conversion, convert, write
from luthier.conversion.lines import KINDS, Line, Tool

__all__ = ["KINDS", "TOOLS", "Conversion", "Line", "Tool", "convert", "write"]
