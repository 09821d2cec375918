"""Folders without what systems leave in them.

Run: pytest tests/data/test_listing.py
"""

from sa2va_hf.data.listing import entries, files_below, is_visible, subfolders

LITTER = ("._0.png", ".DS_Store", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", "Thumbs.db", "desktop.ini", "@eaDir/x")


def test_only_what_a_person_put_there_is_listed(tmp_path):
    for name in (*LITTER, "0.png", "b/1.png", "b/._1.png", "b/__MACOSX/2.png", "b/c/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in entries(tmp_path)] == ["0.png", "b"]
    assert subfolders(tmp_path) == [tmp_path / "b"]
    assert files_below(tmp_path, "*.png") == [tmp_path / "0.png", tmp_path / "b/1.png"]
    assert len(files_below(tmp_path)) == 3 and entries(tmp_path / "missing") == []
    assert is_visible("a/b.png") and not is_visible("a/._b.png")
