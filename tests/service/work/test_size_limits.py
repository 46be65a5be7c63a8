import pytest

from service.errors import OverLimit
from service.settings import Settings
from service.work.size_limits import SizeLimits

LIMITS = SizeLimits(max_classes=10, max_support_examples=100, max_parameters=1000)


def test_what_is_at_a_limit_is_taken():
    LIMITS.check_task(num_classes=10, support_per_class=10)
    LIMITS.check_network("cnn", num_parameters=1000)


@pytest.mark.parametrize(
    ("num_classes", "per_class", "sentence"),
    [
        (11, 1, "has 11 classes, and this server takes at most 10"),
        (10, 11, "are 110, and this server takes at most"),
    ],
)
def test_a_task_over_a_limit_is_refused_with_the_limit(num_classes, per_class, sentence):
    with pytest.raises(OverLimit, match=sentence):
        LIMITS.check_task(num_classes=num_classes, support_per_class=per_class)


def test_a_network_over_the_limit_is_refused_with_the_limit():
    with pytest.raises(OverLimit, match="'cnn' has 1001 parameters or more, and this server takes at most 1000"):
        LIMITS.check_network("cnn", num_parameters=1001)


def test_the_limits_are_settings(tmp_path):
    settings = Settings(data_dir=tmp_path, max_classes=3, max_support_examples=4, max_parameters=5)
    assert SizeLimits.of(settings) == SizeLimits(3, 4, 5)
