"""What edits are measured by: replaced words, trials, and chance."""

import pytest

from evaluation.metrics.edits import Trial, best, chance_of_equal, replaced, trials
from evaluation.metrics.intervals import proportion


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("man pilot", "woman pilot"),
        ("woman pilot", "woman pilot"),
        ("a human man", "a human woman"),
        ("man-made man", "man-made woman"),
    ],
)
def test_whole_words_are_replaced(caption, expected):
    assert replaced(caption, "man", "woman") == expected


def test_a_hyphenated_tone_is_another_word():
    caption = "pilot: medium-light skin tone"
    assert replaced(caption, "light skin tone", "dark skin tone") == caption


def test_trials_are_images_whose_target_exists_and_looks_different():
    captions = ("man cook", "woman cook", "man pilot", "man judge", "woman judge")
    identical = [frozenset({each}) for each in captions]
    same = frozenset({"man judge", "woman judge"})
    identical[3] = identical[4] = same
    assert trials(captions, identical, "man", "woman") == [Trial(0, 1)]


def test_chance_is_the_share_of_equal_values():
    assert chance_of_equal("dark", ["dark", "light", None, "dark"]) == 0.5


def test_the_best_setting_is_the_first_of_the_highest():
    scores = [(0.3, proportion([1, 0])), (0.2, proportion([1, 0])), (0.1, proportion([0, 0]))]
    assert best(scores) == 0.2
