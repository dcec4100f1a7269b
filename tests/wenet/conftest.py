import signal

import pytest

from wenet.training.standalone import StandaloneTraining

from .helpers import write_text


@pytest.fixture(autouse=True)
def without_reports(request, monkeypatch):
    """Runs leave out their report, which takes longer than a tiny search; what is tested in `report` is about them."""
    if "report" not in request.path.parent.name:
        monkeypatch.setattr("wenet.report.write.write_report", lambda folder: None)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder of text that tests only read."""
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def stop_at(monkeypatch):
    """Sends a signal in the given step of standalone training, counted over all trainings."""
    real = StandaloneTraining.step

    def prepare(number):
        steps = []

        def step(self, *operands):
            steps.append(1)
            if len(steps) == number:
                self.session.interrupt.requested = signal.SIGTERM
            return real(self, *operands)

        monkeypatch.setattr(StandaloneTraining, "step", step)

    return prepare
