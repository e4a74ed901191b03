"""When is a command neuron high? A small decision tree per neuron, scored on episodes that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from markupsafe import Markup

from ncp_rl.audit.plan import Plan
from ncp_rl.audit.question import Evidence, RecordingQuestion, Schema
from ncp_rl.audit.section import Part, number
from ncp_rl.audit.trees import NeuronTree, TreeAudit, audit_trees
from ncp_rl.audit.verdict import Verdict


class TreesQuestion(RecordingQuestion[TreeAudit]):
    """Asks for rules. It passes where they explain half of the neurons' variance."""

    name = "trees"
    schema: ClassVar[Schema] = {
        "trees": {
            "type": "object",
            "properties": {
                "r2": {"type": ["number", "null"]},
                "trees": {"type": "array", "items": {"type": "object", "required": ["neuron", "rules", "r2"]}},
            },
            "required": ["r2", "trees"],
        }
    }
    title = "When is a command neuron high?"
    navigation = "Trees"
    lead = (
        "A small decision tree per neuron, over what was observed and its rates of change, scored on episodes that it "
        "has not seen. R\u00b2 is the share of the neuron's variance that its rules tell there."
    )
    of_fleets = False

    def lacks(self, evidence: Evidence, plan: Plan) -> str | None:
        """Return what is missing: observed quantities that rules can name, or a second episode."""
        if not evidence.episodes[0].observation_names:
            return "Trees need observed quantities that rules can name, and only images are observed."
        enough = len(evidence.episodes) > 1
        return None if enough else "Trees need at least two episodes, one to grow on and one to be scored on."

    def ask(self, evidence: Evidence, plan: Plan) -> TreeAudit:
        """Grow and score a tree per watched neuron."""
        return audit_trees(evidence.circuit, evidence.episodes)

    def verdicts(self, answer: TreeAudit) -> list[Verdict]:
        """Return the verdict: the share of the variance that the rules explain."""
        return [answer.verdict()]

    def entries(self, answer: TreeAudit) -> dict[str, Any]:
        """Return the rules as sentences, and how well they separate the neurons."""
        return {"trees": answer.to_dict()}

    def section(self, answer: TreeAudit) -> Iterator[Part]:
        """Yield the trees one after the other, the first one open."""
        for i, tree in enumerate(answer.trees):
            yield _drawn(tree, is_open=i == 0)


def _drawn(tree: NeuronTree, *, is_open: bool) -> Markup:
    """Return rules as sentences, and the tree as nested lists."""
    rule = Markup('<li>{} <span class="share">({:.0f} % of the steps)</span></li>')
    return Markup(
        '<details class="tree"{}><summary>{}: R&sup2; {}, {} rules</summary>'
        '<div class="columns"><ul class="rules">{}</ul><div class="drawn">{}</div></div></details>'
    ).format(
        Markup(" open") if is_open else "",
        tree.neuron,
        number(tree.r2),
        len(tree.rules),
        Markup("").join(rule.format(str(one), 100 * one.share) for one in tree.rules),
        _branch(tree, 0),
    )


def _branch(tree: NeuronTree, node: int) -> Markup:
    if tree.left[node] < 0:
        return Markup('<span class="leaf">{:.2f}</span>').format(tree.value[node] + 0.0)
    return Markup(
        '<span class="split">{} &le; {:.3g}?</span><ul><li><b>yes</b> {}</li><li><b>no</b> {}</li></ul>'
    ).format(
        tree.quantities[tree.feature[node]],
        tree.threshold[node],
        _branch(tree, int(tree.left[node])),
        _branch(tree, int(tree.right[node])),
    )
