"""What is known about lab reports, pure: analytes, units, ranges, flags, layout rules, prompts, comparison with the truth.

- `analytes`: names, synonyms, units, ranges by sex, critical limits, each with its source.
- `units`: spelling and explicit conversion of units.
- `names`, `values`, `dates`: exact matching of printed names; printed numbers, ranges and dates.
- `flags`, `validation`, `classification`: the rules of those stages.
- `layout`: from recognised words with boxes to rows of a report.
- `answers`, `prompts`: what models are asked, and their answers read strictly.
- `metrics`: fields compared with the truth.
"""
