from __future__ import annotations

from index_stores import index
from postgres import postgres

__all__ = ["index", "postgres"]
