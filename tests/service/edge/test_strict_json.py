import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.edge.strict_json import MAX_DEPTH, NotStrict, check_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_what_a_writer_of_json_writes_is_strict(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    if '"\\ud' in text or not ascii_only:
        text = text.encode("utf-8", "replace").decode()
    check_json(text.encode())


@given(st.text('[]{}",:\\ a1', max_size=40))
def test_what_is_passed_is_read_by_python_and_what_python_cannot_read_is_refused(text):
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(NotStrict, match="the body is not"):
            check_json(text.encode())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"\xff\xfe{}", "it is not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        ("{}".encode("utf-16-le"), "not valid JSON"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"[1e999]", "a number is too large"),
        (b"9" * (sys.get_int_max_str_digits() + 1), "not valid JSON"),
        (b'{"seed": 1, "x": {}, "seed": 2}', "an object has 'seed' twice"),
        (b'{"a": 1, "\\u0061": 2}', "an object has 'a' twice"),
        (b"{" + b",".join(b'"x":1' for _ in range(2000)) + b"}", "an object has 'a name' twice"),
        (b"[" * 100_000, f"nest more than {MAX_DEPTH} deep"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), f"nest more than {MAX_DEPTH} deep"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_parsers_quarrel_about_is_refused(content, sentence):
    with pytest.raises(NotStrict, match=sentence):
        check_json(content)


def test_nesting_is_counted_outside_strings_and_up_to_the_limit():
    check_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    check_json(json.dumps({"a": "[" * 1000 + '"\\' + "{" * 1000, "[" * 50: 1}).encode())


def test_a_string_that_never_ends_is_read_once():
    with pytest.raises(NotStrict, match="not valid JSON"):
        check_json(b'["' + b'\\"' * 400_000)  # minutes, if every quote began another scan to the end
