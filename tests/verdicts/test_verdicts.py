"""Verdicts: what each query gets, and that a stranger's rows are the base's bit for bit, whatever is beside them."""

from copy import copy
from pathlib import Path

import pytest
import torch

from glider.calibration.automatic import has_queries
from glider.calibration.verdict import choose_thresholds, renewed_thresholds
from glider.errors import GliderWarning, PoolError, QueryError, RouterError
from glider.experts.pool import Pool
from glider.experts.profile import Profile
from glider.inference.base_model import load_base
from glider.inference.queries import Query
from glider.inference.spec import ModelSpec, load
from glider.instructions.inputs import ngrams
from glider.routing.base import QueryFeatures
from glider.routing.methods.glider import Glider
from glider.routing.methods.phatgoose import Phatgoose
from glider.routing.preparation import prepare
from glider.serve.verdicts import condition_of
from glider.verdicts.background import shipped
from glider.verdicts.contest import Contest

from .conftest import BETWEEN, STRANGER, own_query

PROMPTS = [own_query(0), STRANGER, own_query(2), BETWEEN]
VERDICTS = ["fits", "stranger", "fits", "unsure"]


def test_each_query_has_its_verdict(llama_directory: Path, calibrated) -> None:
    model = load(str(llama_directory), calibrated(llama_directory).path)
    answers = model.generate(PROMPTS, max_new_tokens=3)
    assert [answer.verdict for answer in answers] == VERDICTS
    condition = model.condition(PROMPTS)
    assert condition.bare_rows.tolist() == [False, True, False, False]
    assert condition.settled is not None
    assert condition.settled.experts[:, 0].tolist()[::2] == [0, 2]
    assert condition.settled.weights[0].tolist() == [1, 0, 0]
    assert condition.settled.weights[3].tolist() == [0, 0, 0]  # each of its tokens chooses
    assert condition.settled.rows.tolist() == [True, False, True, False]
    whole = [answer.verdict for answer in model.generate_batch(PROMPTS, max_new_tokens=3)]
    assert whole == VERDICTS
    assert model.score_many(PROMPTS, [["a", "b"]] * 4)[1].verdicts == tuple(VERDICTS)
    assert model.trace(STRANGER)[1].condition.verdicts == ("stranger",)


def test_an_unsure_query_is_routed_as_without_verdicts_and_a_described_one_mixes_three(
    llama_directory: Path, calibrated
) -> None:
    pool = calibrated(llama_directory, 5)
    queries = [BETWEEN, Query(BETWEEN, description="Write a headline for the news.")]
    judged, routed = load(str(llama_directory), pool.path), load(str(llama_directory), pool.path, abstain=False)
    condition, scores = judged.condition(queries), routed.condition(queries).global_scores
    assert condition.verdicts == ("unsure", "unsure") and condition.settled is not None and scores is not None
    assert condition.settled.rows.tolist() == [False, True]
    assert condition.settled.experts[1].tolist() == scores[1].topk(3).indices.tolist()
    assert condition.settled.weights[1].tolist() == pytest.approx([1 / 3] * 3)
    alone = judged.score(BETWEEN, ["a", "b"])
    assert alone == routed.score(BETWEEN, ["a", "b"])
    assert alone != judged.score(queries[1], ["a", "b"])


@pytest.mark.parametrize(("stored", "mixed"), [({"described": 0}, [0, 0]), ({"experts": 2, "described": None}, [2, 2])])
def test_how_many_an_unsure_query_mixes_is_as_stored(
    llama_directory: Path, calibrated, stored: dict[str, int | None], mixed: list[int]
) -> None:
    pool = calibrated(llama_directory, 5)
    assert pool.index.verdicts is not None
    pool = pool.set_verdicts(pool.index.verdicts.model_copy(update=stored))
    queries = [BETWEEN, Query(BETWEEN, description="Write a headline for the news.")]
    settled = load(str(llama_directory), pool.path).condition(queries).settled
    counts = [0, 0] if settled is None else (settled.weights > 0).sum(dim=-1).tolist()
    assert counts == mixed


def test_an_unsure_query_that_gets_none_of_its_experts_is_the_bases(llama_directory: Path, calibrated) -> None:
    pool = calibrated(llama_directory, 5)
    assert pool.index.verdicts is not None
    pool = pool.set_verdicts(pool.index.verdicts.model_copy(update={"share": 0.0}))
    queries = [BETWEEN, Query(BETWEEN, description="Write a headline for the news."), own_query(0)]
    condition = load(str(llama_directory), pool.path).condition(queries)
    assert condition.verdicts == ("unsure", "unsure", "fits")
    assert condition.bare_rows.tolist() == [False, True, False] and condition.routed.tolist() == [True, False, False]


def test_a_strangers_logits_are_the_bases_in_a_mixed_batch(base_directory: Path, calibrated) -> None:
    pool = calibrated(base_directory)
    base = load_base(str(base_directory))
    model = ModelSpec().over(base, pool)
    inputs = model.encoder.forward_inputs(model.encoder.batch(model.encoder.rows(PROMPTS, False, 0)))
    with torch.inference_mode():
        with model.attached.routing(model.condition(PROMPTS)):
            routed = base.model(**inputs).logits
        bare = model.detach()(**inputs).logits
    assert torch.equal(routed[1], bare[1])
    assert all(not torch.equal(routed[row], bare[row]) for row in (0, 2, 3))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_a_stranger_is_answered_as_the_base_does(base_directory: Path, calibrated, settings) -> None:
    base = load_base(str(base_directory))
    model = ModelSpec().over(base, calibrated(base_directory))
    torch.manual_seed(0)
    routed = model.generate([STRANGER] * 2, max_new_tokens=8, **settings)
    torch.manual_seed(0)
    model.set_router("base")
    bare = model.generate([STRANGER] * 2, max_new_tokens=8, **settings)
    assert [one.token_ids for one in routed] == [one.token_ids for one in bare]


def test_packed_passes_streams_and_scores_too(llama_directory: Path, calibrated) -> None:
    pool = calibrated(llama_directory)
    model = load(str(llama_directory), pool.path)
    packed = model.generate_batch(PROMPTS, max_new_tokens=8)[1]
    streamed = "".join(piece.text for piece in model.stream(PROMPTS, max_new_tokens=8) if piece.row == 1)
    scores = [score.log_likelihood for score in model.score_many(PROMPTS, [["x", "yes"]] * 4)[0][1]]
    model.set_router("base")
    assert model.generate_batch(PROMPTS, max_new_tokens=8)[1].token_ids == packed.token_ids
    assert model.generate([STRANGER], max_new_tokens=8)[0].text == streamed.strip()
    assert [score.log_likelihood for score in model.score_many(PROMPTS, [["x", "yes"]] * 4)[0][1]] == scores


def test_a_query_that_fits_is_its_expert_alone(base_directory: Path, calibrated) -> None:
    base, pool = load_base(str(base_directory)), calibrated(base_directory)
    model = ModelSpec().over(base, pool)
    fitting = model.generate([own_query(1)], max_new_tokens=8)[0]
    scores = model.score(own_query(1), ["x", "yes"])
    model.set_router("single:e1")
    assert fitting.verdict == "fits"
    assert model.generate([own_query(1)], max_new_tokens=8)[0].token_ids == fitting.token_ids
    alone = model.score(own_query(1), ["x", "yes"])
    assert [s.log_likelihood for s in scores] == pytest.approx([s.log_likelihood for s in alone], abs=1e-4)


def test_no_expert_runs_for_a_stranger_and_no_gate_for_what_is_settled(llama_directory: Path, calibrated) -> None:
    model = load(str(llama_directory), calibrated(llama_directory).path)
    _, trace = model.generate_traced([STRANGER], max_new_tokens=2)
    assert trace.usage(0) == {} or not any(trace.usage(0).values())
    _, trace = model.generate_traced([own_query(0)], max_new_tokens=2)
    assert trace.usage(0) == pytest.approx({"e0": 1.0, "e1": 0.0, "e2": 0.0}, abs=1e-6)


def test_abstain_false_is_the_papers_method(llama_directory: Path, calibrated) -> None:
    pool = calibrated(llama_directory)
    base = load_base(str(llama_directory))
    answers = {}
    for name, spec in {
        "off": ModelSpec(abstain=False),
        "constants": ModelSpec(settings={"gamma": 100.0, "beta": 3.0}),
        "written": ModelSpec(router="glider(abstain=false)"),
        "object": ModelSpec(router=Glider(), abstain=False),
    }.items():
        model = spec.over(base, pool)
        assert model.attached.prepared.judge is None
        [answer] = model.generate([STRANGER], max_new_tokens=8)
        assert answer.verdict is None
        answers[name] = answer.token_ids
        model.detach()
    assert len(set(answers.values())) == 1


def test_other_routers_take_the_gate_and_keep_the_rest(llama_directory: Path, calibrated) -> None:
    pool = calibrated(llama_directory)
    base = load_base(str(llama_directory))
    plain = ModelSpec(router="phatgoose").over(base, pool)
    routed = [answer.token_ids for answer in plain.generate([own_query(0), BETWEEN], max_new_tokens=6)]
    plain.set_router("base")
    bare = plain.generate([STRANGER], max_new_tokens=6)[0].token_ids
    plain.detach()
    for router in ("phatgoose(abstain=true)", "spectr(abstain=true)", "merge(abstain=true)", "tasklevel(abstain=true)"):
        model = ModelSpec(router=router).over(base, pool)
        answers = model.generate([own_query(0), BETWEEN], max_new_tokens=6)
        assert [answer.verdict for answer in answers] == ["fits", "unsure"]
        [stranger] = model.generate([STRANGER], max_new_tokens=6)
        assert (stranger.verdict, stranger.token_ids) == ("stranger", bare)
        if router.startswith("phatgoose"):
            assert [answer.token_ids for answer in answers] == routed
        model.detach()


@pytest.mark.parametrize(
    "router",
    ["glider", "glider(p=0.4,abstain=true)", "phatgoose(abstain=true)", "merge(abstain=true)", "spectr(abstain=true)"],
)
def test_what_is_unsure_is_the_bases_under_every_router_that_abstains(
    router: str, base_directory: Path, calibrated
) -> None:
    pool = calibrated(base_directory, 4)
    pool = pool.set_verdicts(choose_thresholds(pool, experts=3, share=0.0))
    described = Query(BETWEEN, description="Write a headline for the news.")
    prompts = [own_query(0), BETWEEN, described, STRANGER, Query(BETWEEN, verdict="route")]
    model = ModelSpec(router=router).over(load_base(str(base_directory)), pool)
    condition = model.condition(prompts)
    assert condition.verdicts == ("fits", "unsure", "unsure", "stranger", "unsure")
    assert condition.bare_rows.tolist() == [False, True, True, True, False]
    scores = model.score_many(prompts, [["x", "yes"]] * 5)[0]
    beams = [answer.token_ids for answer in model.generate(prompts, max_new_tokens=4, num_beams=2)]
    model.set_router("base")
    assert model.score_many(prompts, [["x", "yes"]] * 5)[0][1:4] == scores[1:4]
    bare = [answer.token_ids for answer in model.generate(prompts, max_new_tokens=4, num_beams=2)]
    assert bare[1:4] == beams[1:4]


@pytest.mark.parametrize("router", ["loraretriever", "retrieval", "hilora(global=examples)", "adaptersoup"])
def test_a_router_whose_own_scores_have_no_threshold_is_told_by_the_pools(
    router: str, llama_directory: Path, calibrated
) -> None:
    pool, base = calibrated(llama_directory, 4), load_base(str(llama_directory))
    for thresholds in (pool.index.verdicts, choose_thresholds(pool, experts=3, share=0.0)):
        model = ModelSpec(router=router, abstain=True).over(base, pool.set_verdicts(thresholds))
        answers = model.generate(PROMPTS, max_new_tokens=2)
        assert [answer.verdict for answer in answers] == VERDICTS
        model.detach()


def test_the_caller_may_override(llama_directory: Path, calibrated) -> None:
    pool = calibrated(llama_directory)
    base = load_base(str(llama_directory))
    model = ModelSpec().over(base, pool)
    overridden = model.generate(
        [Query(STRANGER, verdict="route"), Query(own_query(0), verdict="base"), STRANGER], max_new_tokens=8
    )
    assert [answer.verdict for answer in overridden] == ["stranger", "fits", "stranger"]
    condition = model.condition([Query(STRANGER, verdict="route"), Query(own_query(0), verdict="base")])
    assert condition.bare_rows.tolist() == [False, True] and condition.routed.tolist() == [True, False]
    model.set_router(Glider(p=0.5, gamma=100.0, beta=3.0))
    assert model.condition([Query(STRANGER, verdict="base")]).bare_rows.tolist() == [True]
    with pytest.raises(QueryError, match="route or base"):
        Query(STRANGER, verdict="maybe")


@pytest.mark.parametrize("router", ["glider", "phatgoose-query(abstain=true)"])
def test_a_chat_is_asked_by_its_last_subject(router: str, llama_directory: Path, calibrated) -> None:
    model = load(str(llama_directory), calibrated(llama_directory).path, router=router)

    def verdict(*turns: str, system: str = "") -> str | None:
        chat = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]
        head = [{"role": "system", "content": system}] if system else []
        return model.generate([Query.chat([*head, *chat])], max_new_tokens=1)[0].verdict

    assert verdict(own_query(0), "yes", STRANGER) == "stranger"
    assert verdict(STRANGER, "no", own_query(1)) == "fits"
    assert verdict(own_query(0), "yes", "Why?") == "fits"
    assert verdict("Say it for me, please, as you know how.", system=own_query(2)) == "fits"
    assert verdict(STRANGER, system="You are a helpful assistant.") == "stranger"


def test_the_server_judges_a_chat_as_the_library_does(llama_directory: Path, calibrated) -> None:
    model = load(str(llama_directory), calibrated(llama_directory).path, router="phatgoose-query(abstain=true)")
    turns = [("system", own_query(2)), ("user", "Say it for me, please, as you know how.")]
    query = Query(turns[-1][1])
    [ids] = model.encoder.rows([query], False, 1)
    with model.attached.hold() as held:
        assert condition_of(model, held, query, ids, None, turns)[1] == "fits"
        assert condition_of(model, held, query, ids, None)[1] == "stranger"


def test_a_pool_of_one_expert_is_judged_by_its_margin(llama_directory: Path, calibrated) -> None:
    model = load(str(llama_directory), calibrated(llama_directory, 1).path, signal="examples")
    answers = model.generate([own_query(0), STRANGER], max_new_tokens=2)
    assert [answer.verdict for answer in answers] == ["fits", "stranger"]


@pytest.mark.parametrize("experts", [1, 3])
def test_a_query_without_a_word_of_any_expert_is_a_stranger_whatever_the_threshold(
    experts: int, llama_directory: Path, calibrated
) -> None:
    """Experts whose own queries look like everyday requests bring the threshold below zero."""
    pool = calibrated(llama_directory, experts)
    low = pool.index.verdicts.model_copy(update={"stranger": -0.5, "fits": -0.4})
    model = load(str(llama_directory), pool.set_verdicts(low).path, signal="examples")
    prompts = ["\U0001f600", "\u4eca\u65e5\u306f", "\x07", "   ", "Wherever", "the e0 and"]
    verdicts = model.condition(prompts).verdicts
    assert verdicts[:5] == ("stranger",) * 5 and verdicts[5] != "stranger"
    by_example = Query("\U0001f600", examples=((own_query(0), "yes"),))
    assert model.condition([by_example]).verdicts != ("stranger",)


def test_an_expert_without_a_profile_cannot_make_a_query_fit(llama_directory: Path, calibrated, grow_pool) -> None:
    pool = grow_pool(calibrated(llama_directory, 2), llama_directory, "plain", seed=9)
    pool = renewed_thresholds(pool)
    assert pool.index.verdicts is not None and pool.index.verdicts.names == ("e0", "e1", "plain")
    base = load_base(str(llama_directory))
    model = ModelSpec(signal="instruction", abstain=True, router=Glider("instruction") if False else "glider").over(
        base, pool
    )
    condition = model.condition([Query(own_query(0)), STRANGER])
    assert condition.verdicts[1] == "stranger" and condition.verdicts[0] in ("fits", "unsure")


def test_a_pool_that_is_not_calibrated_routes_as_before_and_abstains_not(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 2, profile=True)
    base = load_base(str(llama_directory))
    model = ModelSpec(signal="examples").over(base, pool)
    assert model.attached.prepared.judge is None
    model.detach()
    with pytest.raises(RouterError, match="glider pool calibrate"):
        ModelSpec(signal="examples", abstain=True).over(base, pool)


def test_thresholds_without_a_profile_left_make_no_strangers(llama_directory: Path, calibrated, make_pool) -> None:
    stored = calibrated(llama_directory).index.verdicts
    pool = make_pool(llama_directory, 2, name="bare").set_verdicts(stored)
    base = load_base(str(llama_directory))
    model = ModelSpec(signal="instruction").over(base, pool)
    assert model.attached.prepared.judge is None
    model.detach()
    with pytest.raises(RouterError, match="Make profiles where there are none"):
        ModelSpec(signal="instruction", abstain=True).over(base, pool)


def test_a_pool_without_a_profile_says_so(llama_directory: Path, make_pool) -> None:
    pool = make_pool(llama_directory, 2)
    with pytest.warns(GliderWarning, match="no expert of the pool.*glider expert profile"):
        load(str(llama_directory), pool.path, signal="instruction")
    load(str(llama_directory), pool.path, signal="instruction", abstain=False)
    load(str(llama_directory), pool.path, router="phatgoose")


def test_folding_is_refused_where_queries_may_be_the_bases(llama_directory: Path, calibrated) -> None:
    model = load(str(llama_directory), calibrated(llama_directory).path, router="merge(abstain=true)")
    with pytest.raises(RouterError, match="an expert for every query"):
        model.fold()


def test_thresholds_keep_what_they_promise(llama_directory: Path, calibrated) -> None:
    pool: Pool = calibrated(llama_directory)
    stored = pool.index.verdicts
    assert stored is not None and stored.false_abstention is not None and stored.false_acceptance is not None
    assert stored.false_abstention <= 0.02 and stored.false_acceptance <= 0.03
    assert stored.queries == 3 * 24 and stored.strangers == 320
    assert Pool.open(pool.path).index.verdicts == stored
    with pytest.raises(PoolError, match="held-back queries in the experts' profiles"):
        choose_thresholds(Pool(pool.path, pool.index, []))


def test_a_pools_own_background_is_kept_with_it(llama_directory: Path, calibrated) -> None:
    from glider.experts.index import BACKGROUND_FILE
    from glider.verdicts.background import Background, shipped

    pool: Pool = calibrated(llama_directory)
    strange = [own_query(0) + " today", own_query(0) + " tomorrow"] * 8
    background = shipped().joined(Background.of([strange], judged=16))
    pool = pool.set_verdicts(choose_thresholds(pool, background), background)
    assert pool.reload().background is not None
    model = load(str(llama_directory), pool.path)
    assert model.generate([STRANGER], max_new_tokens=2)[0].verdict == "stranger"
    (pool.path / BACKGROUND_FILE).write_bytes(b"other")
    with pytest.raises(PoolError, match="background"):
        load(str(llama_directory), pool.path)


def test_phatgoose_alone_gives_no_verdict(llama_directory: Path, calibrated) -> None:
    base = load_base(str(llama_directory))
    model = ModelSpec(router=Phatgoose()).over(base, calibrated(llama_directory))
    assert model.generate([STRANGER], max_new_tokens=2)[0].verdict is None


def test_an_expert_whose_profile_is_empty_counts_as_one_without(llama_directory: Path, calibrated) -> None:
    """Knowing nothing it had the highest floor, and won what nobody knows."""
    pool = calibrated(llama_directory)
    plain = choose_thresholds(pool)
    blank = Profile.of([ngrams("")] * 64, [ngrams("")] * 24)
    experts = [copy(expert) for expert in pool.experts]
    experts[2].__dict__["profile"] = blank
    emptied = Pool(pool.path, pool.index, experts)
    thresholds = choose_thresholds(emptied)
    assert thresholds.queries == 48 and thresholds.stranger == pytest.approx(plain.stranger, abs=0.05)
    margins = Contest.of([expert.profile for expert in emptied], shipped()).margins(
        QueryFeatures(1, grams=((ngrams(STRANGER),),))
    )
    assert margins[0, 2] == -torch.inf and bool((margins[0, :2] < thresholds.stranger).all())
    for expert in experts:
        expert.__dict__["profile"] = blank
    assert not has_queries(emptied) and prepare(Glider(global_="instruction"), emptied).judge is None
