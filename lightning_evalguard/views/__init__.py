"""How findings and records are shown: terminal, page, SARIF."""
