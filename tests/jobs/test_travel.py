"""What jobs are sent with: files as bytes, the order of the jobs, and what a user says of where they run."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from glider.cli.main import main
from glider.contribute.build import PoolPlan
from glider.errors import ConfigError, ExpertError, MissingDependency
from glider.jobs import ray_node
from glider.jobs.local import LocalExecutor, threads
from glider.jobs.parcel import Parcel, Source, state_of
from glider.jobs.placement import Placement
from glider.jobs.ray_cluster import Need
from glider.jobs.ray_executor import RayExecutor
from glider.jobs.ray_node import Checkpoint, Order, Progress, Shipment, place_of
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


def test_a_file_of_holes_is_not_sent(tmp_path: Path):
    """It was read whole, into as much memory as it says it has bytes."""
    (tmp_path / "state").touch()
    os.truncate(tmp_path / "state", 1 << 43)
    with pytest.raises(ConfigError, match="the rest holes"):
        Parcel.of(tmp_path)
    with pytest.raises(ConfigError, match="the rest holes"):
        Source(tmp_path / "state").pack()


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


def test_a_job_goes_away_and_comes_back_as_the_one_it_was(tmp_path: Path, llama_directory: Path, monkeypatch: Any):
    """Without Ray: what is sent, what a machine without the job's files makes of it, and what returns."""
    monkeypatch.setattr(ray_node, "_unpacked", {"": tmp_path / "desk"})
    (tmp_path / "desk").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"input": "say {i}", "output": "x"}}\n' for i in range(12)))
    settings = {"rank": 2, "steps": 6, "gate_steps": 2, "batch_size": 4, "validation": 0}
    plan = PoolPlan(base=str(llama_directory), defaults=settings, experts=({"name": "one", "data": "rows.jsonl"},))  # pyright: ignore
    (here,) = plan.jobs(tmp_path, tmp_path / "here")
    (job,) = plan.jobs(tmp_path, tmp_path / "pool")
    with threads(1):
        here.store(here.run())
    (rows,) = job.reads
    shipment = Shipment(rows, rows.path, rows.pack().digest)
    messages: SimpleQueue[Any] = SimpleQueue()
    ended = ray_node._result(Order(job.leaving(), (shipment,), None, threads=1, save_steps=2), messages)
    told = [messages.get() for _ in range(messages.qsize())]
    checkpoints = [message for message in told if isinstance(message, Checkpoint)]
    assert len(checkpoints) >= 2 and any(isinstance(message, Progress) for message in told)
    assert not job.out.parent.exists()  # nothing is written but by the one who sent it
    job.take(checkpoints[1].content)  # the machine died then: it goes on from there, here
    seen: list[str] = []
    job.run(lambda name, text, share: seen.append(text))
    assert seen[0].startswith("lora 3/6")
    assert ended.content is not None
    job.take(ended.content)
    job.store(job.arrived(ended.result))
    for file in ("adapter_config.json", "adapter_model.safetensors", "glider.safetensors"):
        assert (job.out / file).read_bytes() == (here.out / file).read_bytes()
    assert job.finished


def test_another_glider_on_a_node_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"glider 0\.0 on every node"):
        ray_node._result(Order(None, (), None, threads=1, save_steps=2, version="0.0"), SimpleQueue())


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"workers": 0}, {"cpus": 0}, {"gpus": -1}, {"save_steps": 0}, {"autoscaling": True, "keep": True}):
        with pytest.raises(ConfigError):
            RayExecutor(**wrong)
    executor = RayExecutor(gpus=1)
    with pytest.raises(ConfigError, match="jobs on the device cpu"):
        executor.require_device(["cpu"])
    with pytest.raises(ConfigError, match="--gpus-per-job 1"):
        RayExecutor().require_device(["cuda"])
    executor.require_device(["cuda:0"])
