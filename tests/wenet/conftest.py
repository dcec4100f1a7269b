import pytest


@pytest.fixture(autouse=True)
def without_reports(request, monkeypatch):
    """Runs leave out their report, which takes longer than a tiny search; what is tested in `report` is about them."""
    if "report" not in request.path.parent.name:
        monkeypatch.setattr("wenet.report.write.write_report", lambda folder: None)
