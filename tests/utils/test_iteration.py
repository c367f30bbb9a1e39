import gc
import traceback

import pytest

from fluvial.utils.iteration import iterated


def squares(done, last=5):
    """A function that calls back with squares, and notes how far it came and how it ended."""

    def work(emit):
        try:
            for i in range(last):
                done.append(i)
                emit(i * i)
        except BaseException as error:
            done.append(type(error))
            raise

    return work


def test_the_items_are_those_that_are_emitted_and_made_when_asked_for(new_threads):
    done = []
    items = iterated(squares(done))
    assert done == [] and not new_threads()
    assert next(items) == 0 and done == [0]
    assert next(items) == 1 and done == [0, 1]
    assert list(items) == [4, 9, 16] and done == [0, 1, 2, 3, 4]
    assert list(items) == [] and not new_threads()


def test_what_is_left_early_ends_at_once_with_its_thread(new_threads):
    for leave in (lambda items: items.close(), lambda items: None):
        done = []
        items = iterated(squares(done))
        assert next(items) == 0 and next(items) == 1
        leave(items)
        del items
        gc.collect()
        assert done == [0, 1, GeneratorExit] and not new_threads()


def test_an_error_comes_after_the_items_before_it_with_its_traceback(new_threads):
    def breaks(emit):
        emit("first")
        raise KeyError("second")

    items = iterated(breaks)
    assert next(items) == "first"
    with pytest.raises(KeyError, match="second") as caught:
        next(items)
    assert "breaks" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not new_threads()


def test_several_at_a_time_do_not_mix():
    found = list(zip(iterated(squares([])), iterated(squares([], last=4)), strict=False))
    assert found == [(0, 0), (1, 1), (4, 4), (9, 9)]


def test_an_item_in_an_item_is_an_item():
    assert list(iterated(lambda emit: [emit(None), emit(()), emit(StopIteration())] and None))[:2] == [None, ()]
