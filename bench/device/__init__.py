"""What a device calls: a bundle opened in a runtime, from an image to a prediction."""
