import threading
from contextvars import copy_context

from service.telemetry.log_context import current_fields, logged_with, note


def test_fields_hold_inside_the_block_and_those_of_an_outer_one_too():
    with logged_with(request="r"):
        with logged_with(job="j"):
            assert current_fields() == {"request": "r", "job": "j"}
        assert current_fields() == {"request": "r"}
    assert current_fields() == {}


def test_what_a_thread_of_the_block_notes_is_seen_by_the_block():
    with logged_with(request="r") as fields:
        thread = threading.Thread(target=copy_context().run, args=(lambda: note(job="j"),))
        thread.start()
        thread.join()
        assert fields == current_fields() == {"request": "r", "job": "j"}


def test_a_note_outside_of_any_block_goes_nowhere():
    note(job="j")
    assert current_fields() == {}
