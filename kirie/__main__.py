"""`python -m kirie` is the command line."""

from __future__ import annotations

from kirie.cli import main

if __name__ == "__main__":
    main()
