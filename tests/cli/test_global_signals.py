"""Profiles, calibration and the choice of a global signal on the command line."""

import json
from pathlib import Path

import pytest

from glider.experts.pool import Pool


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    """Rows of the tasks e0, e1, e2."""
    for name in ("e0", "e1", "e2"):
        rows = [
            {"input": f"the {name} {name}{i} and", "output": "yes", "split": ("train", "val")[i % 2]} for i in range(60)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "{name}.jsonl")


def test_calibrate_stores_and_prints_the_constants(glider, pool_with_profiles) -> None:
    pool: Pool = pool_with_profiles()
    code, out, _ = glider("pool", "calibrate", pool.path, "--signal", "examples", "--json")
    index = pool.reload().index
    assert code == 0 and index.signal == "examples"
    assert index.verdicts is not None
    stored = index.calibrations["examples"].model_dump(mode="json")
    assert json.loads(out) == {**stored, "verdicts": index.verdicts.model_dump(mode="json")}
    code, out, _ = glider("pool", "calibrate", pool.path, "--signal", "hidden", "--no-default")
    assert code == 0 and "hidden, p = " in out and "of everyday requests" in out
    assert pool.reload().index.signal == "examples"


def test_calibrate_with_data_chooses_gamma_and_beta(glider, pool_with_profiles, llama_directory, tasks: str) -> None:
    pool: Pool = pool_with_profiles()
    options = ("--signal", "examples", "--data", tasks, "--base", llama_directory)
    code, out, err = glider("pool", "calibrate", pool.path, *options)
    assert code == 0, err
    stored = pool.reload().index.calibrations["examples"]
    assert "gamma and beta by the loss of 12 rows" in stored.source and f"beta = {stored.beta:g}" in out
    code, _, err = glider("pool", "calibrate", pool.path, "--data", "rows.jsonl", "--base", llama_directory)
    assert code == 2 and "{name}" in err


def test_an_expert_that_goes_and_comes_back_changes_the_calibration(glider, pool_with_profiles) -> None:
    pool: Pool = pool_with_profiles()
    glider("pool", "calibrate", pool.path)
    first = pool.reload().index.calibrations["examples"]
    assert glider("pool", "remove", pool.path, "e2")[0] == 0
    second, verdicts = pool.reload().index.calibrations["examples"], pool.reload().index.verdicts
    assert second.experts == ("e0", "e1") and second.queries == 48
    assert verdicts is not None and verdicts.names == ("e0", "e1") and verdicts.queries == 48
    assert glider("pool", "add", pool.path, "e2")[0] == 0
    assert pool.reload().index.calibrations["examples"] == first


def test_profile_makes_what_the_signals_need(glider, make_pool, llama_directory, tasks: str) -> None:
    pool: Pool = make_pool(llama_directory, embedder=None)
    code, _, err = glider("generate", "the e1", "--pool", pool.path, "--base", llama_directory, "--global", "examples")
    assert code == 2 and "glider expert profile" in err
    for name in pool.names:
        data = tasks.replace("{name}", name)
        options = ("--base", llama_directory, "--validation", 24)
        code, out, err = glider("expert", "profile", pool.path / name, data, *options)
        assert code == 0 and "inputs held back, without embeddings" in out, err
    assert glider("pool", "add", pool.path, *pool.names)[0] == 0
    for signal in ("examples", "hidden"):
        assert glider("pool", "calibrate", pool.path, "--signal", signal)[0] == 0
        options = ("--pool", pool.path, "--base", llama_directory, "--global", signal, "--max-new-tokens", 2, "--json")
        code, out, err = glider("generate", "the e1 e17 and", *options)
        assert code == 0, err
        scores = json.loads(out)["global_scores"]
        assert max(scores, key=scores.get) == "e1"


def test_a_signal_that_is_unknown_or_has_no_place_is_refused(glider, pool_with_profiles, llama_directory) -> None:
    common = ("generate", "hello", "--pool", pool_with_profiles().path, "--base", llama_directory)
    code, _, err = glider(*common, "--global", "smell")
    assert code == 2 and "ensemble, examples, hidden, instruction" in err
    code, _, err = glider(*common, "--router", "phatgoose", "--global", "examples")
    assert code == 2 and "global_" in err


def test_a_description_given_is_used(glider, pool_with_profiles, llama_directory) -> None:
    pool: Pool = pool_with_profiles()
    glider("pool", "calibrate", pool.path)
    common = (
        "generate",
        "the e1 e17 and",
        "--pool",
        pool.path,
        "--base",
        llama_directory,
        "--max-new-tokens",
        2,
        "--json",
    )
    plain, described = json.loads(glider(*common)[1]), json.loads(glider(*common, "--description", "Say yes.")[1])
    assert plain["description"] is None and described["description"] == "Say yes."
    assert (plain["verdict"], plain["global_scores"]) == ("fits", described["global_scores"])  # its words decide
    common = (common[0], "Can you write a short poem about the sea?", *common[2:])
    plain, described = json.loads(glider(*common)[1]), json.loads(glider(*common, "--description", "Say yes.")[1])
    assert plain["verdict"] == described["verdict"] == "stranger"
    assert plain["global_scores"] != described["global_scores"]
    written = ("--router", "glider(global=examples)")
    chosen = json.loads(glider(*common, *written, "--description", "Say yes.")[1])
    assert chosen["global_scores"] == json.loads(glider(*common, *written)[1])["global_scores"]
    assert chosen["global_scores"] != described["global_scores"]


def test_examples_of_a_file_are_read_or_said_to_be_unused(
    glider, pool_with_profiles, llama_directory, tmp_path: Path
) -> None:
    pool: Pool = pool_with_profiles()
    glider("pool", "calibrate", pool.path)
    file = tmp_path / "examples.jsonl"
    file.write_text("\n".join(json.dumps({"input": f"the e2 e2{i} and", "output": "yes"}) for i in range(3)))
    common = ("the e1 e17 and", "--pool", pool.path, "--base", llama_directory)
    short = ("--max-new-tokens", 2)
    plain = json.loads(glider("generate", *common, *short, "--json")[1])
    told = json.loads(glider("generate", *common, *short, "--json", "--examples", file)[1])
    assert told["fault"] is None and told["global_scores"]["e2"] > plain["global_scores"]["e2"]
    shown = json.loads(glider("explain", *common, "--json", "--examples", file)[1])
    assert shown["global_scores"] == {name: round(score, 4) for name, score in told["global_scores"].items()}
    for command, options in (("generate", short), ("generate", (*short, "--stream")), ("explain", ())):
        for router, reason in (
            ("phatgoose", "no global term"),
            ("glider(global=instruction,p=0.5)", "a describer would"),
        ):
            arguments = (command, *common, *options, "--router", router, "--examples", file)
            code, out, err = glider(*arguments)
            assert code == 0 and f"the examples are not used: {reason}" in err.replace("the router has ", ""), err
            assert out and "not used" not in out
    unread = json.loads(glider("explain", *common, "--router", "phatgoose", "--json", "--examples", file)[1])
    assert "the examples are not used" in unread["fault"]
    code, _, err = glider("generate", *common, "--examples", tmp_path / "gone.jsonl")
    assert code == 2 and "gone.jsonl" in err
    file.write_text('{"input": "no answer"}')
    code, _, err = glider("generate", *common, "--examples", file)
    assert code == 2 and "examples.jsonl:1" in err
