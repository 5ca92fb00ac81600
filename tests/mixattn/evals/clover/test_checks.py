"""The six checks: what is accepted, and the loop around them. Without Dafny unless a test asks for it."""

import asyncio
import itertools
from dataclasses import replace

import pytest

from mixattn.evals.clover import own, scripted
from mixattn.evals.clover.checks import EdgeResult, Tools, anno_sound, check
from mixattn.evals.clover.outputs import ProgramRun
from mixattn.evals.clover.prompts import INSTRUCTIONS
from mixattn.evals.clover.triple import EDGES
from mixattn.evals.dafny.protocol import Verification
from mixattn.evals.dafny.scripted import ScriptedVerifier
from mixattn.evals.llm import Completion, Scripted

RIGHT, WRONG = own.right_triples(), own.wrong_triples()
CLAMP = next(t for t in RIGHT if t.name == "clamp")
# The checks that compare two components of different meaning, by kind.
FALLS_AT = {
    "C1": {"doc2code", "doc2anno", "anno2doc", "code2doc"},
    "C2": {"anno-complete", "doc2anno", "anno2doc"},
    "C3": {"anno-complete", "doc2code", "code2doc"},
    "C6": {"doc2code", "doc2anno", "anno2doc", "code2doc"},
}


def report(triple, tools, model, **options):
    return asyncio.run(check(triple, replace(tools, model=model), **options))


def failed(found):
    return {edge for edge, result in found.edges.items() if result.status != "pass"}


def test_the_oracle_accepts_every_right_triple(by_heart):
    assert [t.name for t in RIGHT if not report(t, by_heart, scripted.oracle()).accepted] == []


@pytest.mark.parametrize("kind", FALLS_AT)
def test_the_oracle_rejects_every_wrong_triple_at_the_edges_of_its_kind(by_heart, kind):
    for triple in WRONG:
        if triple.kind == kind:
            assert failed(report(triple, by_heart, scripted.oracle())) == FALLS_AT[kind], triple.name


def test_every_edge_matters_to_a_model_that_guesses_what_was_meant(by_heart):
    """Weak docstring and annotation are then caught by doc2anno alone, as in the paper."""
    for triple in WRONG:
        found = report(triple, by_heart, scripted.charitable())
        if triple.kind in ("C2", "C3"):
            assert "doc2anno" in failed(found)
            if triple.kind == "C3":
                assert failed(found) <= {"doc2anno", "anno-complete"}


@pytest.mark.parametrize("passing", list(itertools.product([False, True], repeat=len(EDGES))))
def test_a_triple_is_accepted_if_and_only_if_all_six_checks_pass(by_heart, passing):
    """A model that is right or silent, by edge; a verifier that proves the program or not."""
    works = dict(zip(EDGES, passing))
    oracle = scripted.oracle()

    class Model:
        async def complete(self, prompt, **options):
            edge = next(edge for edge, text in INSTRUCTIONS.items() if prompt.startswith(text))
            return await oracle.complete(prompt, **options) if works.get(edge, True) else Completion("")

    def decide(text):
        is_own = text == CLAMP.program()
        return Verification("failed") if is_own and not works["anno-sound"] else by_heart.verify(text)

    # The oracle's own code is the program itself; without soundness it cannot be completed either.
    found = report(CLAMP, Tools(ScriptedVerifier(decide), by_heart.run, blocking=False), Model())
    wrong = {edge for edge in EDGES if not works[edge]}
    wrong |= {"anno-complete"} if not works["anno-sound"] else set()
    assert failed(found) == wrong
    assert found.accepted is (not wrong)


def test_early_quit_and_order_do_not_change_what_is_accepted(by_heart):
    model = scripted.noisy(0.8)
    for triple in RIGHT + WRONG[:20]:
        full = report(triple, by_heart, model)
        assert report(triple, by_heart, model, early_quit=True).accepted == full.accepted
        turned = report(triple, by_heart, model, edges=EDGES[::-1])
        assert turned.edges == full.edges


def test_more_tries_never_accept_less(by_heart):
    model = scripted.noisy(0.5)
    for triple in RIGHT + WRONG[:12]:
        accepted = [report(triple, by_heart, model, k=k).accepted for k in (1, 2, 3, 5, 8)]
        assert accepted == sorted(accepted), triple.name


@pytest.mark.parametrize(("p", "k"), [(0.3, 1), (0.3, 3), (0.7, 2)])
def test_an_edge_passes_with_the_probability_that_one_of_k_tries_is_right(by_heart, p, k):
    model, n = scripted.noisy(p), 0
    passed = dict.fromkeys(EDGES[1:], 0)
    for seed in range(8):
        for triple in RIGHT:
            n += 1
            for edge in (
                failed(report(triple, by_heart, model, k=k, seed=seed, edges=EDGES[1:])) ^ passed.keys()
            ):
                passed[edge] += 1
    expected = 1 - (1 - p) ** k
    four_sigma = 4 * (expected * (1 - expected) / n) ** 0.5
    for edge, count in passed.items():
        assert abs(count / n - expected) < four_sigma, (edge, count / n, expected)


def test_a_model_is_told_what_the_verifier_said_and_has_three_turns(by_heart):
    prompts = []

    def reply(prompt):
        prompts.append(prompt)
        return "method Solve(x: int) { }"

    found = report(CLAMP, by_heart, Scripted(reply), edges=["doc2anno"], k=2)
    assert found.edges["doc2anno"] == EdgeResult(
        "fail", 2, f"the signature must stay {CLAMP.method.signature!r}"
    )
    assert len(prompts) == 6
    assert "It was refused" not in prompts[0]
    assert "signature must stay" in prompts[1]
    assert prompts[3] == prompts[0]


def test_cheating_completions_are_refused(by_heart):
    cheat = f"{CLAMP.method.signature}\n{{ assume false; }}"
    tools = Tools(
        ScriptedVerifier(lambda text: "verified"), lambda text: ProgramRun(True, "same"), blocking=False
    )
    found = report(CLAMP, tools, Scripted(lambda prompt: cheat), edges=["anno-complete", "doc2code"])
    assert failed(found) == {"anno-complete", "doc2code"}
    assert "assume" in found.edges["anno-complete"].reason


def test_without_a_model_nothing_but_soundness_is_known(by_heart):
    found = report(CLAMP, by_heart, None)
    assert failed(found) == set(EDGES[1:])
    assert not found.accepted


@pytest.mark.parametrize(
    ("verdict", "status"),
    [("verified", "pass"), ("failed", "fail"), ("timeout", "cannot say"), ("empty", "cannot say")],
)
def test_soundness_is_the_verifiers_verdict(verdict, status):
    assert anno_sound(CLAMP, ScriptedVerifier(lambda text: verdict)).status == status


def test_the_real_verifier_accepts_a_right_triple_with_a_heap_and_rejects_its_weak_one(dafny):
    swap = [t for t in RIGHT + WRONG if t.name == "swap"]
    assert report(swap[0], dafny, scripted.oracle()).accepted
    weak = next(t for t in swap if t.kind == "C2")
    assert failed(report(weak, dafny, scripted.oracle())) == FALLS_AT["C2"]


@pytest.mark.long
def test_the_oracle_with_the_real_verifier_accepts_20_of_20_and_0_of_60(dafny):
    for triple in RIGHT + WRONG:
        found = report(triple, dafny, scripted.oracle())
        assert failed(found) == FALLS_AT.get(triple.kind, set()), (triple.name, triple.kind)
