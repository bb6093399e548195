"""Text tasks: banks, typed checks, sandboxed execution, adherence.

- `bank`: read and validate a task bank, and publish its JSON Schema; `named_banks`: banks by name; `selection`: which tasks.
- `checks`: every kind of check on an answer; `answers`: how numbers, JSON and code are read out of it; `deadline`: a clock
  for patterns; `code_checks`, `gym`: the kinds that run code.
- `score`: check results to `adherence_score`, and code density.
- `sandbox`, `sandbox_filter`, `sandbox_runner`: where model code runs.
"""
