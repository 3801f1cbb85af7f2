"""Programs that show Rockbed at work: `python -m examples.flights`."""
