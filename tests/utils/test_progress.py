import pytest

from fluvial.utils import progress
from fluvial.utils.errors import together
from fluvial.utils.progress import Bar, phase


def test_what_was_brief_is_not_told_where_there_is_no_terminal(capsys, monkeypatch):
    def work():
        with phase("fitting"):
            pass
        with Bar(10, what="features") as bar:
            bar.show(10)

    work()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress, "BRIEF", -1)
    work()
    printed = capsys.readouterr().out
    assert "fitting: 0 s" in printed and "features 10/10" in printed


def test_errors_are_told_together_and_once():
    def wrong(text):
        raise ValueError(text)

    assert together(lambda: 1, lambda: 2) == [1, 2]
    with pytest.raises(ValueError, match="^a; and b$"):
        together(lambda: wrong("a"), lambda: 1, lambda: wrong("b"), lambda: wrong("a"))
    with pytest.raises(TypeError):
        together(lambda: wrong("a"), lambda: 1 + "")
