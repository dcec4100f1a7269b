"""Where the bias of a decoder starts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from wenet import WenetError
from wenet.cells import load_genotype
from wenet.nn import DagRNN, LanguageModel
from wenet.searching.settings import resolve_config
from wenet.tasks import task_of
from wenet.training import build_standalone
from wenet.training.nt_asgd import build_model
from wenet.training.settings import resolve_train_config

from .helpers import write_text


@pytest.mark.parametrize("level", ["words", "characters"])
def test_a_training_starts_from_frequencies(tmp_path, level):
    """With embeddings near zero the loss of the first window is the cross-entropy of the frequencies, in one model and
    in each of many; the paper's starts from the logarithm of the vocabulary's size."""
    text = {"dataset": str(write_text(tmp_path / "text")), "level": level}
    text |= {"hidden": 8, "init_range": 1e-4, "backend": "reference", "precision": "fp32"}
    config, of_search = resolve_train_config("quick", text), resolve_config("quick", text)
    task = task_of(config)
    data = task.load(config, None)
    inputs, targets = task.window(task.streams(data, "train", 4), 0, 400)
    counts = torch.bincount(data.train, minlength=len(data.vocabulary)) + 1
    expected = -(counts / counts.sum()).log()[targets].mean()
    cells = [load_genotype("tanh0 relu1"), load_genotype("relu0 tanh0")]
    model = build_model(config, cells[0], task, data).eval()
    many = build_standalone(of_search, cells, task, data).eval()
    for found in (model.loss(inputs, targets)[1], *many.loss(inputs, targets)[1]):
        assert float(found) == pytest.approx(float(expected), rel=0.01)
    at_zero = build_model(replace(config, decoder_bias="zero"), cells[0], task, data).eval()
    assert float(at_zero.loss(inputs, targets)[1]) == pytest.approx(math.log(len(data.vocabulary)), rel=0.01)
    assert level == "words" or math.log(len(data.vocabulary)) > 1.05 * expected  # the words are about as frequent
    assert resolve_train_config("paper").decoder_bias == resolve_config("paper").decoder_bias == "zero"


def test_a_bias_of_another_size():
    with pytest.raises(WenetError, match=r"decoder_bias must be \[5\], not \[4\]"):
        LanguageModel(5, DagRNN(3, 3, "tanh0"), decoder_bias=torch.zeros(4))
