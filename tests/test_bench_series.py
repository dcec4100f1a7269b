"""The table of `bench.series`: a search is one value."""

import json

from bench.series import table


def result(seed, winner, gru, tuned):
    contest = {"contestants": [{"name": "winner", "test": winner}, {"name": "gru", "test": gru}]}
    metric = {"name": "accuracy", "key": "accuracy", "lower_is_better": False, "places": 3}
    return {"set": "digits", "seed": seed, "metric": metric, "contest": contest, "tuned gru": {"test": tuned}}


def test_searches_are_compared_by_the_means_of_their_trainings(tmp_path):
    winners = [[0.9, 0.7], [0.8, 0.9], [0.95, 0.91]]
    for seed, winner in enumerate(winners, start=1):
        one = result(seed, winner, [0.7 + 0.01 * seed, 0.7], [0.86])
        (tmp_path / f"digits-{seed}.json").write_text(json.dumps(one))
    row = table(tmp_path).splitlines()[-1]
    assert "digits (settings were chosen on it) | accuracy | 3 | 0.860 ± 0.066 |  | 0.710 ± 0.005 |" in row
    assert "| 0.860 ± 0.000 | 3 of 3, p 0.05 | 1 of 3, p 1 |" in row
