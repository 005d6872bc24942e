"""The verdict is the worst of three lamps; learning is measured without labels."""

import itertools
import json

import pytest
import torch

from diptych.embeddings.diagnose import Diagnosis
from diptych.embeddings.lamps import NOT_MEASURED, UNLABELLED, VERDICTS, Lamp, judge
from diptych.embeddings.recognition import learning, recognition_shares

WORDS = ("OK", "WARNING", "WORSE", NOT_MEASURED)


def views(n: int, width: int = 16, noise: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(n, width, generator=rng)
    return tuple(z + noise * torch.randn(n, width, generator=rng) for _ in range(2))


@pytest.mark.parametrize(
    ("collapse", "learned", "worth"), list(itertools.product(("OK", "WARNING", "COLLAPSED"), WORDS, WORDS))
)
def test_the_verdict_is_the_worst_and_ok_needs_worth(collapse, learned, worth):
    judged = judge(Diagnosis(collapse, {}, ["rank 2"] if collapse != "OK" else []), Lamp(learned, ""), Lamp(worth, ""))
    words = {collapse, learned, worth}
    worst = max(words - {NOT_MEASURED}, key=VERDICTS.index)
    assert judged.verdict == ("UNPROVEN" if worst == "OK" and worth == NOT_MEASURED else worst)
    assert [lamp["word"] for lamp in judged.lamps.values()] == [collapse, learned, worth]
    assert Diagnosis(**json.loads(json.dumps(vars(judged)))) == judged, "a run keeps it as it is"


def test_without_labels_the_worth_says_what_it_needs():
    judged = judge(Diagnosis("OK", {}), Lamp("OK", "it has"), advice=["look"])
    assert judged.verdict == "UNPROVEN" and judged.advice == ["look"]
    assert judged.lamps["worth"] == UNLABELLED._asdict() and "diptych evaluate" in UNLABELLED.text


def test_recognition_shares_count_the_images_that_are_farther():
    """Held to the definition, image by image."""
    a, b = views(40)
    slow = []
    for i in range(40):
        similarity = torch.cosine_similarity(a[i].double()[None], b.double())
        slow.append(sum(float(similarity[j] < similarity[i]) for j in range(40) if j != i) / 39)
    torch.testing.assert_close(recognition_shares(a, b), torch.tensor(slow, dtype=torch.float64))


def test_recognition_shares_know_chance_ties_and_perfection():
    a, _ = views(300)
    b, _ = views(300, seed=1)
    assert recognition_shares(a, a).eq(1).all()
    assert abs(float(recognition_shares(a, b).mean()) - 0.5) < 0.05
    assert recognition_shares(torch.ones(60, 4), torch.ones(60, 4)).eq(0.5).all(), (
        "a collapsed encoder recognises nothing"
    )
    assert float(recognition_shares(a * 1e-4 + 1, a * 1e-4 + 1).mean()) > 0.999, "a common direction hides nothing"


def test_the_lamp_of_learning():
    strong, weak, none = (recognition_shares(*views(200, noise=noise)) for noise in (0.5, 1.5, 50.0))
    names = {"reference": "before training", "images": "held-out images"}
    better, worse, same = (
        learning(strong, weak, **names),
        learning(weak, strong, **names),
        learning(none, none, **names),
    )
    assert (better.word, worse.word, same.word) == ("OK", "WORSE", "WARNING")
    assert "of 200 held-out images, before training" in better.text and "points [+" in better.text
    assert learning(torch.ones(200), torch.ones(200), **names).word == NOT_MEASURED, "nothing is left to learn"
    assert learning(strong[:49], weak[:49], **names).word == NOT_MEASURED


def test_the_interval_of_the_gain_covers_it():
    """The mean over many images lies within the intervals of small sets, in about 95 of 100."""
    names = {"reference": "before", "images": "images"}
    sets = [[recognition_shares(*views(100, noise=n, seed=s)) for n in (1.0, 1.3)] for s in range(200)]
    texts = [learning(*pair, **names).text.split("points [")[1].split("]")[0] for pair in sets]
    numbers = [[float(end) for end in text.split(" to ")] for text in texts]
    truth = [float(recognition_shares(*views(4000, noise=n, seed=9)).mean()) for n in (1.0, 1.3)]
    covered = sum(low <= 100 * (truth[0] - truth[1]) <= high for low, high in numbers)
    assert 180 <= covered <= 200, covered
