"""`python -m luthier` and the `luthier` command. What they do stands in `cli/app.py`."""

from __future__ import annotations

from luthier.cli.app import main

if __name__ == "__main__":
    main()
