"""From a trained model and an image to a decision and a map."""
