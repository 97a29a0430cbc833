"""The published layouts, imported by the command and loaded by `glider.load`, give the numbers of the published code.

Nothing here knows how the files are laid out: what is tested is what a user has, the import and the public names.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

import glider
from glider.cli.import_official import import_official
from glider.contribute.published_format import read_embeddings
from glider.routing.base import QueryFeatures

CASES = [
    *("phatgoose_top1", "phatgoose_top2", "phatgoose_top3"),
    *("phatgoose_topp0.25", "phatgoose_topp0.5", "phatgoose_topp0.75"),
    *("glider_s3", "glider_s100", "glider_heldout_s3"),
]
TOLERANCE = 5e-5
SCORES = "scores."
EMBEDDINGS = "gpt-generated-instruction-nomic-embeddings/{}/checkpoints/nomic_instruction_embedding.pt"


@pytest.fixture(scope="module")
def base(layout: Path, t5_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden base as a directory that transformers loads; it comes without a tokenizer, any one will do."""
    directory = tmp_path_factory.mktemp("golden") / "base"
    model = T5ForConditionalGeneration(T5Config.from_pretrained(layout / "base_t5"))
    model.load_state_dict(torch.load(layout / "base_t5_state_dict.pt", weights_only=True))
    model.save_pretrained(directory)
    for file in t5_directory.glob("*token*"):
        shutil.copy(file, directory)
    return directory


@pytest.fixture(scope="module", params=["glider", "phatgoose"])
def pool(
    request: pytest.FixtureRequest, layout: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> glider.Pool:
    """The eight golden experts, imported from each layout in turn."""
    path = tmp_path_factory.mktemp(request.param) / "pool"
    checkpoint = layout / {"glider": "p3-lora-checkpoints", "phatgoose": "phatgoose/best.pt"}[request.param]
    order = json.loads((layout / "cases.json").read_text())["expert_order"]
    app = typer.Typer()
    app.command()(import_official)
    arguments = [checkpoint, "--base", base, "--pool", path, "--embeddings", layout / EMBEDDINGS.format("t0-v3")]
    if request.param == "phatgoose":
        arguments += ["--order", ",".join(order)]
    ran = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    imported = glider.Pool.open(path)
    assert imported.names == order
    return imported


@pytest.mark.parametrize("name", CASES)
def test_golden_case(layout: Path, base: Path, pool: glider.Pool, name: str) -> None:
    case = json.loads((layout / "cases.json").read_text())["cases"][name]
    wanted = load_file(layout / f"{name}.safetensors")
    inputs = load_file(layout / "inputs.safetensors")
    routed = glider.load(str(base), pool.path, router=_router(case))
    condition = None
    if case["query"] is not None:
        query = read_embeddings(layout / EMBEDDINGS.format("t0-v4"))[case["query"]]
        condition = routed.router.condition(routed.attached.prepared, QueryFeatures(len(query), query))
        assert condition is not None and condition.alpha.tolist() == [case["alpha"]]
        torch.testing.assert_close(condition.global_scores[0], wanted["global_scores"], atol=TOLERANCE, rtol=0)
    encoder = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    trace = glider.Trace(routed.experts, condition, encoder["attention_mask"].bool())
    with torch.inference_mode(), routed.attached.routing(condition, recorder=trace):
        logits = routed.model(**encoder, decoder_input_ids=inputs["decoder_input_ids"]).logits

    if "logits" in wanted:  # the subset has no decoder
        torch.testing.assert_close(logits, wanted["logits"], atol=TOLERANCE, rtol=0)
        with torch.inference_mode(), routed.attached.routing(condition):
            generated = routed.model.generate(**encoder, max_length=8, do_sample=False)
        assert torch.equal(generated, wanted["generated"])
    scored = {call.site: call.decision.scores for call in trace.calls}
    expected = {key.removeprefix(SCORES): value for key, value in wanted.items() if key.startswith(SCORES)}
    expected = {key.removeprefix("base_model.model."): value for key, value in expected.items()}
    assert expected.keys() == set(pool.sites)
    for site, scores in expected.items():
        got = scored[site]
        assert got is not None
        torch.testing.assert_close(got.view(scores.shape), scores, atol=TOLERANCE, rtol=0)


def _router(case: dict) -> "glider.Glider | glider.Phatgoose":
    """The published code sets alpha by hand: no cosine passes p = 2, so that alpha is beta."""
    select = glider.TopK(case["top_k"]) if case["top_k"] else glider.TopP(case["top_p"])
    if case["query"] is None:
        return glider.Phatgoose(select)
    return glider.Glider(select, p=2.0, beta=case["alpha"])
