"""Weight-inherited distillation: compactors, mask groups, penalty, composition.

Wu et al., Weight-Inherited Distillation for Task-Agnostic BERT Compression, Findings of NAACL 2024, arXiv 2305.09098.
"""
