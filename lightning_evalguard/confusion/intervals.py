"""How sure is a score? 95 % intervals from the counts alone, without the predictions."""

from __future__ import annotations
