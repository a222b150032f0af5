"""What `graft drift` found, as lines and as a page."""

from graft.reporting.model_card import environment
from graft.second_look.drift import Drift

ALIKE = 0.05  # p below which two samples are called different


def verdict(found: Drift) -> str:
    """One sentence."""
    if found.p_value >= ALIKE:
        return f"nothing tells the {found.new} new photos from {found.known} validation photos"
    return f"the {found.new} new photos look different from {found.known} validation photos"


def text(found: Drift) -> str:
    """The page's figures, for a terminal."""
    width = max(len(share.name) for share in found.shares)
    lines = [
        f"{verdict(found)}: AUROC {found.auroc:.3f}, p = {found.p_value:.3f}",
        f"{found.unknown:.1%} of them look strange to the model, where 5% would by chance",
        (
            f"expected accuracy {found.accuracy:.3f} ({found.accuracy_low:.3f} to "
            f"{found.accuracy_high:.3f}), where classes look as they did"
        ),
        f"{'class':{width}}  before    now  95% interval",
    ]
    rows = (
        f"{s.name:{width}}  {s.before:6.1%} {s.now:6.1%}  {s.low:.1%} to {s.high:.1%}"
        for s in found.shares
    )
    return "\n".join([*lines, *rows])


def page(found: Drift, *, name: str) -> str:
    """HTML that needs nothing but itself. name: of the new photos."""
    return (
        environment()
        .get_template("drift.html.j2")
        .render(found=found, name=name, verdict=verdict(found))
    )
