"""Refusals and failures of the hub are explained, and leave nothing behind."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from glider.errors import ExpertError, PoolError
from glider.experts.pool import Pool
from glider.sharing.hub import pull_expert, pull_pool, push_expert, push_pool

from .repositories import REPO, refused

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's, of its HTTP library


@pytest.mark.parametrize(
    ("status", "headers", "got"),
    [
        (404, {"X_Error_Code": "RepoNotFound"}, "no such repository"),
        (404, {"X_Error_Code": "RevisionNotFound"}, "no such revision"),
        (401, {}, "no permission (401)"),
        (403, {"X_Error_Code": "GatedRepo"}, "a gated repository"),
        (403, {}, "no permission (403)"),
        (418, {}, "HTTP status 418"),
        (500, {}, "HTTP status 500: by order of the test"),
    ],
)
def test_refusals_of_the_hub_are_explained(hub, target: Path, status: int, headers: dict, got: str) -> None:
    hub.failures[f"/api/models/{REPO}"] = (status, headers)
    refused(lambda: pull_expert(REPO, target), target, f"wanted to pull {REPO}", got)
    refused(lambda: pull_pool(REPO, target), target, f"wanted to pull {REPO}", got, error=PoolError)


@pytest.mark.parametrize(("at", "status"), [("/tree/", 403), ("/resolve/", 403)])
def test_refusals_half_way_leave_nothing_behind(hub, pool: Pool, target: Path, at: str, status: int) -> None:
    push_expert(pool["e0"], REPO)
    hub.failures[at] = (status, {})
    refused(lambda: pull_expert(REPO, target), target, f"wanted to pull {REPO}", str(status))


def test_an_answer_of_another_form_is_told(hub, pool: Pool, target: Path) -> None:
    push_expert(pool["e0"], REPO)
    hub.sizes["card.json"] = "8 kB"
    refused(lambda: pull_expert(REPO, target), target, f"wanted to pull {REPO}", "another form")


def test_push_without_login_says_how_to_log_in(hub, pool: Pool) -> None:
    with pytest.raises(ExpertError, match=r"wanted to push to someone/thing.*401.*hf auth login"):
        push_expert(pool["e0"], REPO, token="hf_wrong")
    with pytest.raises(PoolError, match=r"wanted to push to someone/thing.*401.*hf auth login"):
        push_pool(pool, REPO, token="hf_wrong")
    assert hub.repositories == {}


@pytest.mark.parametrize(("at", "status"), [("/commit/", 403), ("/lfs-object/", 403), ("/preupload/", 404)])
def test_failing_push_is_explained(hub, pool: Pool, at: str, status: int) -> None:
    hub.failures[at] = (status, {})
    with pytest.raises(ExpertError, match=f"wanted to push to {REPO}.*{status}"):
        push_expert(pool["e0"], REPO)


def test_no_network_and_no_name(hub, pool: Pool, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: pull_expert("not a name", target), target, "not a name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(lambda: pull_expert(REPO, target), target, "no answer", "HF_ENDPOINT")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(lambda: pull_expert(REPO, target), target, "offline mode", "HF_HUB_OFFLINE")
