"""How fast, beside whom. One command a question: `python -m benchmarks.views`, from the repository's root. See README.md here."""
