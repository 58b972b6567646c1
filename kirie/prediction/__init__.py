"""One road for prediction: validation, `evaluate`, the command line and other doors all run a `Predictor`."""
