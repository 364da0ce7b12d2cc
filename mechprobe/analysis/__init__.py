"""Floor 8: tables become verdicts. Pure functions over DataFrames; nothing here imports torch."""
