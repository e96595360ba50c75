"""Keys and tokens: kept out of everything that is written to be shown.

Lives here: what a secret looks like, refusing it at the edge, striking it out of logs, and what of the environment a
process of ours may see. Does not live here: where secrets come from (the environment, the Hub's own login).
"""

from __future__ import annotations

import os
import re

from luthier.errors import SpecError

_SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_SECRET_NAME = re.compile(r"TOKEN(?!IZERS_)|SECRET|PASSWORD|PASSWD|API_?KEY|_KEY\b|_KEY_|CREDENTIAL", re.IGNORECASE)

_PASSED = """
PATH HOME USER LOGNAME LANG LANGUAGE TMPDIR TZ TERM XDG_CACHE_HOME VIRTUAL_ENV LD_LIBRARY_PATH DYLD_LIBRARY_PATH
HF_HOME HF_ENDPOINT TOKENIZERS_PARALLELISM REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
"""
_FAMILIES = """
LC_ PYTHON OMP_ GOMP_ KMP_ MKL_ OPENBLAS_ CUDA_ NVIDIA_ NCCL_ ROCR_ HIP_ TORCH PYTORCH_ TRITON_ BNB_
HF_HUB_ HF_DATASETS_ TRANSFORMERS_ LUTHIER_ SSL_CERT_
"""


def refuse(text: str, where: str) -> None:
    """Raise SpecError if `text` holds what looks like a key or a token; the message does not repeat it."""
    if found := _SECRET.search(text):
        line = text.count("\n", 0, found.start()) + 1
        hint = "secrets belong in the environment (HF_TOKEN) or in the Hub's own login, never in a file or a command"
        raise SpecError("this looks like a secret", where=f"{where}:{line}", hint=hint)


def strike(text: str) -> str:
    """`text` with everything that looks like a secret, and every secret of this process's environment, struck out."""
    for value in (value for name, value in os.environ.items() if names_a_secret(name) and len(value) >= 8):
        text = text.replace(value, "[secret]")
    return _SECRET.sub("[secret]", text)


def names_a_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret, as far as a name can tell."""
    return _SECRET_NAME.search(name) is not None


def inherited() -> dict[str, str]:
    """What a process of ours sees of this one's environment: names on the list, none of which names a secret."""
    passed, families = _PASSED.split(), tuple(_FAMILIES.split())
    return {
        name: value
        for name, value in os.environ.items()
        if name in passed or (name.startswith(families) and not names_a_secret(name))
    }
