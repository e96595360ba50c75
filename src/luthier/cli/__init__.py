"""The command line: `app` (table of commands), `commands` (a short function a verb), `show` and `progress` (words)."""
