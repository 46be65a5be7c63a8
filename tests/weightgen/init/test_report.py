from weightgen.init.report import InitReport, TensorReport

REPORT = InitReport(
    rows=(
        TensorReport("a.weight", (2, 3), "predicted", "low rank"),
        TensorReport("b.weight", (2, 3), "tied", "a.weight"),
        TensorReport("gamma", (2,), "own", "the value it has", "a raw vector"),
        TensorReport("mean", (2,), "own", "the value it has", "a statistic", is_parameter=False),
        TensorReport("scale", (), "own", "the value it has", "a scalar"),
    ),
    notes=("one guess",),
)


def test_coverage_counts_parameters_and_ties_once():
    assert REPORT.tensor_coverage == 1 / 3
    assert REPORT.number_coverage == 6 / 9
    assert InitReport(rows=()).number_coverage == 1


def test_the_table_names_every_tensor_and_why_it_is_not_predicted():
    lines = str(REPORT).splitlines()
    assert lines[0] == "predicted 33.3% of the parameter tensors, 66.7% of their numbers"
    assert lines[4].split("  ")[0] == "gamma" and lines[4].endswith("the value it has: a raw vector")
    assert "scalar" in lines[6] and lines[-1] == "note: one guess"


def test_json_holds_every_row():
    data = REPORT.to_json()
    assert [row["name"] for row in data["tensors"]] == [row.name for row in REPORT.rows]
    assert data["tensors"][2]["why"] == "a raw vector" and "why" not in data["tensors"][0]
