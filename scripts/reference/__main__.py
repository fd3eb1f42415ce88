"""`make reference`."""

from __future__ import annotations

from scripts.reference import DOCS, PARTS, written

for name in PARTS:
    (DOCS / name).write_text(written(name), "utf-8")
