"""Tables and figures of the GLIDER paper (arXiv 2410.07172) at full size: a plan, a tiny rehearsal, or the run itself.

    python reproduce/paper/run.py table1/glider --dry-run --throughput 20000
    python reproduce/paper/run.py all --tiny
    python reproduce/paper/run.py table1/glider --set bbh --device cuda --work out/paper
    python reproduce/paper/run.py train/t0-t5xl --device cuda --work out/paper

Configs are the YAML files in table1/, table2/, table3/, figures/ and train/ (section 5.1); `all` takes every one. The
last two forms need a GPU and the hub, go on after an interruption, and were never run in full: docs/reproducing.md.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import fullrun
from fullrun.devices import devices_of, require_device, run_on
from fullrun.dry_run import plan_json, print_plan
from fullrun.estimate import Assumptions
from fullrun.plan import Plan, config_names, read_plan
from glider.cli.terminal import exit_code
from glider.errors import ConfigError
from glider.jobs.placement import Placement

WORK = Path("out/paper")


def main() -> int:
    arguments = parser().parse_args()
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    plan = read_plan(arguments.configs)
    plan = plan.chosen(method=arguments.method, pool=arguments.pool, set_name=arguments.set)
    if arguments.devices is not None:
        return _on_devices(arguments, plan)
    if arguments.dry_run:
        numbers = {"throughput": arguments.throughput, "activations_gb": arguments.activations_gb}
        assumed = Assumptions.parse(dtype=arguments.dtype, **numbers)
        if arguments.json:
            print(json.dumps(plan_json(plan, assumed), indent=2))
        else:
            print_plan(plan, assumed)
        return 0
    from fullrun.tiny import made_up, made_up_prompts, tiny_plan
    from fullrun.tiny_training import made_up_flan
    from fullrun.workspace import Workspace
    from glider.cli.terminal import quiet_libraries
    from glider.evaluation.budgets import tokens_of

    quiet_libraries()
    batch_tokens = tokens_of(arguments.batch_tokens)
    require_device(arguments.device, here=arguments.executor == "local")
    names = ("executor", "workers", "address", "files", "cpus_per_job", "gpus_per_job")
    placement = Placement.parse(**{name: getattr(arguments, name) for name in names})
    executor = placement.make(keep=True)
    with tempfile.TemporaryDirectory() as scratch, placement.session([Path(fullrun.__path__[0])]):
        root = place_of(arguments, Path(scratch))
        downloads = (arguments.downloads or root / "downloads").absolute()
        say = (lambda line: None) if arguments.json else (lambda line: print(line, file=sys.stderr, flush=True))
        where = {"dtype": arguments.dtype, "device": arguments.device, "say": say, "executor": executor}
        where |= {"batch_tokens": batch_tokens}
        if arguments.tiny:
            plan = tiny_plan(plan, downloads)
            told = Workspace(root, downloads, made_up, made_up_prompts, made_up_flan, **where).run(plan)
        else:
            told = Workspace(root, downloads, **where).run(plan)
    return _tell(told, arguments)


def _on_devices(arguments: argparse.Namespace, plan: Plan) -> int:
    """The same command as plain processes, one a device, over one place of work."""
    if arguments.dry_run or arguments.executor != "local" or arguments.workers is not None:
        wanted, got = "--devices by itself", "it beside --dry-run, --executor or --workers"
        raise ConfigError(wanted, got, "Leave one of them out.")
    from glider.evaluation.budgets import tokens_of

    tokens_of(arguments.batch_tokens)  # refused here once, and not by every process
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or (Path(scratch) if arguments.tiny else WORK)
        command = [sys.executable, *(f"-W{option}" for option in sys.warnoptions), str(Path(__file__).absolute())]
        command += ["--work", str(work.absolute()), "--dtype", arguments.dtype]
        command += ["--batch-tokens", arguments.batch_tokens]
        command += ["--tiny"] if arguments.tiny else []
        command += ["--downloads", str(arguments.downloads.absolute())] if arguments.downloads else []
        command += ["--set", arguments.set] if arguments.set else []
        say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        told = run_on(devices_of(arguments.devices), plan, command, say)
    return _tell(told, arguments)


def _tell(told: list[dict], arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps(told, indent=2))
    else:
        _print(told, arguments.tiny)
    return 1 if any(cell["missing"] for cell in told) else 0


def place_of(arguments: argparse.Namespace, scratch: Path) -> Path:
    """Where a run keeps everything: a rehearsal alone may lose it, and has a place of its own."""
    if not arguments.tiny:
        return (arguments.work or WORK).absolute()
    if arguments.downloads is not None:
        raise ConfigError("a rehearsal's own downloads", f"--downloads {arguments.downloads}", "Leave it out: --tiny.")
    return (arguments.work / "tiny" if arguments.work else scratch).absolute()


def _print(told: list[dict], tiny: bool) -> None:
    if tiny:
        print("Random weights, made-up rows: the scores mean nothing.")
    for cell in told:
        if "experts" in cell:
            trained = f"{len(cell['losses'])} experts in {cell['experts']}"
            lacking = f", without {', '.join(cell['missing'])}" if cell["missing"] else ""
            print(f"{cell['config']}: {trained}{lacking}")
            continue
        if "figure" in cell:
            print(f"{cell['config']} {cell['method']} {cell['pool']}/{cell['set']}: {cell['figure']}")
            continue
        score = f"{len(cell['missing'])} tasks missing" if cell["score"] is None else f"{cell['score']:.2f}"
        published = "" if cell["published"] is None else f" (published {cell['published']:.2f})"
        print(f"{cell['config']} {cell['method']} {cell['pool']}/{cell['set']}: {score}{published}")


def parser() -> argparse.ArgumentParser:
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("configs", nargs="+", metavar="CONFIG", help=f"all, or of {', '.join(config_names())}")
    known.add_argument("--method", help="this row of the config alone")
    known.add_argument("--pool", help="this pool alone")
    known.add_argument("--set", help="this set of tasks alone")
    what = known.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the plan with estimates, run nothing")
    what.add_argument("--tiny", action="store_true", help="run everything on random weights and made-up rows")
    known.add_argument(
        "--work", type=Path, help=f"where pools, rows and results are kept (default: {WORK}; --tiny: in it, or nowhere)"
    )
    known.add_argument("--downloads", type=Path, help="where the published checkpoints lie (default: in --work)")
    known.add_argument("--device", default="cpu", help="such as cuda")
    known.add_argument("--devices", help="several, a process on each: 0-7, or 0,2 (numbers of CUDA devices)")
    known.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    known.add_argument("--batch-tokens", default="768", help="that run together; auto: what pays on the device")
    known.add_argument("--throughput", type=float, help="tokens a second of your machine, for hours in the plan")
    known.add_argument("--activations-gb", type=float, default=4.0, help="memory beside the weights, for the plan")
    known.add_argument("--json", action="store_true")
    where = known.add_argument_group("where cells are evaluated (docs/cluster.md)")
    where.add_argument("--executor", default="local", choices=("local", "ray"))
    where.add_argument("--workers", type=int, help="cells at a time")
    where.add_argument("--address", help="of the Ray cluster")
    where.add_argument("--cpus-per-job", type=float)
    where.add_argument("--gpus-per-job", type=float)
    where.add_argument("--files", choices=("store", "path"), help="how pools and rows come to the nodes")
    return known


if __name__ == "__main__":
    sys.exit(main())
