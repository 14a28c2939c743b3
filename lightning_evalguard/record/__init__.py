"""What a run leaves behind: its record and the ledger."""
