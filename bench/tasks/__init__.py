"""What a network is for: how its outputs are decoded, scored and compared. Needs no torch."""
