"""Parts of a bundle: network, history, engines, licences, parts."""
