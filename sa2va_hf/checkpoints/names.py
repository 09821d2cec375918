"""Names of models and datasets that may stand in a published file: Hub ids, never paths of this machine."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def published_name(name: object) -> str | None:
    """`name` where it is a Hub id ("owner/model") and not the path of a folder here, otherwise None."""
    text = str(name or "")
    return text if HUB_ID.fullmatch(text) and not Path(text).exists() else None
