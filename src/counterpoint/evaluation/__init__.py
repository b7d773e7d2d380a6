"""Generate, score, and say how sure the score is."""

from counterpoint.evaluation.generate import Completion, Sampling, generate
from counterpoint.evaluation.score import DomainScore, EvaluationPlan, Sample, evaluate, score_rows

__all__ = ["Completion", "DomainScore", "EvaluationPlan", "Sample", "Sampling", "evaluate", "generate", "score_rows"]
