"""The sheet every page of luthier is written on: one template to fill, one style, and a policy of what may act in it.

Lives here: the only template environment of pages; `sheet.html.j2`, `sheet.css`. Does not live here: what a page says
(`data/page.py`, `data/seen_page.py`, `evaluation/report_page.py`, `evaluation/compare_page.py`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2

import luthier


def render(template: str, values: Mapping[str, Any], style: str, script: str | None = None) -> str:
    """A page as text: `template` filled with `values`, every text escaped.

    The three are files of this package. The page's own policy names its style and its script by their SHA-256: no other
    style, script, handler, picture or address does anything in it, whatever a text may hold.
    """
    styles = _file("sheet.css") + _file(style)
    acts = _file(script) if script else ""
    allowed = f"style-src {_named(styles)}" + (f"; script-src {_named(acts)}" if acts else "")
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    ours = {"style": styles, "script": acts, "policy": policy, "version": luthier.__version__}
    return _environment().get_template(template).render(values, **ours)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("luthier", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _file(path: str) -> str:
    return resources.files("luthier").joinpath(path).read_text(encoding="utf-8")


def _named(content: str) -> str:
    """How a Content-Security-Policy names a text that stands in the page (CSP level 2, hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
