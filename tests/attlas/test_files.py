"""Files are written whole or not at all, and only where they may be."""

import pytest

from attlas.files import check_out, replacing


def test_replacing_is_all_or_nothing(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("sec\ud800ond", encoding="utf-8")  # opens the file, then cannot write it
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_check_out(tmp_path):
    path = tmp_path / "x.PNG"
    assert check_out(path, (".png", ".pdf")) == path
    path.touch()
    with pytest.raises(FileExistsError, match=r"x\.PNG exists\. To replace it: --overwrite"):
        check_out(path, (".png", ".pdf"))
    assert check_out(str(path), (".png", ".pdf"), overwrite=True) == path
    with pytest.raises(ValueError, match=r"x\.gif must end in \.png or \.pdf"):
        check_out("x.gif", (".png", ".pdf"))
