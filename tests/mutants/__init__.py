"""How many small mistakes in the code the tests notice; see docs/explanations/fault-bench.md, section Mutants."""
