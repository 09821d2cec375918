"""Folders as people see them: without the files that systems and tools leave behind.

Left aside are names that begin with a dot (`.DS_Store`, `.ipynb_checkpoints`, and `._0.png`, which macOS writes beside
every file on foreign disks) and the folders and files of `LITTER`.
"""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

LITTER = frozenset(("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information"))
LITTER_FILES = frozenset(("thumbs.db", "desktop.ini"))


def is_visible(path: Path | str) -> bool:
    """Whether the last name of a path is one that a person put there."""
    name = Path(path).name
    return not name.startswith(".") and name not in LITTER and name.lower() not in LITTER_FILES


def entries(folder: Path) -> list[Path]:
    """The visible files and folders in a folder, sorted by name; empty when there is no such folder."""
    return sorted(path for path in folder.iterdir() if is_visible(path)) if folder.is_dir() else []


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name."""
    return [path for path in entries(folder) if path.is_dir()]


def files_below(folder: Path, pattern: str = "*") -> list[Path]:
    """The visible files whose name has the pattern, in a folder and all visible folders below it, sorted."""
    return sorted(_walk(folder, pattern))


def _walk(folder: Path, pattern: str) -> Iterator[Path]:
    for path in entries(folder):
        if path.is_dir():
            yield from _walk(path, pattern)
        elif fnmatch(path.name, pattern):
            yield path
