"""What a bundle holds beside the model: network, history, engines, licences, parts."""
