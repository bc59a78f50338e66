"""Items made ahead by a thread."""

import threading
from itertools import count, islice

import pytest

from slimtts.data.prefetching import prefetched


def test_order_and_items_are_kept():
    assert list(prefetched(iter(range(100)), depth=3)) == list(range(100))
    assert list(prefetched(iter(()))) == []


def test_the_next_item_is_made_while_the_present_one_is_used():
    made = [threading.Event() for _ in range(4)]

    def items():
        for event in made:
            event.set()
            yield event

    coming = prefetched(items(), depth=1)
    assert next(coming) is made[0]
    assert made[1].wait(10)


def test_an_error_comes_in_its_turn():
    def items():
        yield 1
        raise OSError("disk")

    coming = prefetched(items())
    assert next(coming) == 1
    with pytest.raises(OSError, match="disk"):
        next(coming)


def test_no_thread_is_left_when_the_reader_stops_early():
    coming = prefetched(count(), depth=2)
    assert list(islice(coming, 3)) == [0, 1, 2]
    assert any(t.name.startswith("prefetch") for t in threading.enumerate())
    coming.close()
    assert not any(t.name.startswith("prefetch") for t in threading.enumerate())
