"""What is written by hand, as chains of recorded calls: (op, call, sources), the number of a node its place."""

from weightgen.graph.drafts import Draft
from weightgen.graph.patterns import find_activation, find_norm, find_scores


def record(*calls: tuple[str, list[int]]) -> list[Draft]:
    return [Draft("other", call, sources) for call, sources in calls]


def test_a_root_mean_square_norm_is_found_from_either_factor():
    drafts = record(("input", []), ("pow", [0]), ("mean", [1]), ("add", [2]), ("rsqrt", [3]))
    assert find_norm(drafts, [0, 4]) == find_norm(drafts, [4, 0]) == ("rms_norm", 0)


def test_a_norm_with_its_mean_taken_away_reads_what_the_mean_was_taken_from():
    drafts = record(
        ("input", []), ("mean", [0]), ("sub", [0, 1]), ("pow", [2]), ("mean", [3]), ("add", [4]), ("rsqrt", [5])
    )
    assert find_norm(drafts, [2, 6]) == ("layer_norm", 0)


def test_a_product_with_something_of_elsewhere_is_no_norm_and_no_activation():
    drafts = record(("input", []), ("linear", [0]), ("mean", [1]), ("rsqrt", [2]))
    drafts[1].tensors.append(("w", "weight", False))
    assert find_norm(drafts, [0, 3]) is None
    assert find_activation(drafts, [0, 1]) is None


def test_a_function_of_x_by_element_times_x_is_an_activation():
    drafts = record(("input", []), ("sigmoid", [0]))
    assert find_activation(drafts, [0, 1]) == find_activation(drafts, [1, 0]) == 0


def test_scores_come_from_what_is_multiplied_and_only_a_softmax_of_a_product_has_them():
    calls = ("linear", []), ("linear", []), ("matmul", [0, 1]), ("mul", [2]), ("softmax", [3]), ("softmax", [0])
    drafts = record(*calls)
    assert find_scores(drafts, 4) == [0, 1]
    assert find_scores(drafts, 5) is None and find_scores(drafts, 3) is None and find_scores(drafts, -1) is None
