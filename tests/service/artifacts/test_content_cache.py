import time

import pytest

from service.artifacts.content_cache import SHARE, Content, ContentCache


def content(name: str, size: int = 10) -> Content:
    return Content("0" * 64, name, bytes(size))


@pytest.fixture
def cache() -> ContentCache:
    return ContentCache(max_bytes=10 * SHARE)


def test_what_was_not_asked_for_the_longest_goes_first(cache):
    for number in range(SHARE):
        cache.put("a", content(str(number)))
    cache.check("a", "0")
    cache.put("b", content("new"))
    assert cache.peek("a", "1") is None
    assert all(cache.peek("a", str(number)) for number in (0, *range(2, SHARE))) and cache.peek("b", "new")


def test_a_file_takes_at_most_its_share_and_nothing_of_no_memory(cache):
    assert cache.takes(10) and not cache.takes(11)
    assert not ContentCache(max_bytes=0).takes(1)


def test_what_is_dropped_makes_room_and_the_same_file_counts_once(cache):
    for _ in range(100):
        cache.put("a", content("a"))
    for number in range(SHARE - 1):
        cache.put("b", content(str(number)))
    assert cache.peek("a", "a") is not None
    cache.drop("a")
    cache.put("c", content("c"))
    assert cache.peek("a", "a") is None and cache.peek("b", "0") is not None


def test_a_check_renews_what_is_here_and_nothing_else(cache):
    old = content("a")
    old.checked = 0.0
    cache.put("a", old)
    before = time.monotonic()
    cache.check("a", "a")
    cache.check("a", "b")
    found = cache.peek("a", "a")
    assert found is not None and found.checked >= before and cache.peek("a", "b") is None
