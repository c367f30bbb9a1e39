import logging
import sys
import warnings

from fluvial.cli.quiet import LOGGERS, quiet


def test_other_libraries_are_silent_in_a_command_and_errors_are_not(capsys, monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", [])
    logger, heard = logging.getLogger("datasets.builder"), []
    monkeypatch.setattr(logging.getLogger("datasets"), "propagate", False)
    handler = logging.Handler()
    handler.emit = heard.append
    logger.addHandler(handler)
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    with warnings.catch_warnings(record=True) as caught, quiet():
        warnings.warn("noise", stacklevel=1)
        logger.warning("noise")
        logger.error("an error")
        print("our own")
    logger.removeHandler(handler)
    assert not caught and [record.getMessage() for record in heard] == ["an error"]
    assert capsys.readouterr().out == "our own\n"
    assert {name: logging.getLogger(name).level for name in LOGGERS} == before


def test_warnings_that_the_user_asked_for_are_shown(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with warnings.catch_warnings(record=True) as caught, quiet():
        warnings.warn("asked for", stacklevel=1)
    assert len(caught) == 1
