"""Sequences from arrays and files: what is read, what is refused, and with which words."""

import re

import numpy as np
import pytest
import torch

from wenet.data import Batches, Preparation, Reading, SeriesData, load_series, prepare, read_series, series_of
from wenet_kernels import WenetError

THIRDS = (0.7, 0.15, 0.15)


def drawn(count=40, steps=6, features=2, seed=1):
    generator = np.random.default_rng(seed)
    x = generator.normal(3, 2, size=(count, steps, features))
    return x, np.where(x[:, :, 0].mean(1) > 3, "high", "low")


def prepared(given, kind="classify", **how) -> SeriesData:
    settings = {"classes": kind in ("classify", "label"), "split": THIRDS, "seed": 1, **how}
    series = series_of(given, kind != "forecast", every_step=kind == "label")
    return prepare(series, Preparation(kind, **settings))


def test_forms_of_the_same_sequences_are_equal():
    x, y = drawn()
    whole = series_of((x, y), True)
    forms = {
        "tensor": (torch.from_numpy(x), y),
        "list": (list(x), list(y)),
        "tensors": ([torch.from_numpy(each) for each in x], list(y)),
        "pairs": torch.utils.data.StackDataset(torch.from_numpy(x), list(y)),
    }
    forms["loader"] = torch.utils.data.DataLoader(forms["pairs"], batch_size=7, shuffle=True)
    for name, form in forms.items():
        assert series_of(form, True).fingerprint() == whole.fingerprint(), name
    turned = series_of((x.swapaxes(1, 2), y), True, "nft")
    assert turned.fingerprint() == whole.fingerprint()
    assert series_of((x + 1, y), True).fingerprint() != whole.fingerprint()


def test_sequences_of_different_length_and_their_file(tmp_path):
    given = ([np.arange(3.0), np.arange(5.0) * 2], ["a", "b"])
    series = series_of(given, True)
    assert series.values.shape == (8, 1) and series.lengths.tolist() == [3, 5]
    series.save(tmp_path / "data.safetensors")
    again = load_series(tmp_path / "data.safetensors")
    assert again.fingerprint() == series.fingerprint() and again.targets.tolist() == ["a", "b"]


def test_parts_are_stratified_and_disjoint():
    x, _ = drawn(100)
    y = np.array(["rare"] * 10 + ["common"] * 90)
    data = prepared((x, y))
    starts = [set(getattr(data, part).starts.tolist()) for part in ("train", "valid", "test")]
    assert len(set.union(*starts)) == 100 == sum(map(len, starts))
    for part in ("train", "valid", "test"):
        targets = getattr(data, part).targets
        assert 0.05 < float((targets == data.classes.index("rare")).double().mean()) < 0.2, part
    other = prepared((x, y), seed=2)
    assert set(other.test.starts.tolist()) != starts[2]


def test_only_the_training_part_decides_the_scale():
    x, y = drawn(60)
    data = prepared((x, y))
    training = x[data.train.starts.numpy() // 6].reshape(-1, 2)
    assert data.scaling.shift.numpy() == pytest.approx(training.mean(0))
    assert data.scaling.scale.numpy() == pytest.approx(training.std(0))
    assert data.scaling.shift.numpy() != pytest.approx(x.reshape(-1, 2).mean(0))
    inputs, _ = data.train.batch(torch.arange(len(data.train)))
    assert inputs[..., :2].mean((0, 1)).abs().max() < 1e-5 and (inputs[..., 2] == 1).all()


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_do_not_matter(unit):
    x, y = drawn()
    in_units, usual = prepared((x * unit, y)), prepared((x, y))
    torch.testing.assert_close(in_units.train.steps, usual.train.steps, rtol=1e-5, atol=1e-6)
    assert usual.train.steps.std() > 0.5


def test_a_batch_is_zero_behind_the_end_of_each_sequence():
    sequences = [np.full((length, 1), float(length) + np.arange(length)[:, None]) for length in (2, 4, 3) * 8]
    data = prepared((sequences, ["a", "b", "b"] * 8))
    inputs, _ = data.train.batch(torch.arange(len(data.train)))  # [T, M, 2]
    there = inputs[..., -1]
    assert there.sum(0).tolist() == data.train.lengths.tolist()
    assert not inputs[there == 0].any() and (there.diff(dim=0) <= 0).all()
    for row in range(len(data.train)):
        start, length = int(data.train.starts[row]), int(data.train.lengths[row])
        expected = (data.raw.values[start : start + length, 0] - float(data.scaling.shift)) / float(data.scaling.scale)
        assert inputs[:length, row, 0].numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_training_reads_another_order_in_each_pass():
    data = prepared(drawn(60))
    batches = Batches(data, data.train, 10, seed=3)
    assert len(batches) == 4
    order = [batches.batch(number)[0] for number in range(8)]
    assert not torch.equal(order[0], order[4])
    assert all(torch.equal(batches.batch(number)[0], order[number]) for number in (5, 2))
    held_out = Batches(data, data.valid, 4)
    assert len(held_out) == -(-len(data.valid) // 4)
    assert len(held_out.first(2).examples) == 8


@pytest.mark.parametrize(("horizon", "said"), [(1, "1 feature; 1 number to predict"), (3, "; 3 numbers to predict")])
def test_data_are_described_in_words(horizon, said):
    wave = np.sin(np.arange(100.0))
    assert prepared(wave, "forecast", window=8, horizon=horizon).describe().endswith(said)
    several = prepared([wave, wave[:8], np.arange(100.0)], "forecast", window=8, horizon=horizon).describe()
    assert several.endswith(
        f"{said}; 1 of 3 series is too short for a window; relative to a window's first step: feature 1"
    )


def test_targets_of_very_different_scale_are_named():
    x = drawn()[0]
    said = prepared((x, x[:, :2, 0] * [1, 100.0]), "regress").describe()
    assert re.search(
        r"2 numbers to predict of standard deviation 1\.\d+ to 1\d\d\.\d, so RMSE and MAE are mostly those of", said
    )
    assert prepared((x, x[:, :2, 0]), "regress").describe().endswith("2 numbers to predict")


def test_forecasts_are_divided_in_time():
    """No target of a part lies in another, and windows may begin before their part."""
    values = np.arange(100.0)
    data = prepared(values, "forecast", window=8, horizon=3)
    shift, scale = float(data.scaling.shift), float(data.scaling.scale)
    assert shift == pytest.approx(np.arange(70).mean())
    spans = {}
    for part in ("train", "valid", "test"):
        examples = getattr(data, part)
        inputs, targets = examples.batch(torch.arange(len(examples)))
        first = examples.steps[examples.starts, :1]  # [N, 1], as a ramp drifts
        ahead = (targets + first) * scale + shift
        last = (inputs[-1, :, 0] + first[:, 0]) * scale + shift
        assert torch.allclose(ahead, last[:, None] + torch.arange(1.0, 4.0), atol=1e-3)
        spans[part] = (round(float(ahead.min())), round(float(ahead.max())))
    assert spans == {"train": (8, 69), "valid": (70, 84), "test": (85, 99)}
    assert float(data.naive) == pytest.approx(1.0)


def test_forecasts_of_some_columns():
    values = np.random.default_rng(1).normal(size=(200, 3))
    data = prepared(values, "forecast", window=5, horizon=2, target="3,1")
    assert data.columns == (2, 0) and data.outputs == 4
    inputs, targets = data.test.batch(torch.arange(3))
    place = int(data.test.starts[0]) + 5
    expected = (values[place : place + 2][:, [2, 0]] - data.scaling.shift[[2, 0]].numpy()) / data.scaling.scale[
        [2, 0]
    ].numpy()
    assert targets[0].numpy() == pytest.approx(expected.ravel(), rel=1e-5)
    assert inputs.shape == (5, 3, 4)


def test_missing_values_are_marked():
    x, y = drawn()
    x[4, 2, 1] = np.nan
    with pytest.raises(WenetError, match="arrays, sequence 5, step 3: feature 2 is missing; --missing mask"):
        prepared((x, y))
    data = prepared((x, y), missing="mask")
    steps = data.train.steps
    assert data.scaling.inputs == 5 and steps.isfinite().all()
    assert steps[:, 3].nonzero().flatten().tolist() == [4 * 6 + 2] and steps[4 * 6 + 2, 1] == 0
    assert not steps[:, 2].any()


def test_a_target_for_each_step():
    x, _ = drawn(30)
    y = (x[:, :, 0] > 3).astype(int)
    data = prepared((x, y), "label")
    inputs, targets = data.valid.batch(torch.arange(3))
    assert targets.shape == inputs.shape[:2] and data.classes == (0, 1)
    wanted = (inputs[..., 0] * float(data.scaling.scale[0]) + float(data.scaling.shift[0]) > 3).long()
    assert torch.equal(targets, wanted)


def _changed(x, y, **places):
    x = x.copy()
    x[0, 1, 0] = places.get("value", x[0, 1, 0])
    return x, y


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, y: (x[:, :, 0, None, None], y), "x must have the shape [N, T, F] or [N, T], not [40, 6, 1, 1]"),
        (lambda x, y: (x, y[:-1]), "40 sequences but 39 targets"),
        (lambda x, y: x, "give sequences and targets as a pair (x, y), not ndarray alone"),
        (lambda x, y: (x, np.full(40, "high")), "all targets are 'high'; a classification needs two classes"),
        (lambda x, y: (np.where(np.arange(2) == 1, 7.0, x), y), "feature 2 is constant in the training part; leave it"),
        (lambda x, y: (np.ones_like(x), y), "feature 1 is constant in the training part; there is nothing to learn"),
        (lambda x, y: _changed(x, y, value=np.inf), "sequence 1, step 2: feature 1 is infinite"),
        (lambda x, y: (x.astype(str), y), "is no number; there must be numbers of one shape"),
        (lambda x, y: ([*x[:2], x[2, :, :1]], y[:3]), "sequence 3 has 1 features, sequence 1 has 2"),
        (lambda x, y: ([*x[:2], x[2, :0]], y[:3]), "sequence 3 is empty; leave it out"),
        (
            lambda x, y: (x, np.array(["one", *["two"] * 39])),
            "too few sequences with the label 'one', 1; a split needs at least 3",
        ),
        (lambda x, y: (x, np.linspace(0, 1, 40)), "a target such as 0.025"),
        (lambda x, y: (x, np.where(np.arange(40) == 3, np.nan, 1.0)), "target 4 is missing or not finite"),
        (lambda x, y: (x, [None, *y[1:]]), "a label is missing; leave its sequence out"),
        (lambda x, y: (x, np.stack([y, y], 1)), "one label for each is wanted, but targets have 2 columns"),
        (lambda x, y: (x, np.array([2**64 - 1, 3] * 20, np.uint64)), "is too large for a whole number"),
        (lambda x, y: (x, np.array([1e300, 3] * 20)), "a target such as 1e+300 is no class; say --task regress"),
        (lambda x, y: (x + 1j, y), "x is no array of numbers"),
        (lambda x, y: (1e300 * x, y), "feature 1 has values too large for a standard deviation"),
        (
            lambda x, y: (torch.empty(40, 6, 2, device="meta"), y),
            "a tensor on the device meta has a shape but no values",
        ),
        (lambda x, y: (x, None), "there are no targets, only None"),
        (lambda x, y: {"train": (x, y), "tset": (x, y)}, "parts are named train, test and perhaps valid"),
        (lambda x, y: {"train": (x, y), "test": (x[..., :1], y)}, "the parts differ in their number of features"),
        (lambda x, y: {"train": (x, y), "test": (x, np.full(40, "new"))}, "the test part has the label 'new', which"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(WenetError) as raised:
        prepared(given(*drawn()))
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.full(40, 0.1), "target 1 is constant in the training part"),  # but for rounding
        (np.linspace(1, 2, 40) * 1e200, "target 1 has values too large for a standard deviation"),
    ],
)
def test_numbers_that_cannot_be_predicted_are_refused(targets, message):
    with pytest.raises(WenetError, match=message):
        prepared((drawn()[0], targets), "regress")


def test_targets_of_other_forms_are_equal():
    """A column of labels; numbers in an array of objects, as a table of pandas gives them."""
    x, y = drawn()
    assert torch.equal(prepared((x, y[:, None])).train.targets, prepared((x, y)).train.targets)
    classes, numbers = (y == "high").astype(int), x[:, 0, 0]
    assert prepared((x, classes.astype(object))).classes == prepared((x, classes)).classes == (0, 1)
    own, usual = prepared((x, numbers.astype(object)), "regress"), prepared((x, numbers), "regress")
    assert torch.equal(own.train.targets, usual.train.targets) and usual.train.targets.std() > 0.5


@pytest.mark.parametrize(
    ("given", "how", "message"),
    [
        (np.arange(90.0), {"window": 8, "horizon": 2**31 - 1}, "no window of 8 + 2147483647 steps in the training"),
        (np.arange(12.0), {"window": 8, "horizon": 3}, "no window of 8 + 3 steps in the training part"),
        (np.ones(90), {"window": 8, "horizon": 3}, "feature 1 is constant"),
        (np.arange(90.0), {"window": 8, "horizon": 3, "target": "2"}, "has no column '2'; --target must be among 1"),
        (np.arange(90.0), {"window": 8, "horizon": 3, "target": "1, 1"}, "--target 1, 1 names a column twice"),
    ],
)
def test_forecasts_that_cannot_be(given, how, message):
    with pytest.raises(WenetError, match=message.replace("+", r"\+")):
        prepared(given, "forecast", **how)


def test_columns_whose_names_have_commas(tmp_path):
    """Alone as they are, and among others in quotes."""
    text = 'who,"speed, km/h",b,"up, or down"\n1,2,3,up\n1,4,5,down\n2,6,7,up\n'
    path = write(tmp_path / "commas.csv", text)
    series = read_series(path, Reading(True, True, target="up, or down", sequence="who"))
    assert series.targets.tolist() == ["up", "down", "up"] and series.columns == ("speed, km/h", "b")
    numbers = write(tmp_path / "numbers.csv", 'who,"speed, km/h",b,c\n1,2,3,0\n1,4,5,0\n2,6,7,0\n')
    series = read_series(numbers, Reading(True, True, target='"speed, km/h", b', sequence="who"))
    assert series.targets.tolist() == [[2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("text", ["0,1,kind\n3,4,up\n5,6,down\n", ",0,1,kind\n0,3,4,up\n1,5,6,down\n"])
def test_tables_as_pandas_writes_them(text, tmp_path):
    """Columns that are numbered, and rows."""
    series = read_series(write(tmp_path / "t.csv", text), Reading(True))
    assert series.values[:, 0].tolist() == [3, 4, 5, 6] and series.targets.tolist() == ["up", "down"]


def test_a_first_column_of_numbers_with_commas_is_no_time(tmp_path):
    path = write(tmp_path / "thousands.csv", 'a,b\n"1,000",2\n"2,000",3\n')
    with pytest.raises(WenetError, match="line 2, column 'a': '1,000' is no number; write digits and '.' alone"):
        read_series(path, Reading(targeted=False))


@pytest.mark.parametrize("text", ['a\n1\n""\n3\n', "a,b\n1,2\n,\n3,4\n", "a,b\n1,2\n\nnan,\n3,4\n"])
def test_a_row_of_gaps_is_a_step(text, tmp_path):
    """As pandas writes gaps; only blank lines are none."""
    found = read_series(write(tmp_path / "gap.csv", text), Reading(targeted=False))
    assert found.lengths.tolist() == [3] and np.isnan(found.values[1]).all()


def test_rows_of_a_larger_table_keep_their_numbers_apart(tmp_path):
    text = ",x1,x2,kind\n43,1,2,up\n7,3,4,down\n"
    found = read_series(write(tmp_path / "some.csv", text), Reading(targeted=True))
    assert found.values.ravel().tolist() == [1, 2, 3, 4] and found.targets.tolist() == ["up", "down"]


def test_any_text_may_name_a_sequence(tmp_path):
    path = write(tmp_path / "countries.csv", "who,a\nNA,1\nDE,2\nNA,3\n")
    assert read_series(path, Reading(targeted=False, sequence="who")).lengths.tolist() == [2, 1]


def test_columns_may_be_counted_from_one(tmp_path):
    path = write(tmp_path / "counted.csv", "label,1,2\nup,5,6\ndown,7,8\n")
    found = read_series(path, Reading(targeted=True, target="label"))
    assert found.values.ravel().tolist() == [5, 6, 7, 8] and found.targets.tolist() == ["up", "down"]


def test_numbers_with_gaps_of_pandas():
    found = series_of(np.array([[1, None], [2.5, 3]], object), False)
    np.testing.assert_array_equal(found.values, [[1, np.nan], [2.5, 3]])


def test_a_comma_at_the_end_of_each_line_is_no_column(tmp_path):
    found = read_series(write(tmp_path / "steps.csv", "a,b,\n1,2,\n3,4,\n"), Reading(targeted=False))
    assert (found.columns, found.values.tolist()) == (("a", "b"), [[1, 2], [3, 4]])
    found = read_series(write(tmp_path / "rows.csv", "a,b,kind,\n1,2,up,\n3,4,down,\n"), Reading(targeted=True))
    assert found.targets.tolist() == ["up", "down"] and found.lengths.tolist() == [2, 2]


def test_endings_in_capitals(tmp_path):
    for ending, between in ((".CSV", ","), (".TSV", "\t")):
        text = "a,kind\n3,up\n5,down\n".replace(",", between)
        assert read_series(write(tmp_path / f"T{ending}", text), Reading(True)).values.tolist() == [[3], [5]]


def test_numbered_rows_are_no_feature(tmp_path):
    for text in (",0\n0,5\n1,6\n2,8\n", ",load\n0,5\n1,6\n2,8\n"):
        assert read_series(write(tmp_path / "t.csv", text), Reading(False)).values.tolist() == [[5], [6], [8]]
    for text, first in (("0,1\n5,6\n8,9\n", [0, 1]), ("0,up\n3,down\n4,down\n", [0])):  # which are numbers
        series = read_series(
            write(tmp_path / "t.csv", text), Reading("up" in text, target="2" if "up" in text else None)
        )
        assert series.values[: len(first)].ravel()[: len(first)].tolist() == first


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int8, "sparse"])
def test_tensors_of_any_type_are_read(kind):
    x, y = (4 * drawn(40)[0]).round(), drawn(40)[1]
    tensor = torch.from_numpy(x)
    tensor = tensor.to_sparse() if kind == "sparse" else tensor.to(kind)
    assert torch.equal(prepared((tensor, y)).train.steps, prepared((x, y)).train.steps)


def test_windows_begin_and_end_with_what_a_forecast_counts_from():
    """A gap elsewhere is marked. The first value of a window counts only where it drifts."""
    series = np.stack([np.arange(300.0) / 10, np.sin(np.arange(300) / 5)], 1)
    gaps = series.copy()
    gaps[[40, 41, 90], 0] = np.nan
    gaps[60, 1] = np.nan
    how = {"window": 8, "horizon": 2, "target": "1", "missing": "mask"}
    data, whole = prepared(gaps, "forecast", **how), prepared(series, "forecast", **how)
    assert whole.scaling.relative == data.scaling.relative == (0,)
    left_out = set(whole.train.starts.tolist()) - set(data.train.starts.tolist())
    first, last = {40, 41, 90}, {33, 34, 83}
    ahead = {gap - 8 - step for gap in first for step in (0, 1)}
    assert left_out == first | last | ahead and 60 in data.train.starts.tolist()
    inputs, _ = data.train.batch(torch.nonzero(data.train.starts == 38).flatten())
    assert inputs[2:4, 0, 2].tolist() == [1, 1]  # both are marked


class Frame:
    """A data frame, of which only the columns' names and the array are read."""

    def __init__(self, values, columns):
        self.values, self.columns, self.shape = values, columns, values.shape

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_columns_of_other_names_or_order_are_refused():
    frame, turned = Frame(np.eye(9, 2), ["a", "b"]), Frame(np.eye(9, 2), ["b", "a"])
    assert series_of([frame, frame], False).columns == ("a", "b")
    message = "arrays, sequence 2: column 1 is 'b', and 'a' in the first that has names; put columns in that order"
    with pytest.raises(WenetError, match=message):
        series_of([frame, turned], False)
    with pytest.raises(WenetError, match="arrays, test: column 1 is 'b', and 'a' in the first part that has names"):
        series_of({"train": frame, "test": turned}, False)
    with pytest.raises(WenetError, match="sequence 3: column 1 is 'b', and 'a' in the first that has names"):
        series_of([np.eye(9, 2), frame, turned], False)
    plain = series_of([frame, np.eye(9, 2)], False)
    assert (plain.columns, plain.lengths.tolist()) == (("a", "b"), [9, 9])
    assert len(series_of([frame, Frame(np.eye(9, 2), [0, 1])], False).lengths) == 2  # without names


def test_a_forecast_has_no_targets():
    with pytest.raises(WenetError, match="a forecast takes sequences alone, x and not"):
        prepared(drawn(), "forecast", window=3, horizon=1)
    with pytest.raises(WenetError, match="a forecast takes sequences alone, x and not"):
        prepared((np.zeros((30, 1)), np.zeros(30)), "forecast", window=3, horizon=1)
    assert len(series_of((np.zeros(30), np.zeros(20)), False).lengths) == 2
    assert series_of((1.0, 2.0), False).lengths.tolist() == [2]


class Numbered(torch.utils.data.Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([np.zeros(3)])


def test_parts_of_a_data_set_are_those_parts():
    """A Subset has a data set within, of which it is a part."""
    x = drawn(40)[0]
    whole = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.arange(40.0))
    train, test = torch.utils.data.random_split(whole, [30, 10])
    for parts in ((train, test), (torch.utils.data.DataLoader(train), torch.utils.data.DataLoader(test, batch_size=3))):
        series = series_of({"train": parts[0], "test": parts[1]}, True)
        assert series.targets.tolist() == [*train.indices, *test.indices]
        assert (series.parts == 2).sum() == 10 and series.targets[0] != series.targets[-1]


LOADED = Numbered(*((np.zeros(3), number) for number in range(9)))
SOME = torch.utils.data.SubsetRandomSampler([1, 2])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"sampler": SOME}, "a loader's own sampler is not used"),
        ({"batch_sampler": torch.utils.data.BatchSampler(SOME, 2, False)}, "a loader's own sampler is not used"),
        ({"batch_sampler": [[1, 2]]}, "a loader's own sampler is not used"),
        ({"sampler": torch.utils.data.RandomSampler(LOADED, num_samples=4)}, "a loader's own sampler is not used"),
        ({"sampler": torch.utils.data.RandomSampler(LOADED, True)}, "a loader's own sampler is not used"),
        ({"collate_fn": list}, "a loader's collate_fn is not used; give loader.dataset"),
    ],
)
def test_what_a_loader_leaves_out_or_changes_is_not_ignored(how, message):
    with pytest.raises(WenetError, match=message):
        series_of(torch.utils.data.DataLoader(LOADED, **how), True)
    for plain in ({}, {"shuffle": True, "batch_size": 4, "drop_last": True}, {"batch_size": None}):
        assert series_of(torch.utils.data.DataLoader(LOADED, **plain), True).targets.tolist() == list(range(9))


def test_masked_values_are_missing():
    x, y = drawn(9)
    masked = np.ma.masked_array(x.copy(), np.zeros(x.shape, bool))
    masked[2, 1, 0] = 1e9
    masked[2, 1, 0] = np.ma.masked
    wanted = x.copy()
    wanted[2, 1, 0] = np.nan
    assert np.array_equal(series_of((masked, y), True).values, series_of((wanted, y), True).values, equal_nan=True)
    with pytest.raises(WenetError, match="a label is missing"):
        series_of((x, np.ma.masked_array(np.arange(9), np.arange(9) == 3)), True)


@pytest.mark.parametrize("held_as", [bool, object])
def test_labels_that_are_true_or_false_stay_so(tmp_path, held_as):
    x, y = drawn()
    data = prepared((x, (y == "high").astype(held_as)))
    assert data.classes == (False, True) and all(isinstance(each, bool) for each in data.classes)
    assert torch.equal(data.train.targets, prepared((x, (y == "high").astype(int))).train.targets)
    data.raw.save(tmp_path / "kept.safetensors")
    assert load_series(tmp_path / "kept.safetensors").fingerprint() == data.raw.fingerprint()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((np.zeros((2, 3, 1)), np.array(["\u00e9".encode(), b"a"])), "labels are bytes that are no ASCII"),
        (
            (torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)], layout=torch.jagged), [0, 1]),
            "a nested tensor has no shape",
        ),
        (
            (torch.nn.utils.rnn.pack_sequence([torch.zeros(3), torch.zeros(2)]), [0, 1]),
            "a PackedSequence has its steps",
        ),
    ],
)
def test_objects_that_cannot_be_read(given, message):
    with pytest.raises(WenetError, match=message):
        series_of(given, True)


def test_a_spread_is_seen_where_numbers_have_one():
    x, y = drawn()
    far = prepared((x + 1e13, y))
    assert far.train.steps[:, :-1].std(0).min() > 0.5
    with pytest.raises(
        WenetError, match="feature 1 has values too small for a standard deviation; multiply them first"
    ):
        prepared((x * 1e-200, y))
    with pytest.raises(WenetError, match="no window of 8 .* in the training part"):
        prepared(np.sin(np.arange(100.0)), "forecast", window=8, horizon=1, split=(0.01, 0.01, 0.98))


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (("007", "7", "007"), ["007", "7", "007"]),
        (("1_0", "10", "1_0"), ["1_0", "10", "1_0"]),
        (("none", "some", "NA"), ["none", "some", "NA"]),
        (("1.0", "2", "+1"), [1, 2, 1]),
        (("0.5", "-0.25", "0"), [0.5, -0.25, 0]),
    ],
)
def test_labels_of_a_table(labels, wanted, tmp_path):
    """Codes and words are text; a number has no underscores, and but for 0 does not begin with one."""
    rows = [f"{number}.5,2,{label}" for number, label in enumerate(labels)]
    for named in (["a,b,kind", *rows], ["who,a,kind", *(f"{row}" for row in rows)]):
        path = write(tmp_path / "t.csv", "\n".join(named) + "\n")
        reading = Reading(True, named[0].startswith("who"), sequence="who" if named[0].startswith("who") else None)
        assert read_series(path, reading).targets.tolist() == wanted


@pytest.mark.parametrize("rows", ["2024-01-03,3\n2024-01-02,4\n", "2024-01-02 09:00,3\n2024-01-02 08:00,4\n"])
def test_rows_that_go_back_in_time_are_refused(rows, tmp_path):
    path = write(tmp_path / "newest.csv", "date,close\n" + rows)
    with pytest.raises(WenetError, match="line 3: column 'date' goes back in time; sort rows, oldest first"):
        read_series(path, Reading(targeted=False))
    turns = write(tmp_path / "turns.csv", "date,id,close\n2024-01-02,a,1\n2024-01-01,b,2\n2024-01-03,a,3\n")
    assert read_series(turns, Reading(targeted=False, sequence="id")).lengths.tolist() == [2, 1]
    other = write(tmp_path / "other.csv", "date,close\n31.12.2023,3\n1.1.2024,4\n")
    assert read_series(other, Reading(targeted=False)).values.tolist() == [[3], [4]]


def test_the_header_of_a_ts_file_says_whether_there_are_labels(tmp_path):
    path = write(tmp_path / "plain.ts", "@classLabel false\n@data\n1,2:3,4\n5,6:7,8\n")
    with pytest.raises(WenetError, match="has neither labels nor targets, as its header says"):
        read_series(path, Reading(targeted=True))
    assert read_series(path, Reading(targeted=False)).values.shape == (4, 2)
    labelled = write(tmp_path / "labelled.ts", "@classLabel true a b\n@data\n1,2:a\n5,6:b\n")
    assert read_series(labelled, Reading(targeted=True)).targets.tolist() == ["a", "b"]
    assert read_series(labelled, Reading(targeted=False)).values.tolist() == [[1], [2], [5], [6]]


def test_an_archive_has_all_or_parts(tmp_path):
    np.savez(tmp_path / "both.npz", x=np.zeros((2, 3, 1)), y=[0, 1], x_train=np.zeros((2, 3, 1)), y_train=[0, 1])
    with pytest.raises(WenetError, match="has both x and x_train"):
        read_series(tmp_path / "both.npz", Reading(targeted=True))


def test_data_sets_of_sequences_alone():
    x = drawn()[0]
    wanted = series_of(x, False).fingerprint()
    for form in (Numbered(*x), torch.utils.data.TensorDataset(torch.from_numpy(x))):
        assert series_of(form, False).fingerprint() == wanted
    assert series_of(Numbered([1.0, 2.0], [3.0, 4.0, 5.0]), False).lengths.tolist() == [2, 3]


class Endless:
    """Sequences by number, with a length but no IndexError behind it, and not of a class of PyTorch."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return 40

    def __getitem__(self, number):
        return self.items[number % 40]


def test_data_sets_end_at_their_length():
    x, y = drawn()
    assert series_of(Endless(x), False).fingerprint() == series_of(list(x), False).fingerprint()
    wanted = series_of((list(x), y), True).fingerprint()
    for inputs, targets in ((Endless(x), y), (Endless(x), Numbered(*y)), (Numbered(*x), y)):
        assert series_of((inputs, targets), True).fingerprint() == wanted
    assert series_of([Endless(x[:, 0]), Endless(x[:, 0])], False).lengths.tolist() == [40, 40]
    with pytest.raises(WenetError, match="a forecast takes sequences alone"):
        series_of((Endless(x), y), False)


@pytest.mark.parametrize("values", [np.arange(5.0), [0.0, 1.0, 2.0, 3.0, 4.0], np.arange(10.0).reshape(2, 5)])
def test_a_single_series_with_features_before_steps(values):
    turned = np.asarray(values).reshape(-1, 5).T
    assert series_of(values, False, "nft").values.tolist() == turned.tolist()
    assert series_of(values, False, "nft").lengths.tolist() == [5]


@pytest.mark.parametrize(
    ("given", "targeted", "message"),
    [
        (Stream(), True, "must have a length and give its sequences by number; put them in a list"),
        (torch.utils.data.DataLoader(Stream()), True, "must have a length and give its sequences by number"),
        (Numbered({"x": 1}), True, r"must give pairs \(x, y\)"),
        (Numbered(np.zeros(3), np.zeros(3)), True, r"must give pairs \(x, y\)"),
        (Numbered((np.zeros(3), 1)), False, "a data set of sequences alone"),
    ],
)
def test_data_sets_that_cannot_be_read(given, targeted, message):
    with pytest.raises(WenetError, match=message):
        series_of(given, targeted)


def test_given_parts_stay_as_they_are():
    x, y = drawn(50)
    data = prepared({"train": (x[:30], y[:30]), "test": (x[30:], y[30:])})
    assert sorted(data.test.starts.tolist()) == [6 * number for number in range(30, 50)]
    assert len(data.train) + len(data.valid) == 30 and len(data.valid) > 3


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_has_a_row_for_each_sequence(tmp_path):
    reading = Reading(targeted=True)
    named = write(tmp_path / "named.csv", "a,b,c,kind\n1,2,3,up\n4,5,,down\n")
    series = read_series(named, reading)
    assert series.lengths.tolist() == [3, 2] and series.targets.tolist() == ["up", "down"]
    bare = write(tmp_path / "Some_TRAIN.tsv", "1\t0.5\t0.25\n2\t0.5\t0.75\n")
    write(tmp_path / "Some_TEST.tsv", "2\t1\t2\n1\t3\t4\n")
    series = read_series(bare, reading)
    assert series.targets.tolist() == [1, 2, 2, 1] and series.parts.tolist() == [0, 0, 2, 2]
    assert series.values.ravel().tolist() == [0.5, 0.25, 0.5, 0.75, 1, 2, 3, 4]
    series = read_series(write(tmp_path / "numbers.csv", "a,b,c\n1,2,3\n4,5,6\n"), Reading(True, target="b"))
    assert series.targets.tolist() == [2, 5] and series.values.ravel().tolist() == [1, 3, 4, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,x\n2,3\n", "column 'b': 'x' is no number; if this column tells sequences apart, name it with --seq"),
        ("who,a\nann,1\nann,2\nbob,3\n", "texts in column 'who' repeat; if they tell sequences apart, name it with"),
    ],
)
def test_a_column_that_may_tell_sequences_apart(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(WenetError) as raised:
        read_series(path, Reading(False))
    assert message in str(raised.value)


def test_a_long_table_is_one_sequence(tmp_path):
    table = write(tmp_path / "long.csv", "date,load,heat\n2020-01-01,1,2\n2020-01-02,3,4\n2020-01-03,5,6\n")
    series = read_series(table, Reading(targeted=False))
    assert series.columns == ("load", "heat") and series.values.tolist() == [[1, 2], [3, 4], [5, 6]]


LABELLED = """\
who,time,speed,turn,doing
b,08:00,1,2,rest
a,08:00,3,4,walk
b,08:01,5,6,walk
a,08:01,7,,walk
a,08:02,9,10,rest
"""


def test_a_table_with_a_row_for_each_step_has_targets_and_sequences(tmp_path):
    table = write(tmp_path / "labels.csv", LABELLED)
    series = read_series(table, Reading(True, every_step=True, sequence="who"))
    assert series.lengths.tolist() == [2, 3] and series.columns == ("speed", "turn")
    assert series.values[:, 0].tolist() == [1, 5, 3, 7, 9] and np.isnan(series.values[3, 1])
    assert series.targets.tolist() == ["rest", "walk", "walk", "walk", "rest"]
    numbers = write(tmp_path / "numbers.csv", "who,a,b,c\n1,1,2.5,3\n1,4,5,6\n2,7,8,9\n")
    whole = read_series(numbers, Reading(True, every_step=True, sequence="who"))
    assert whole.targets.tolist() == [3, 6, 9] and whole.targets.dtype == np.int64 and whole.columns == ("a", "b")
    series = read_series(numbers, Reading(True, every_step=True, target="a, b", sequence="who"))
    assert series.targets.tolist() == [[1, 2.5], [4, 5], [7, 8]] and series.values.tolist() == [[3], [6], [9]]
    of_forecast = read_series(numbers, Reading(False, sequence="who"))
    assert of_forecast.lengths.tolist() == [2, 1] and of_forecast.columns == ("a", "b", "c")


@pytest.mark.parametrize(
    ("settings", "text", "message"),
    [
        ({}, LABELLED, "needs several sequences; name the column that tells them apart with --sequence"),
        ({"sequence": "whom"}, LABELLED, "has no column 'whom'; --sequence must be among who, time, speed"),
        ({"sequence": "who", "target": "does"}, LABELLED, "has no column 'does'; --target must be among who"),
        ({"sequence": "who", "target": "who"}, LABELLED, "column 'who' cannot be both --sequence and --target"),
        ({"sequence": "k"}, "a,b,c,d,e,f,g,h,i\n1\n2\n", "--sequence must be among a, b, c, d, e, f, g, ... i"),
        ({"sequence": "who"}, "who,a,b\n1,2,up\n1,2,\n", "line 3: column 'b' is empty; each step needs its target"),
        (
            {"sequence": "who"},
            "who,a,b\n1,2,up\n,2,up\n",
            "line 3: column 'who' is empty; each step needs its sequence",
        ),
        ({"sequence": "who"}, "who,a,b\n1,x,up\n1,2,up\n", "line 2, column 'a': 'x' is no number"),
        ({"sequence": "who"}, "who,b,who,y\n1,2,1,up\n1,3,1,up\n", "several columns have that name; rename one"),
        ({"sequence": "who", "target": "b,b"}, "who,a,b\n1,2,up\n1,2,up\n", "--target b,b names a column twice"),
        ({"sequence": "who"}, "who,b\n1,up\n1,down\n", "has no column of a feature beside"),
    ],
)
def test_tables_of_steps_that_do_not_fit_are_refused(tmp_path, settings, text, message):
    with pytest.raises(WenetError) as raised:
        read_series(write(tmp_path / "t.csv", text), Reading(True, every_step=True, **settings))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_ts_file(tmp_path):
    text = "# a comment\n@problemName Two\n@timeStamps false\n@classLabel true a b\n@data\n1,2,3:4,5,6:a\n7,8:9,?:b\n"
    series = read_series(write(tmp_path / "two.ts", text), Reading(targeted=True))
    assert series.lengths.tolist() == [3, 2] and series.targets.tolist() == ["a", "b"]
    assert series.values[:3].tolist() == [[1, 4], [2, 5], [3, 6]] and np.isnan(series.values[4, 1])


def test_targets_too_large_for_whole_numbers_stay_as_they_are(tmp_path):
    text = "a,target\n1,1e20\n2,2e20\n3,{}\n"
    found = read_series(write(tmp_path / "large.csv", text.format(5)), Reading(targeted=True))
    assert found.targets.tolist() == [1e20, 2e20, 5]
    with pytest.raises(WenetError, match="target 3 is missing or not finite"):
        read_series(write(tmp_path / "endless.csv", text.format("inf")), Reading(targeted=True))


def test_arrays_in_files(tmp_path):
    x, y = drawn(20)
    np.savez(tmp_path / "both.npz", x=x, y=y)
    assert read_series(tmp_path / "both.npz", Reading(True)).fingerprint() == series_of((x, y), True).fingerprint()
    np.savez(tmp_path / "parts.npz", x_train=x[:12], y_train=y[:12], x_test=x[12:], y_test=y[12:])
    assert read_series(tmp_path / "parts.npz", Reading(True)).parts.tolist() == [0] * 12 + [2] * 8
    np.save(tmp_path / "one.npy", x[0])
    assert read_series(tmp_path / "one.npy", Reading(False)).values.tolist() == x[0].tolist()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("text.csv", "a,b,kind\n1,two,up\n3,4,down\n", "line 2, column 'b': 'two' is no number"),
        ("semicolons.csv", "a;b;kind\n1;2;up\n3;4;down\n", "is divided by ';'; write it with ',' between columns"),
        ("europe.csv", "a;b;kind\n1,5;2,5;up\n3;4;down\n", "is divided by ';'; write it with ','"),
        ("tabs.csv", "a\tb\tkind\n1\t2\tup\n3\t4\tdown\n", "is divided by tabs; write it with ','"),
        ("commas.tsv", "a,b,kind\n1,2,up\n3,4,down\n", "is divided by ','; write it with tabs"),
        ("gaps.csv", "a,b,kind\n\n1,2,up\n\n3,four,down\n", "line 5, column 'b': 'four' is no number"),
        ("open.csv", 'a,b\n"' + "1,2\n" * 40_000, "is no table: field larger than field limit"),
        ("empty.csv", "a,b,kind\n", "has 1 row; a table of sequences has more"),
        ("label.csv", "a,b,kind\n1,2,\n3,4,down\n", "line 2: column 'kind' is empty"),
        ("numbers.csv", '""\n0\n1\n2\n', "has no columns but the numbers of its rows"),
        ("wide.csv", "a,b,kind\n1,2,3,4\n3,4,5\n", "line 2: 4 columns, where the first line has 3"),
        ("uneven.ts", "@data\n1,2:3:a\n", "line 2: features of different length"),
        ("none.ts", "@problemName None\n", "has no sequences after @data"),
        ("broken.npz", "this is no archive", "cannot be read"),
        ("one.xlsx", "", "name a file that ends in .npy, .npz, .csv, .tsv, .ts"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, name, text, message):
    with pytest.raises(WenetError) as raised:
        read_series(write(tmp_path / name, text), Reading(targeted=True))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_and_objects_are_refused(tmp_path):
    with pytest.raises(WenetError, match="no file .*none.npz; name one that is there"):
        read_series(tmp_path / "none.npz", Reading(True))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(WenetError, match="holds pickled objects"):
        read_series(tmp_path / "objects.npz", Reading(True))


def test_features_that_drift_are_relative_to_the_first_step():
    """A trend leaves the range of training, a wave does not; targets and spread follow the window."""
    t = np.arange(200.0)
    data = prepared(np.stack([np.sin(t), 1000 + 3 * t], 1), "forecast", window=5, horizon=2)
    assert data.scaling.relative == (1,)
    inputs, targets = Batches(data, data.test, 8).batch(0)  # [5, 8, 3] and [8, 4]
    scale = float(data.scaling.scale[1])
    assert scale == pytest.approx(3 * np.arange(7).std(), rel=1e-9)
    assert torch.allclose(inputs[:, :, 1], (3 * torch.arange(5.0) / scale).unsqueeze(1).expand(-1, 8), atol=1e-3)
    assert torch.allclose(targets[:, [1, 3]], torch.tensor([15.0, 18.0]).expand(8, -1) / scale, atol=1e-3)
    plain = (data.test.steps[data.test.starts[:8]])[:, 0]
    assert torch.equal(inputs[0, :, 0], plain) and plain.std() > 0.1
    assert (inputs[:, :, 2] == 1).all()


def test_what_stays_in_its_range_is_absolute():
    data = prepared(np.sin(np.arange(200.0)), "forecast", window=5, horizon=2)
    assert data.scaling.relative == ()
