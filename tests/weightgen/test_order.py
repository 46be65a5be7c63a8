"""An order is the same whichever way it came in, and its terms are checked before anything is loaded."""

from typing import Any

import pytest

from weightgen.errors import BadOption, UnsupportedTask, WeightgenError
from weightgen.generators import METHODS
from weightgen.order import TERM_CHECKS, Order, check_terms

NAMES: dict[str, Any] = {"generator": "d2nwg", "architecture": "cnn-tiny", "dataset": "digits"}


def test_an_order_comes_back_from_its_json():
    order = Order(**NAMES, num_samples=3, target_accuracy=0.9, options={"steps": 4})
    assert Order.from_json(order.to_json()) == order
    assert Order.from_json(NAMES) == Order(**NAMES)


def test_a_field_that_no_order_has_is_refused():
    with pytest.raises(BadOption, match="an order has no field 'arch'; it has architecture, dataset"):
        Order.from_json({**NAMES, "arch": "cnn"})


@pytest.mark.parametrize(
    ("method", "terms", "field", "error"),
    [
        ("d2nwg", {"target_accuracy": 1.5}, "target_accuracy", BadOption),
        ("d2nwg", {"target_accuracy": float("nan")}, "target_accuracy", BadOption),
        ("mip", {"target_accuracy": 0.9}, "target_accuracy", UnsupportedTask),
        ("mip", {"num_samples": 2}, "num_samples", UnsupportedTask),
        ("mip", {"options": {"steps": 4}}, "options", UnsupportedTask),
        ("d2nwg", {"options": {"steps": 0}}, "options", BadOption),
    ],
)
def test_terms_that_a_method_cannot_honour_are_found_by_their_field(method, terms, field, error):
    order = Order(**NAMES, **terms)
    with pytest.raises(error):
        check_terms(order, METHODS[method])
    failing = []
    for name, check in TERM_CHECKS.items():
        try:
            check(order, METHODS[method])
        except WeightgenError:
            failing.append(name)
    assert failing == [field]


def test_terms_that_a_method_can_honour_pass():
    check_terms(Order(**NAMES, num_samples=4, target_accuracy=0.9, options={"steps": 4}), METHODS["d2nwg"])
