"""What a model card says beyond TRL's: the paper, the domains with their shares, the held-out rewards."""

from collections.abc import Mapping
from pathlib import Path

from counterpoint.domains.shares import normalise
from counterpoint.surgery import Strategy

PAPER = {
    "title": "Advancing General-Purpose Reasoning Models with Modular Gradient Surgery",
    "id": "2602.02301",
    "citation": """\
@article{cai2026modular,
    title        = {{Advancing General-Purpose Reasoning Models with Modular Gradient Surgery}},
    author       = {Min Cai and Yu Liang and Longzheng Wang and Yan Wang and Yueyang Zhang and Long Xia and Zhiyuan Sun and Xi Ye and Daiting Shi},
    year         = 2026,
    eprint       = {arXiv:2602.02301},
}

@article{shao2024deepseekmath,
    title        = {{DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models}},
    author       = {Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Mingchuan Zhang and Y. K. Li and Y. Wu and Daya Guo},
    year         = 2024,
    eprint       = {arXiv:2402.03300},
}""",  # noqa: E501
}
"""In the form of TRL's ``_paper``: Modular Gradient Surgery, with GRPO's own citation behind it."""

_BEFORE = "### Framework versions"


def add_domains(card: Path, strategy: Strategy, shares: Mapping[str, float], held_out: Mapping[str, float]) -> None:
    """Puts a table of the domains into the model card that TRL has written.

    Args:
        shares: relative share of each domain.
        held_out: mean reward on held-out prompts, for the domains that have one.
    """
    head = "| domain | share of every step |" + (" held-out reward |" if held_out else "")
    lines = [head, "|---|--:|" + ("--:|" if held_out else "")]
    for name, share in normalise(shares).items():
        line = f"| {name} | {float(share):.1%} |"
        if held_out:
            line += f" {held_out[name]:.3f} |" if name in held_out else " |"
        lines.append(line)
    section = f"### Domains\n\nGradients of the domains were combined by the strategy `{strategy.name}`.\n\n"
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace(_BEFORE, section + "\n".join(lines) + f"\n\n{_BEFORE}", 1), encoding="utf-8")
