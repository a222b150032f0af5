import numpy as np
import pytest
from scipy.special import log_softmax

from graft.scoring import metrics
from graft.scoring.calibration import (
    Calibration,
    apply_temperature,
    calibrated_losses,
    chance_calibration_error,
    expected_calibration_error,
    fit_temperature,
    log_probabilities,
    reliability,
)
from graft.scoring.predictions import Predictions


def predictions(p, labels):
    p = np.asarray(p)
    return Predictions(
        [str(i) for i in range(len(p))], labels, p, [str(k) for k in range(p.shape[1])]
    )


def drawn(p, rng):
    """Labels drawn from the probabilities."""
    return (p.cumsum(axis=1) > rng.random((len(p), 1))).argmax(axis=1)


def test_calibration_error_by_a_plain_loop(simulate):
    found = simulate(500, 4, sharpness=3)
    p, expected = found.probabilities, 0.0
    for k in range(15):
        held = [i for i in range(500) if k / 15 < p[i].max() <= (k + 1) / 15]
        if held:
            accuracy = np.mean([p[i].argmax() == found.labels[i] for i in held])
            expected += len(held) / 500 * abs(accuracy - np.mean([p[i].max() for i in held]))
    assert expected > 0.02
    assert expected_calibration_error(found) == pytest.approx(expected, abs=1e-12)
    rows = reliability(found)
    assert sum(row["n"] for row in rows) == 500
    nothing = dict.fromkeys(("confidence", "accuracy", "accuracy_low", "accuracy_high"))
    assert rows[0] == {"low": 0, "high": 1 / 15, "n": 0, **nothing}


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_temperature_is_found_again(truth):
    rng = np.random.default_rng(0)
    z = rng.normal(scale=2, size=(4000, 6))
    labels = drawn(np.exp(log_softmax(z, axis=1)), rng)
    fitted = fit_temperature(log_softmax(z * truth, axis=1), labels)
    assert fitted == 1.0 if truth == 1 else fitted == pytest.approx(truth, rel=0.08)
    reported = predictions(np.exp(log_softmax(z * truth, axis=1)), labels)
    scaled = Calibration(fitted, applied=True).shipped(reported)
    assert metrics.log_loss(scaled) <= metrics.log_loss(reported) + 1e-9
    if truth != 1:
        assert expected_calibration_error(scaled) < expected_calibration_error(reported)


def test_temperature_of_hard_cases():
    labels = [0, 1, 0] * 50
    sure = np.log([[0.9, 0.1] if k == 0 else [0.1, 0.9] for k in labels])
    assert fit_temperature(np.zeros((0, 3)), []) == 1.0
    assert fit_temperature(sure[:3], labels[:3]) == 1.0  # too few to tell
    assert 0.2 < fit_temperature(sure, labels) < 0.6  # all right: sharper, yet not without end
    with np.errstate(divide="ignore"):
        certain = np.log(np.eye(2)[[0, 1, 1]])
    assert 1 < fit_temperature(certain, [0, 1, 0]) <= 20  # certain and once wrong
    assert fit_temperature(sure + 5, labels) == pytest.approx(fit_temperature(sure, labels))


def test_temperature_stays_where_the_images_do_not_call_for_another():
    changed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        log_p = log_softmax(rng.normal(scale=2, size=(120, 4)), axis=1)
        changed += fit_temperature(log_p, drawn(np.exp(log_p), rng)) != 1.0
    assert changed <= 12  # a test at 5%, 100 times


def test_apply_temperature():
    p = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    assert apply_temperature(p, 2)[0] == pytest.approx(np.sqrt(p[0]) / np.sqrt(p[0]).sum())
    assert apply_temperature(p, 2)[1].tolist() == [1, 0, 0]
    assert apply_temperature(apply_temperature(p, 2.3), 1 / 2.3) == pytest.approx(p, abs=1e-12)
    assert np.isfinite(apply_temperature([[1e-30, 1e-32, 1e-31]], 0.05)).all()
    for wrong in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            apply_temperature(p, wrong)


def test_log_probabilities_are_finite():
    found = log_probabilities(np.array([0.0, 0.5, 1.0]))
    assert found == pytest.approx([np.log(np.finfo(np.float32).tiny), np.log(0.5), 0])


def test_a_calibration_tells_what_is_shipped_from_what_it_would_be(simulate):
    bare = simulate(50, 3)
    expected = apply_temperature(bare.probabilities, 2.0)
    reported, applied = Calibration(2.0), Calibration(2.0, applied=True)
    assert reported.shipped(bare) is bare
    assert (reported.both(bare)[0].probabilities == bare.probabilities).all()
    assert (reported.both(bare)[1].probabilities == expected).all()
    shipped = applied.shipped(bare)
    assert (shipped.probabilities == expected).all()
    without, tempered = applied.both(shipped)
    assert tempered is shipped
    assert without.probabilities == pytest.approx(bare.probabilities, abs=1e-12)


def test_chance_explains_the_calibration_error_of_a_calibrated_model_not_of_an_overconfident_one():
    """In 300 data sets drawn from the confidences the error's mean is as said, and 5% lie above the
    quantile."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet([4, 1, 1], 400)
    sets = [predictions(p, drawn(p, rng)) for _ in range(300)]
    mean, high = chance_calibration_error(sets[0])
    errors = [expected_calibration_error(some) for some in sets]
    assert np.mean(errors) == pytest.approx(mean, rel=0.03)
    assert 0.02 <= np.mean(np.array(errors) > high) <= 0.09
    boasting = sets[-1].replace_probabilities(apply_temperature(p, 0.4))
    assert expected_calibration_error(boasting) > chance_calibration_error(boasting)[1]


def test_chance_leaves_no_error_where_the_confidence_is_certain():
    assert chance_calibration_error(predictions(np.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 0])) == (0, 0)


def test_overconfidence_alone_does_not_spoil_the_loss_that_chooses(simulate):
    calm = simulate(2_000, 3, signal=1.0)
    sure = calm.replace_probabilities(apply_temperature(calm.probabilities, 0.2))
    losses = [calibrated_losses(p.probabilities, p.labels) for p in (calm, sure)]
    assert losses[0].shape == (2_000,)
    assert losses[1].mean() == pytest.approx(losses[0].mean(), abs=0.01)
    raw = [-np.log(p.probabilities[np.arange(2_000), p.labels]).mean() for p in (calm, sure)]
    assert raw[1] > raw[0] + 0.1
