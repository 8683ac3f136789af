"""Names and values that a tracking store takes only a part of."""

from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils import validation

from trainer.tracking.limits import REQUEST_BYTES, batches, fit_name, fit_value

LIMIT = 6000


def test_the_limit_is_that_of_the_installed_mlflow():
    assert validation.MAX_PARAM_VAL_LENGTH >= LIMIT
    assert validation.MAX_ENTITY_KEY_LENGTH == 250


def test_a_value_below_the_limit_stays_as_it_is():
    assert fit_value("a" * 700, LIMIT) == "a" * 700
    assert fit_value("a" * LIMIT, LIMIT) == "a" * LIMIT


def test_values_that_differ_behind_the_limit_differ_and_say_that_they_are_cut():
    classes = [str([f"{'class' * 20} {n}" for n in range(99)] + [last]) for last in ("cat", "dog")]
    first, second = (fit_value(each, LIMIT) for each in classes)
    assert first != second
    assert len(first) == LIMIT
    assert f"[cut: {len(classes[0]):,} characters, SHA-256 " in first


@given(st.text(max_size=300))
def test_every_name_is_one_that_mlflow_takes(name):
    fitted = fit_name(name, 250)
    validation._validate_metric_name(fitted)
    assert 0 < len(fitted) <= 250
    assert fit_name(fitted, 250) == fitted


@given(st.text(max_size=12), st.text(max_size=12))
def test_different_names_stay_different(first, second):
    assert (fit_name(first, 250) == fit_name(second, 250)) == (first == second)


def test_usual_names_stay_as_they_are():
    for name in ("loss/model", "system/n-1.cluster/gpu_0", "Größe: a b", "optimizer.lr.peak"):
        assert fit_name(name, 250) == name


@given(st.dictionaries(st.text(max_size=20), st.text(alphabet="aé€\n", max_size=80), max_size=40))
def test_batches_hold_everything_once_in_order(values):
    found = list(batches(values, 7))
    assert [item for batch in found for item in batch.items()] == list(values.items())
    assert all(0 < len(batch) <= 7 for batch in found)


def test_a_request_stays_small_though_its_letters_are_escaped():
    found = list(batches({f"key{n}": "€" * 6000 for n in range(100)}, 100))
    assert max(sum(6 * len(each) for each in batch.values()) for batch in found) <= REQUEST_BYTES
