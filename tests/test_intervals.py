"""Every interval of a comparison covers the true difference in 93 to 97 % of simulated experiments."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from diptych.embeddings import intervals
from diptych.embeddings.intervals import holm, spread, student
from diptych.embeddings.paired import mean_interval, paired_difference

# kind -> runs of a and of b, deviation between seeds, between images beyond their difficulty, between groups, groups
EXPERIMENTS = {
    "one run each": (1, 1, 0.0, 0.3, 0.0, 0),
    "3 seeds that hardly differ": (3, 3, 0.02, 0.0, 0.0, 0),
    "3 seeds that differ": (3, 3, 0.15, 0.3, 0.0, 0),
    "5 seeds": (5, 5, 0.05, 0.3, 0.0, 0),
    "10 seeds": (10, 10, 0.05, 0.7, 0.0, 0),
    "other seeds": (4, 6, 0.1, 0.3, 0.0, 0),
    "12 groups": (1, 1, 0.0, 0.0, 0.5, 12),
    "40 groups": (1, 1, 0.0, 0.3, 1.0, 40),
    "3 seeds, 20 groups": (3, 3, 0.1, 0.0, 0.5, 20),
}
GAIN = 0.1  # of a, in units of the noise of one answer
QUICK = ("one run each", "other seeds", "12 groups")


@pytest.fixture(autouse=True, scope="module")
def quantiles_once():
    """Simulated experiments ask for the same quantiles again and again, which take most of their time."""
    once = cache(student)

    def quantiles(degrees, level=0.05):
        return student(degrees, level) if isinstance(level, np.ndarray) else once(degrees, level)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "student", quantiles)
        yield


def experiment(rng: np.random.Generator, kind: str, images: int):
    """Right or wrong of a and b, the groups, and the true difference and accuracy of a over images, groups and seeds."""
    runs_a, runs_b, of_seed, of_image, of_group, count = EXPERIMENTS[kind]
    groups = rng.permutation(np.arange(images) % count) if count else None  # every group has images
    easy = rng.normal(0, 1, images)
    own = rng.normal(0, of_image, images) + (rng.normal(0, of_group, count)[groups] if count else 0)
    scores_a = 0.5 + GAIN + easy + own + rng.normal(0, of_seed, (runs_a, 1)) + rng.normal(0, 1, (runs_a, images))
    scores_b = 0.5 + easy + rng.normal(0, of_seed, (runs_b, 1)) + rng.normal(0, 1, (runs_b, images))
    accuracy_a = stats.norm.cdf((0.5 + GAIN) / np.sqrt(2 + of_seed**2 + of_image**2 + of_group**2))
    difference = accuracy_a - stats.norm.cdf(0.5 / np.sqrt(2 + of_seed**2))
    return scores_a > 0, scores_b > 0, groups, difference, accuracy_a


def coverage(kind: str, trials: int) -> tuple[float, float]:
    """The shares of experiments whose intervals hold the true difference, and the true accuracy of a."""
    rng, right, right_alone = np.random.default_rng(0), 0, 0
    for _ in range(trials):
        a, b, groups, difference, accuracy = experiment(rng, kind, 400)
        low, high = paired_difference(a, b, groups).interval
        right += low <= difference <= high
        low, high = mean_interval(a, groups)
        right_alone += low <= accuracy <= high
    return right / trials, right_alone / trials


def allowed(share: float, trials: int, errors: int = 3) -> bool:
    """Whether a share of trials agrees with a coverage of 93 to 97 %, but for so many standard errors of the simulation."""
    error = errors * (0.05 * 0.95 / trials) ** 0.5
    return 0.93 - error <= share <= 0.97 + error


@pytest.mark.parametrize("kind", QUICK)
def test_intervals_cover(kind):
    trials = 200
    assert all(allowed(share, trials) for share in coverage(kind, trials))


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_intervals_cover_93_to_97_percent(kind):
    trials = 4000 if "groups" not in kind else 1500
    difference, alone = coverage(kind, trials)
    print(f"{kind}: difference {difference:.3f}, accuracy {alone:.3f} of {trials}")
    assert allowed(difference, trials, 1) and allowed(alone, trials, 1)


def test_the_simulation_can_fail():
    """Seeds are no images: their interval misses what the variation between seeds adds."""
    rng, right = np.random.default_rng(0), 0
    for _ in range(200):
        a, b, _, difference, _ = experiment(rng, "3 seeds that differ", 400)
        low, high = paired_difference(a[0], b[0]).interval
        right += low <= difference <= high
    assert not allowed(right / 200, 200)


@pytest.mark.parametrize("degrees", [1, 1.5, 2, 3, 7.3, 20, 300, 1e9])
@pytest.mark.parametrize("level", [0.5, 0.05, 0.001])
def test_student(degrees, level):
    assert student(degrees, level) == pytest.approx(stats.t.ppf(1 - level / 2, degrees), rel=1e-3)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_p_is_the_level_whose_interval_reaches_0():
    rng = np.random.default_rng(4)
    a, b, *_ = experiment(rng, "5 seeds", 400)
    result = spread([a.astype(float) - b], [1])
    difference = float(a.mean() - b.mean())
    low, high = result.interval(difference, result.p(difference))
    assert min(abs(low), abs(high)) < 1e-4


def test_the_images_needed_show_the_difference_in_80_percent():
    rng = np.random.default_rng(5)
    a, b, _, difference, _ = experiment(rng, "one run each", 2000)
    needed = spread([a.astype(float) - b], [1]).images_needed(difference, 2000)
    assert needed is not None and 2000 < needed < 20_000
    many, other, *_ = experiment(rng, "one run each", 100_000)
    assert paired_difference(many, other).needed == 100_000  # they show it already
    seen = 0
    for _ in range(300):
        a, b, *_ = experiment(rng, "one run each", needed)
        seen += paired_difference(a, b).significant
    assert 0.7 < seen / 300 < 0.9


def test_no_number_of_images_replaces_seeds():
    rng = np.random.default_rng(6)
    a, b = (rng.random((3, 2000)) < np.array(shares)[:, None] for shares in ((0.8, 0.6, 0.7), (0.6, 0.75, 0.7)))
    assert paired_difference(a, b).needed is None


def test_equal_answers_are_no_difference():
    a = np.arange(80) % 3 > 0
    for groups in (None, np.arange(80) % 10):
        for rows in (a, np.stack([a, a])):
            result = paired_difference(rows, rows, groups)
            assert result.difference == 0 and not result.significant and result.interval[0] < 0 < result.interval[1]
            assert result.needed is None
