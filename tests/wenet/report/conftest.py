import pytest

from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main

from ..helpers import TINY


@pytest.fixture(scope="session")
def searched(text, tmp_path_factory):
    """A finished search of three rounds."""
    run = tmp_path_factory.mktemp("runs") / "search"
    assert search_main([str(text), *TINY, "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def trained(text, tmp_path_factory):
    """A finished training of three epochs."""
    run = tmp_path_factory.mktemp("runs") / "train"
    flags = ["--preset", "quick", "--cell", "tanh0 relu1", "--hidden", "6", "--epochs", "3", "--data-batch", "4"]
    assert train_main([str(text), *flags, "--backend", "reference", "--out", str(run)]) == 0
    return run
