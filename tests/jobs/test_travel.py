"""What jobs are sent with: files as bytes, the order of the jobs, and what a user says of where they run."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from glider.cli.main import main
from glider.errors import ConfigError, ExpertError, MissingDependency
from glider.jobs.local import LocalExecutor
from glider.jobs.parcel import Parcel, Source, state_of
from glider.jobs.placement import Placement
from glider.jobs.ray_cluster import Need
from glider.jobs.ray_node import Shipment, place_of
from glider.jobs.travel import longest_first


def test_a_file_and_a_directory_come_out_as_they_went_in(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.bin").write_bytes(bytes(range(256)))
    (tmp_path / "a" / "d.txt").write_text("d")
    (tmp_path / "a" / ".x.0123abcd.partial").mkdir()
    (tmp_path / "a" / ".x.0123abcd.partial" / "half").write_text("half")
    (tmp_path / "a" / "link").symlink_to("/etc/hostname")
    whole = Parcel.of(tmp_path / "a")
    assert [name for name, _ in whole.files] == ["d.txt", "b/c.bin"] and whole.size == 257
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "older").write_text("goes")
    assert whole.unpack(tmp_path / "there") == tmp_path / "there"
    assert Parcel.of(tmp_path / "there") == whole
    one = Source(tmp_path / "a" / "d.txt").pack().unpack(tmp_path / "one")
    assert one == tmp_path / "one" / "d.txt" and one.read_text() == "d"
    some = Source(tmp_path / "a", ("b/c.bin", "absent")).pack()
    assert [name for name, _ in some.files] == ["b/c.bin"]
    assert Parcel.of(tmp_path / "nowhere") == Parcel()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ""])
def test_a_parcel_leads_nowhere_else(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="paths inside a directory"):
        Parcel(((name, b"x"),)).unpack(tmp_path / "place")
    assert list(tmp_path.iterdir()) == []


def test_a_link_out_of_an_adapter_is_not_sent(tmp_path: Path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "lora" / "adapter_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ExpertError, match="a link out of the directory"):
        Source(tmp_path / "lora", ("adapter_config.json",)).pack()


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        Source(tmp_path / "rows.jsonl").pack()


def test_a_state_is_known_by_its_files(tmp_path: Path):
    (tmp_path / "state").write_text("1")
    before = state_of(tmp_path)
    assert state_of(tmp_path) == before
    os.utime(tmp_path / "state", ns=(1, 1))
    assert state_of(tmp_path) != before


def test_another_file_at_a_shared_path_is_refused(tmp_path: Path):
    rows = Source(tmp_path / "rows.jsonl")
    rows.path.write_text("as it was")
    shipment = Shipment(rows, rows.path, rows.pack().digest)
    assert place_of(shipment) == rows.path
    rows.path.write_text("as it is on another machine")
    with pytest.raises(ConfigError, match="--files store"):
        place_of(shipment)


@dataclass
class Sized:
    name: str
    effort: float


def test_long_jobs_go_first_and_equal_ones_keep_their_order():
    jobs = [Sized("a", 1), Sized("b", 3), Sized("c", 1), Sized("d", 2)]
    assert [job.name for job in longest_first(jobs)] == ["b", "d", "a", "c"]


class Nodes:
    """A cluster of these nodes."""

    def __init__(self, *resources: dict[str, float]):
        self.resources = resources

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": each} for each in self.resources] + [{"Alive": False, "Resources": {}}]


def test_room_is_counted_node_by_node():
    nodes = Nodes({"CPU": 3.0, "GPU": 1.0}, {"CPU": 5.0}, {"memory": 9.0})
    assert Need(2, 0).room(nodes) == 3
    assert Need(1, 1).room(nodes) == 1
    assert Need(1, 0.5).room(nodes) == 2
    assert Need(0.1, 0).room(Nodes({"CPU": 0.3})) == 3
    with pytest.raises(ConfigError, match="the largest with 5 CPU and none with a GPU"):
        Need(1, 1).require(Nodes({"CPU": 5.0}))


def test_options_of_a_cluster_without_one_are_refused():
    assert Placement.parse().make() == LocalExecutor(1)
    assert Placement.parse(workers=2).make(keep=True) == LocalExecutor(2)
    with pytest.raises(ConfigError, match="Say --executor ray"):
        Placement.parse(gpus_per_job=1).make()
    for wrong in ({"workers": 0}, {"cpus_per_job": 0}, {"checkpoint_steps": 0}, {"executor": "dask"}):
        with pytest.raises(ConfigError):
            Placement.parse(**wrong)


def test_without_ray_its_pip_command_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install 'glider-moe\[ray\]'"):
        Placement.parse(executor="ray").make()


@pytest.mark.parametrize(("address", "told"), [("ray://nowhere:10001", "ray job submit"), ("127.0.0.1:1", "ray start")])
def test_an_address_without_a_cluster_is_refused_at_once(
    address: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    pytest.importorskip("ray", reason="needs the extra ray")
    (tmp_path / "rows.jsonl").write_text('{"input": "a", "output": "b"}')
    (tmp_path / "plan.yaml").write_text("experts: [{name: one, data: rows.jsonl}]")
    command = ["glider", "pool", "build", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "pool")]
    monkeypatch.setattr(sys, "argv", [*command, "--executor", "ray", "--address", address])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and told in capsys.readouterr().err
