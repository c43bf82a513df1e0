"""Which claims a configuration can test, and those made of a user's own network."""

from __future__ import annotations

from dataclasses import dataclass

from nablab.contract import Claim, Condition, Experiment
from nablab.contract.claims import is_testable, on_own_network

LESS = Claim.less(
    "held_out_mse",
    "deep",
    "shallow",
    by="model",
    where={"target": "sinc"},
    sentence="Depth helps",
    smallest_effect=0.1,
)


def networks(*names: str, target: str = "sinc") -> list[Condition]:
    return [Condition(model=name, target=target) for name in names]


def test_a_claim_needs_its_levels_where_it_is_made() -> None:
    assert is_testable(LESS, networks("deep", "shallow"))
    assert not is_testable(LESS, networks("deep", "wide"))
    assert not is_testable(LESS, networks("deep", "shallow", target="sign_sin"))
    # The levels must be there under the same target.
    apart = [*networks("deep"), *networks("shallow", target="sign_sin")]
    assert not is_testable(LESS, apart)
    assert is_testable(Claim.rises("error", by="share"), [Condition(share=0.5)])
    assert not is_testable(Claim.at_most("error", 1.0), [])


def test_comparisons_are_made_of_the_users_network_too() -> None:
    conditions = networks("deep", "shallow", "yours")
    more = Claim.greater("accuracy", "deep", "shallow", by="model")
    bound = Claim.at_most("held_out_mse", 1.0)
    again = Claim.less(
        "held_out_mse", "middle", "shallow", by="model", where={"target": "sinc"}
    )
    first, second = on_own_network([LESS, more, bound, again], conditions)
    assert (first.first, first.second, first.where) == ("yours", "shallow", LESS.where)
    assert first.smallest_effect == 0.1
    said = "Held-out MSE is lower for yours than for shallow (target sinc)"
    assert first.sentence == said
    assert second.sentence == "Accuracy is higher for yours than for shallow"


def test_without_a_users_network_nothing_is_added() -> None:
    assert on_own_network([LESS], networks("deep", "shallow")) == []


@dataclass(frozen=True)
class Compared(Experiment):
    """Does depth help?"""

    own: bool = False
    claims = (LESS, Claim.less("held_out_mse", "deep", "wide", by="model"))

    def conditions(self) -> list[Condition]:
        return networks("deep", "shallow", *(["yours"] if self.own else []))


def test_an_experiment_claims_what_it_runs() -> None:
    assert Compared().active_claims() == (LESS,)
    assert [claim.first for claim in Compared(own=True).active_claims()] == [
        "deep",
        "yours",
    ]
